"""Torch, the OpenMP runtimes that come with it, and the environment they would find.

Nothing here loads torch: its version and build are read from its files, and whether it runs is tried in a process of its own
(torch_trial.py), because a build for another processor ends whoever loads it.
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
_CHECK_S = 300.0  # from a cold SD card, torch alone takes most of a minute
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_DYNAMIC", "OMP_THREAD_LIMIT")
# github.com/pytorch/pytorch/issues/176993: its aarch64 wheels use the atomics of ARMv8.1, which these processors lack.
_NEEDS_ATOMICS = "2.10.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """How torch is installed. An empty `version`: not at all. `cuda` is the version it was built for, empty for a CPU build.

    `cuda_mib` is what torch and the packages of CUDA take on the disk, as their own lists of files say.
    """

    version: str
    cuda: str
    cuda_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What torch has to fit. `has_atomics` is None where it cannot be told, or every processor has them."""

    architecture: str
    model: str
    has_gpu: bool
    has_atomics: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchCheck:
    """How the process with torch ended: what it printed, or why it printed nothing."""

    said: Mapping[str, Any] | None
    cause: str = ""
    is_illegal_instruction: bool = False


def read_torch() -> Torch:
    """From the metadata of the package and its version.py, as text."""
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
    """Version and CUDA's version of a torch/version.py; empty for what it does not have."""
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
    """From the device tree, /proc/cpuinfo and the drivers of GPUs."""
    features = re.search(r"^Features\s*:\s*(.+)$", machine.text("proc/cpuinfo") or "", re.MULTILINE)
    compatible = machine.text("proc/device-tree/compatible") or ""
    has_driver = any((machine.root / path).exists() for path in ("proc/driver/nvidia/version", "dev/nvidia0", "dev/nvhost-gpu"))
    return Board(
        architecture=architecture,
        model=(machine.text("proc/device-tree/model") or "").strip("\0 "),
        has_gpu=has_driver or "nvidia,tegra" in compatible,
        has_atomics="atomics" in features[1].split() if features and architecture == "aarch64" else None,
    )


def run_torch_check(command: Sequence[str] = (sys.executable, "-m", "edge_student.training.torch_check")) -> TorchCheck:
    """Load torch and train one step in a process of its own."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_CHECK_S, check=False)
    except subprocess.TimeoutExpired:
        return TorchCheck(said=None, cause=f"it did not end within {_CHECK_S:g} s")
    except OSError as error:
        return TorchCheck(said=None, cause=f"it cannot be started: {error.strerror}")
    if ended.returncode < 0:
        is_illegal = -ended.returncode == signal.SIGILL
        return TorchCheck(said=None, cause=_describe_signal(-ended.returncode), is_illegal_instruction=is_illegal)
    last = ([line.strip() for line in ended.stderr.splitlines() if line.strip()] or ["it said nothing"])[-1]
    if ended.returncode > 0:
        return TorchCheck(said=None, cause=last)
    try:
        said = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return TorchCheck(said=None, cause="it ended well and printed no result")
    return TorchCheck(said=said)


def _describe_signal(number: int) -> str:
    return f"it was ended by {signal.Signals(number).name} ({signal.strsignal(number)})"


def find_torch(torch: Torch, board: Board, torch_check: TorchCheck) -> Finding:
    """Whether this torch is the right one for this board, and whether it runs."""
    check = "software.torch"
    which = f"torch {torch.version}, {'for CUDA ' + torch.cuda if torch.cuda else 'for CPUs'}"
    details = {
        "version": torch.version or None,
        "cuda": torch.cuda or None,
        "cuda_mib": torch.cuda_mib,
        "has_gpu": board.has_gpu,
        "board": board.model or None,
        "trial": None if torch_check.said is None else dict(torch_check.said),
        "cause": torch_check.cause or None,
    }
    if not torch.version:
        return problem(check, "torch is not installed", f"`{_CPU_INDEX.replace(' --force-reinstall', '')}`", **details)
    if torch_check.said is None and (
        torch_check.is_illegal_instruction or (torch.version.startswith(_NEEDS_ATOMICS) and board.has_atomics is False)
    ):
        return problem(
            check,
            f"{which}, uses instructions that this processor does not have: {torch_check.cause}",
            f"take another version, and not {_NEEDS_ATOMICS} on a Raspberry Pi 4: `{_CPU_INDEX} 'torch!={_NEEDS_ATOMICS}'`",
            **details,
        )
    if torch_check.said is None:
        return problem(
            check,
            f"{which}, cannot train one small step: {torch_check.cause}",
            "`python -m edge_student.training.torch_check` shows all of it",
            **details,
        )
    if torch.cuda and not board.has_gpu:
        text = (
            f"{which}, on a machine ({board.architecture}) without an NVIDIA GPU: it takes {torch.cuda_mib} MiB, mostly for nothing"
        )
        return warning(check, text, f"`{_CPU_INDEX}`, and then uninstall the nvidia-* packages", **details)
    if board.has_gpu and not torch.cuda:
        text = f"{which}, on a machine with an NVIDIA GPU, which it cannot use"
        return note(
            check, text, "nothing, if the student is to train on the CPU (--device cpu); else install a CUDA build", **details
        )
    return ok(check, f"{which}, trains one small step here", **details)


def find_openmp(torch_check: TorchCheck) -> Finding:
    """Whether one runtime is loaded, or several fight for the cores."""
    check = "software.openmp"
    if torch_check.said is None:
        return unknown(
            check,
            f"which OpenMP runtimes a run loads is not known: torch did not run ({torch_check.cause})",
            "mend software.torch first",
        )
    files = [(pool["kind"], pool["file"]) for pool in torch_check.said.get("openmp_files", ())]
    files += [(_kind_of(file), file) for file in torch_check.said.get("openmp", ()) if file not in {name for _, name in files}]
    kinds = sorted({kind for kind, _ in files})
    names = ", ".join(sorted(file for _, file in files))
    details = {"runtimes": sorted(file for _, file in files)}
    if not files:
        return note(
            check,
            "a run loads no OpenMP runtime: torch was built without, and may not train on more than one core",
            "take one of PyTorch's own builds",
            **details,
        )
    if len(kinds) > 1:
        return warning(
            check,
            f"a run loads OpenMP runtimes of {len(kinds)} kinds, {names}: each has threads of its own, which spin on others' cores",
            "install torch and everything else from one source: all by pip, or all by conda",
            **details,
        )
    if len(files) > 1:
        return note(
            check,
            f"a run loads {len(files)} copies of one kind of OpenMP runtime, {names}; only torch's works while a run trains",
            "nothing needs to be done, as long as your own model calls no other library with OpenMP while it trains",
            **details,
        )
    return ok(check, f"a run loads one OpenMP runtime, {names}", **details)


def _kind_of(file: str) -> str:
    return next((kind for kind in ("libiomp", "libgomp", "libomp") if file.startswith(kind)), file)


def find_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that the other commands refuse, and those that change what they measure."""
    check = "software.environment"
    forbidden = forbidden_variables(environ)
    threads = {name: environ[name] for name in _THREAD_VARIABLES if name in environ}
    others = {**spinning_variables(environ), **threads}
    details = {"forbidden": forbidden, "others": others}
    if forbidden:
        shown = ", ".join(f"{name}={value}" for name, value in forbidden.items())
        text = f"{shown}: OpenMP would pin its threads by itself, against the scheduler; the other commands refuse to start"
        yield problem(check, text, f"`unset {' '.join(forbidden)}`", **details)
    elif others:
        shown = ", ".join(f"{name}={value}" for name, value in others.items())
        text = f"{shown}: it changes how many threads OpenMP has or how they wait, in os-default, the baseline, too"
        yield note(check, text, f"`unset {' '.join(others)}`, unless you want to measure exactly that", **details)
    else:
        yield ok(check, "no variable is set that OpenMP would obey against the scheduler", **details)
