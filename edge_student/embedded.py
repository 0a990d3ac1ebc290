"""The teacher that `compare` starts when none is given: trained once, cached, precomputed, pinned to the lowest core, on loopback.

It is started as a program, as a stranger would start it. All its logits are computed before the first run, so that during a run it
only reads them from disk and sends them; what that costs is paid on the same core under every policy.
"""

import hashlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_student.config import CompareConfig
from edgekd.command import WorldError

logger = logging.getLogger(__name__)

_CACHE = Path("~/.cache/edgekd/teachers")
_STOP_WAIT_S = 10.0
_ANNOUNCEMENT = "listening on "


@contextmanager
def embedded_teacher(config: CompareConfig, core: int) -> Iterator[str]:
    """Serve `config.public_dataset` on loopback while the block runs; yields HOST:PORT. WorldError if it does not start."""
    command = [sys.executable, "-m", "cloud_teacher", "serve", "--listen", "127.0.0.1:0", "--precompute"]
    command += ["--dataset", config.public_dataset, "--model", config.teacher_model, "--log-level", config.log_level]
    weights = trained_weights(config)
    if weights is not None:
        command += ["--weights", str(weights)]
    if config.rate_limit is not None:
        command += ["--rate-limit", config.rate_limit]
    command += ["--cores", str(core), "--torch-threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(_ANNOUNCEMENT):
            raise WorldError(f"the teacher did not start (exit status {process.wait()}); its own message stands above")
        address = line.removeprefix(_ANNOUNCEMENT).strip()
        logger.info("the teacher runs on core %d, at %s, all logits precomputed", core, address)
        yield address
    finally:
        _stop(process)


def trained_weights(config: CompareConfig) -> Path | None:
    """The cached weights of the teacher, trained now if there are none. None for synthetic data: noise teaches nothing."""
    if config.public_dataset.startswith("synthetic:"):
        return None
    key = f"{config.teacher_model} {config.public_dataset} {config.seed}"
    path = _CACHE.expanduser() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        logger.info("training a teacher once: %s on %s, kept as %s", config.teacher_model, config.public_dataset, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "cloud_teacher", "train", "--dataset", config.public_dataset]
        command += ["--model", config.teacher_model, "--seed", str(config.seed), "--out", str(path)]
        command += ["--log-level", config.log_level]
        status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        if status != 0:
            raise WorldError(f"training the teacher ended with exit status {status}; its own message stands above")
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
