"""The teacher that is started when none is given: trained once, cached, precomputed, pinned to the lowest core, on loopback.

It is started as a program, as a stranger would start it. All its logits are computed before the first run, so that during a run it
only reads them from disk and sends them; what that costs is paid on the same core under every policy.
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
from edgekd.data.datasets import load_dataset
from edgekd.errors import WorldError

logger = logging.getLogger(__name__)

_CACHE = Path("~/.cache/edgekd/teachers")
_STOP_WAIT_S = 10.0
_ANNOUNCEMENT = "listening on "


def teacher(config: HostingConfig, core: int) -> AbstractContextManager[str | None]:
    """The address, HOST:PORT, of the teacher that the user named, or of one that is served while the block runs; None offline."""
    if config.logits == "offline":
        return nullcontext(None)
    return embedded_teacher(config, core) if config.teacher is None else nullcontext(config.teacher)


@contextmanager
def embedded_teacher(config: HostingConfig, core: int) -> Iterator[str]:
    """Serve `config.public_dataset` on loopback while the block runs; yields HOST:PORT. WorldError if it does not start."""
    command = [sys.executable, "-m", "cloud_teacher", "serve", "--listen", "127.0.0.1:0", "--precompute"]
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
            cause = f"the teacher did not start (exit status {status}); its own message stands above"
            raise ValueError(cause) if status == USER_ERROR else WorldError(cause)
        address = line.removeprefix(_ANNOUNCEMENT).strip()
        logger.info("the teacher runs on core %d, at %s, all logits precomputed", core, address)
        yield address
    finally:
        _stop(process)


def trained_weights(config: HostingConfig) -> Path | None:
    """The cached weights of the teacher, trained now if there are none. None for synthetic data: noise teaches nothing."""
    if config.public_dataset.startswith("synthetic:"):
        return None
    key = f"{config.teacher_model} {load_dataset(config.public_dataset).digest} {config.seed}"
    path = _CACHE.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        return path
    logger.info("training a teacher once: %s on %s, kept as %s", config.teacher_model, config.public_dataset, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, because an interrupted `train` saves what it has, and half a teacher must not be found here later.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        command = [sys.executable, "-m", "cloud_teacher", "train", "--dataset", config.public_dataset]
        command += ["--model", config.teacher_model, "--seed", str(config.seed), "--out", str(fresh)]
        command += ["--log-level", config.log_level, "--log-format", config.log_format]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False, preexec_fn=end_with_parent).returncode
        if status != 0:
            raise WorldError(f"training the teacher ended with exit status {status}; its own message stands above")
        fresh.with_suffix(".json").replace(path.with_suffix(".json"))
        fresh.replace(path)
    return path


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
