"""Real teachers and students as processes, by default on loopback, started and ended by a test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from warm_start import WarmProgram, is_module, run_warm, start

from edge_student.host.disturbance import DISTURBED

TINY = ["--private", "digits:private", "--private-samples", "64", "--model", "cnn:width=4", "--batch-size", "8"]
TINY += ["--public-batch", "16", "--seed", "5", "--log-level", "info"]
# Compute workers import torch, which takes most of the time of such a short run. tests/runs/test_sharded_runs.py has them.
TINY += ["--shards", "1"]


class TeacherProcess:
    """`cloud-teacher serve` with initial weights, which are as deterministic as trained ones and need no training."""

    def __init__(
        self,
        store: Path,
        *flags: str,
        dataset: str = "digits:public",
        host: str = "127.0.0.1",
        port: int = 0,
        place: Sequence[str] = (),
        log: Path | None = None,
        is_warm: bool = True,
    ) -> None:
        """`place` precedes the command, for example `ip netns exec NAME`. Output goes to `log`, if given.

        Without a `place` it is a `WarmProgram`, unless `is_warm` is false.
        """
        command = [*place, sys.executable, "-m", "cloud_teacher", "serve", "--dataset", dataset, "--model", "cnn:width=4"]
        command += ["--listen", f"{host}:{port}", "--store", str(store), "--precompute", "--log-level", "error", *flags]
        with contextlib.nullcontext(sys.stderr) if log is None else log.open("a") as errors:
            outputs = {"stdout": subprocess.PIPE, "stderr": errors}
            self.process = start(command, **outputs) if is_warm else subprocess.Popen(command, text=True, **outputs)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line
        self.address = line.split()[-1]
        self.port = int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGCONT)  # a frozen one would never hear it
            self.process.wait(20)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def teacher(store: Path, *flags: str, **where: Any) -> Iterator[TeacherProcess]:
    """Yield a serving teacher, made as `TeacherProcess` is. It ends with the block."""
    running = TeacherProcess(store, *flags, **where)
    try:
        yield running
    finally:
        running.close()


def student_command(address: str, out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "edge_student", "train", "--teacher", address, "--out", str(out), *TINY, *flags]


def train(address: str, out: Path, *flags: str) -> dict[str, Any]:
    """Run a student to its end and return its result.json."""
    finished = run(student_command(address, out, *flags))
    assert finished.returncode == 0, finished.stderr
    return json.loads((out / "result.json").read_text())


def notes_of(result: dict[str, Any]) -> list[str]:
    """Return the notes of a run without those on other programs, such as other tests."""
    return [note for note in result["notes"] if not note.startswith(DISTURBED)]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. It is a `WarmProgram` if that is possible, and if no variables are given for it."""
    if is_module(command) and not environment:
        return run_warm(command, timeout=120)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, **environment},
        timeout=120,
    )


def weights(out: Path) -> bytes:
    return (out / "student.safetensors").read_bytes()


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def read_until(process: subprocess.Popen[str] | WarmProgram, text: str) -> str:
    """Read the student's output up to the line with `text`, and return everything read."""
    assert process.stderr is not None
    output = ""
    while text not in output:
        line = process.stderr.readline()
        assert line, f"ended before it printed {text!r}: {output}"
        output += line
    return output


def read_rest(process: subprocess.Popen[str] | WarmProgram) -> str:
    """Read the student's output to its end."""
    assert process.stderr is not None
    return process.stderr.read()


def comm_worker_of(student: subprocess.Popen | WarmProgram) -> int:
    """Return the process id of the student's comm worker as soon as it exists."""
    while True:
        assert student.poll() is None, "the student ended before it had a comm worker"
        for child in psutil.Process(student.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "edge_student.receive.worker" in child.cmdline():
                    return child.pid


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.005)
