"""Starts a local teacher if --teacher is not given: trained once, cached, precomputed, pinned to the lowest core, on loopback.

The teacher is started through its command line. It computes all logits before the first run, so that during a run it only reads
them from disk and sends them. This load is on the same core under every policy.
"""

import hashlib
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from edge_student.ipc.parent_death import end_with_parent
from edge_student.settings.student import HostingConfig
from edgekd.cli.command import USER_ERROR
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset
from edgekd.errors import WorldError
from edgekd.models.build import build_model
from edgekd.models.input import choose_preprocessing

logger = logging.getLogger(__name__)

_CACHE = Path("~/.cache/edgekd/teachers")
_STOP_WAIT_S = 10.0
_ANNOUNCEMENT = "listening on "


def teacher(config: HostingConfig, core: int) -> AbstractContextManager[str | None]:
    """Return a context with the teacher's address HOST:PORT: --teacher, or a local one that runs within the block; None offline."""
    if config.logits == "offline":
        return nullcontext(None)
    return serve_local_teacher(config, core) if config.teacher is None else nullcontext(config.teacher)


@contextmanager
def serve_local_teacher(config: HostingConfig, core: int) -> Iterator[str]:
    """Serve `config.public_dataset` on loopback while the block runs; yields HOST:PORT.

    Raises ValueError if the teacher rejects its settings, and WorldError if it fails to start for another reason.
    """
    command = [sys.executable, "-P", "-m", "cloud_teacher", "serve", "--listen", "127.0.0.1:0", "--precompute"]
    command += ["--dataset", config.public_dataset, "--model", config.teacher_model, "--log-level", config.log_level]
    command += ["--log-format", config.log_format]
    weights = trained_weights(config)
    if weights is not None:
        command += ["--weights", str(weights)]
    if config.rate_limit is not None:
        command += ["--rate-limit", config.rate_limit]
    command += ["--cores", str(core), "--torch-threads", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 -- no other Python thread runs here
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(_ANNOUNCEMENT):
            status = process.wait()
            raise _failure(f"the teacher did not start (exit status {status}); see its message above", status)
        address = line.removeprefix(_ANNOUNCEMENT).strip()
        logger.info("teacher serves precomputed logits at %s on core %d", address, core)
        yield address
    finally:
        _stop(process)


def trained_weights(config: HostingConfig) -> Path | None:
    """Return the teacher's cached weights; train them if missing. None for synthetic data, which is noise and needs no training."""
    if config.public_dataset.startswith("synthetic:"):
        return None
    public = load_dataset(config.public_dataset)
    key = f"{config.teacher_model} {public.digest} {config.seed}"
    if config.public_dataset.partition(":")[0] not in ("digits", "fashion-mnist", "cifar10", "cifar100"):
        # Labels of the user's files can change without the samples.
        key += f" {public.labels.tobytes().hex()} {public.class_names}"
    path = _CACHE.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        return path
    logger.info("training a teacher: %s on %s, cached as %s", config.teacher_model, config.public_dataset, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Trained in a temporary folder, because an interrupted `train` saves partly trained weights, which must not enter the cache.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        command = [sys.executable, "-P", "-m", "cloud_teacher", "train", "--dataset", config.public_dataset]
        command += ["--model", config.teacher_model, "--seed", str(config.seed), "--out", str(fresh)]
        command += ["--log-level", config.log_level, "--log-format", config.log_format]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, preexec_fn=end_with_parent).returncode
        if status != 0:
            raise _failure(f"training the teacher failed with exit status {status}; see its message above", status)
        fresh.with_suffix(".json").replace(path.with_suffix(".json"))
        fresh.replace(path)
    return path


def check_models(config: HostingConfig, private: Dataset, input_shape: tuple[int, ...]) -> None:
    """Build the student, and the local teacher if one is started, so that a wrong model is rejected before a teacher is trained.

    `input_shape` is that of the student. Raises ValueError. A student whose number of outputs only the teacher knows is not built.
    """
    num_classes = private.num_classes or 1
    if config.teacher is None or (private.is_labelled and config.class_map is None):
        build_model(config.model, num_classes=num_classes, input_shape=input_shape, seed=config.seed)
    if config.teacher is None:
        rules = choose_preprocessing(config.teacher_model, private.input_shape, private.inputs.dtype)
        shape = rules.shape_of(private.input_shape)
        build_model(config.teacher_model, num_classes=num_classes, input_shape=shape, seed=config.seed)


def _failure(cause: str, status: int) -> Exception:
    """Return the error of a program that ended with `status`: ValueError for a user's mistake, else WorldError."""
    return ValueError(cause) if status == USER_ERROR else WorldError(cause)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
