"""Check torch, the loaded OpenMP runtimes, and the environment variables that change them.

This process never loads torch: a build for another processor kills the process that loads it. Version and build are read from
torch's files. A subprocess (training/torch_check.py) tests whether torch runs.
"""

import importlib.metadata
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_student.doctor.finding import Finding, note, ok, problem, unknown, warning
from edge_student.host.counters import Machine
from edge_student.host.environment import forbidden_variables, spinning_variables

_CPU_INDEX = "pip install --force-reinstall --index-url https://download.pytorch.org/whl/cpu torch torchvision"
_CUDA_PACKAGES = ("nvidia-", "cuda-", "triton")
_CHECK_S = 300.0  # loading torch from a cold SD card takes most of a minute
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_DYNAMIC", "OMP_THREAD_LIMIT")
# github.com/pytorch/pytorch/issues/176993: its aarch64 wheels use the atomics of ARMv8.1, which these processors lack.
_NEEDS_ATOMICS = "2.10.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The installed torch. `version` is empty if torch is missing. `cuda` is the CUDA version of the build, empty for a CPU build.

    `cuda_mib` is the disk space of torch and the CUDA packages, from their lists of files.
    """

    version: str
    cuda: str
    cuda_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The board that torch must match. `has_atomics` is None if unknown, or if every processor of the architecture has them."""

    architecture: str
    model: str
    has_gpu: bool
    has_atomics: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchCheck:
    """Result of the torch subprocess: its output as parsed JSON, or the cause of its failure."""

    output: Mapping[str, Any] | None
    cause: str = ""
    is_illegal_instruction: bool = False


def read_torch() -> Torch:
    """Read the installed torch from its package metadata and the text of its version.py."""
    try:
        found = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return Torch(version="", cuda="", cuda_mib=0)
    try:
        text = Path(str(found.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except OSError:
        text = ""
    version, cuda = parse_version_file(text)
    return Torch(version=version or found.version, cuda=cuda, cuda_mib=_cuda_mib() if cuda else 0)


def parse_version_file(text: str) -> tuple[str, str]:
    """Parse the torch version and the CUDA version of a torch/version.py. Missing values are empty."""
    values = {name: re.search(rf"^{name}\b[^=\n]*=\s*'([^']*)'", text, re.MULTILINE) for name in ("__version__", "cuda")}
    version, cuda = (match[1] if match else "" for match in values.values())
    return version, cuda


def _cuda_mib() -> int:
    num_bytes = 0
    for found in importlib.metadata.distributions():
        name = (found.metadata["Name"] or "").lower()
        if name == "torch" or name.startswith(_CUDA_PACKAGES):
            num_bytes += sum(file.size or 0 for file in found.files or ())
    return num_bytes >> 20


def read_board(machine: Machine, architecture: str) -> Board:
    """Read the device tree, /proc/cpuinfo and the files of GPU drivers."""
    features = re.search(r"^Features\s*:\s*(.+)$", machine.text("proc/cpuinfo") or "", re.MULTILINE)
    compatible = machine.text("proc/device-tree/compatible") or ""
    has_driver = any((machine.root / path).exists() for path in ("proc/driver/nvidia/version", "dev/nvidia0", "dev/nvhost-gpu"))
    return Board(
        architecture=architecture,
        model=(machine.text("proc/device-tree/model") or "").strip("\0 "),
        has_gpu=has_driver or "nvidia,tegra" in compatible,
        has_atomics="atomics" in features[1].split() if features and architecture == "aarch64" else None,
    )


def run_torch_check(command: Sequence[str] = (sys.executable, "-P", "-m", "edge_student.training.torch_check")) -> TorchCheck:
    """Load torch and train one step in a subprocess."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_CHECK_S, check=False)
    except subprocess.TimeoutExpired:
        return TorchCheck(output=None, cause=f"the process did not exit within {_CHECK_S:g} s")
    except OSError as error:
        return TorchCheck(output=None, cause=f"the process cannot be started: {error.strerror}")
    if ended.returncode < 0:
        is_illegal = -ended.returncode == signal.SIGILL
        return TorchCheck(output=None, cause=_describe_signal(-ended.returncode), is_illegal_instruction=is_illegal)
    last = ([line.strip() for line in ended.stderr.splitlines() if line.strip()] or ["the process failed without a message"])[-1]
    if ended.returncode > 0:
        return TorchCheck(output=None, cause=last)
    try:
        output = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return TorchCheck(output=None, cause="the process exited with status 0 but printed no result")
    return TorchCheck(output=output)


def _describe_signal(number: int) -> str:
    return f"the process was killed by {signal.Signals(number).name} ({signal.strsignal(number)})"


def check_torch(torch: Torch, board: Board, torch_check: TorchCheck) -> Finding:
    """Check whether torch matches the board and can train one step."""
    check = "software.torch"
    which = f"torch {torch.version} ({'CUDA ' + torch.cuda if torch.cuda else 'CPU'} build)"
    details = {
        "version": torch.version or None,
        "cuda": torch.cuda or None,
        "cuda_mib": torch.cuda_mib,
        "has_gpu": board.has_gpu,
        "board": board.model or None,
        "trial": None if torch_check.output is None else dict(torch_check.output),
        "cause": torch_check.cause or None,
    }
    if not torch.version:
        return problem(check, "torch is not installed", f"run `{_CPU_INDEX.replace(' --force-reinstall', '')}`", **details)
    if torch_check.output is None and (
        torch_check.is_illegal_instruction or (torch.version.startswith(_NEEDS_ATOMICS) and board.has_atomics is False)
    ):
        return problem(
            check,
            f"{which} uses instructions that this processor does not support: {torch_check.cause}",
            f"install another version (a Raspberry Pi 4 cannot run {_NEEDS_ATOMICS}): `{_CPU_INDEX} 'torch!={_NEEDS_ATOMICS}'`",
            **details,
        )
    if torch_check.output is None:
        return problem(
            check,
            f"{which} cannot train one small step: {torch_check.cause}",
            "run `python -m edge_student.training.torch_check` and fix the error that it shows",
            **details,
        )
    if torch.cuda and not board.has_gpu:
        text = (
            f"{which} uses {torch.cuda_mib} MiB of disk, mostly for CUDA, but this {board.architecture} machine has no NVIDIA GPU"
        )
        return warning(check, text, f"run `{_CPU_INDEX}`, then uninstall the nvidia-* packages", **details)
    if board.has_gpu and not torch.cuda:
        text = f"{which} cannot use the NVIDIA GPU of this machine"
        return note(
            check,
            text,
            "install a CUDA build to train on the GPU; to train on the CPU (--device cpu), no action is needed",
            **details,
        )
    return ok(check, f"{which} trained one small step", **details)


def check_openmp(torch_check: TorchCheck) -> Finding:
    """Check that a run loads exactly one OpenMP runtime. Several runtimes compete for the cores."""
    check = "software.openmp"
    if torch_check.output is None:
        return unknown(
            check,
            f"the OpenMP runtimes of a run are not known, because torch did not run: {torch_check.cause}",
            "fix software.torch first",
        )
    files = [(pool["kind"], pool["file"]) for pool in torch_check.output.get("openmp_files", ())]
    files += [(_kind_of(file), file) for file in torch_check.output.get("openmp", ()) if file not in {name for _, name in files}]
    kinds = sorted({kind for kind, _ in files})
    names = ", ".join(sorted(file for _, file in files))
    details = {"runtimes": sorted(file for _, file in files)}
    if not files:
        return note(
            check,
            "a run loads no OpenMP runtime, so torch may train on one core only",
            "install an official PyTorch build",
            **details,
        )
    if len(kinds) > 1:
        return warning(
            check,
            f"a run loads {len(kinds)} kinds of OpenMP runtime ({names}), and the threads of each spin on the cores of the others",
            "install torch and all other packages from one source, either pip or conda",
            **details,
        )
    if len(files) > 1:
        return note(
            check,
            f"a run loads {len(files)} copies of one OpenMP runtime ({names}); only the copy of torch is active during training",
            "no action is needed unless your own model calls another OpenMP library during training",
            **details,
        )
    return ok(check, f"a run loads one OpenMP runtime: {names}", **details)


def _kind_of(file: str) -> str:
    return next((kind for kind in ("libiomp", "libgomp", "libomp") if file.startswith(kind)), file)


def check_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check for environment variables that the other commands reject, and for those that change measurements."""
    check = "software.environment"
    forbidden = forbidden_variables(environ)
    threads = {name: environ[name] for name in _THREAD_VARIABLES if name in environ}
    others = {**spinning_variables(environ), **threads}
    details = {"forbidden": forbidden, "others": others}
    if forbidden:
        shown = ", ".join(f"{name}={value}" for name, value in forbidden.items())
        text = f"{shown} makes OpenMP pin its threads, which conflicts with the scheduler; the other commands do not start"
        yield problem(check, text, f"run `unset {' '.join(forbidden)}`", **details)
    elif others:
        shown = ", ".join(f"{name}={value}" for name, value in others.items())
        text = f"{shown} changes the number of OpenMP threads or how they wait, also for the baseline os-default"
        yield note(check, text, f"run `unset {' '.join(others)}`, unless you want to measure this setting", **details)
    else:
        yield ok(check, "no environment variable changes the OpenMP threads", **details)
