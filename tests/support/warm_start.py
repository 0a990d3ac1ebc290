"""Programs that start in a process with torch already imported. That import is two thirds of the start of a program."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch"])


class WarmProgram:
    """A running `python -m MODULE FLAGS` with the part of `subprocess.Popen` that tests use. Its input is empty.

    OpenMP reads its variables and the core mask when torch is imported, and memory that the two processes share is counted in
    another way. So a test of cores, of OpenMP or of memory starts its program with `subprocess`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: IO[Any] | int = subprocess.DEVNULL,
        stderr: IO[Any] | int = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """`command` is [sys.executable, "-m", MODULE, *FLAGS]; stdout and stderr are a file, DEVNULL or PIPE."""
        assert is_module(command), command
        self.args = list(command)
        self.stdout, out = _target(stdout)
        self.stderr, err = _target(stderr)
        environ = dict(os.environ if env is None else env)
        folder = str(Path.cwd() if cwd is None else cwd)
        with out, err:
            self._process = _SERVER.Process(target=_execute, args=(command[2], command[3:], environ, folder, out, err))
            self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the end of the program, and close its pipes."""
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        self.wait()

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def communicate(self, timeout: float) -> tuple[None, str]:
        """Return the rest of stderr, which must be a pipe. A program that has not ended after `timeout` seconds is killed."""
        assert self.stdout is None
        assert self.stderr is not None
        limit = threading.Timer(timeout, self.kill)
        limit.start()
        with self.stderr:
            output = self.stderr.read()
        self.wait()
        limit.cancel()
        return None, output


def is_module(command: Sequence[str]) -> bool:
    """Return whether this is a command of a `WarmProgram`: this Python, and a module that it runs."""
    return list(command[:2]) == [sys.executable, "-m"]


def start(command: Sequence[str], **outputs: Any) -> WarmProgram | subprocess.Popen[str]:
    """Start a `WarmProgram` if that is possible, otherwise a program by `subprocess`."""
    if is_module(command):
        return WarmProgram(command, **outputs)
    return subprocess.Popen(command, text=True, **outputs)


def run_warm(command: Sequence[str], timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a `WarmProgram` to its end and return its output, as `subprocess.run` does."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        program = WarmProgram(command, stdout=out, stderr=err, **options)
        try:
            status = program.wait(timeout)
        finally:
            program.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(program.args, status, out.read(), err.read())


def _target(output: IO[Any] | int) -> tuple[IO[str] | None, Connection]:
    """Return the reading end of a pipe, if one was asked for, and what the program writes to, in a form that can be sent to it."""
    if output == subprocess.PIPE:
        reading, writing = os.pipe()
        return os.fdopen(reading, encoding="utf-8"), Connection(writing)
    if output == subprocess.DEVNULL:
        return None, Connection(os.open(os.devnull, os.O_RDWR))
    assert not isinstance(output, int)
    return None, Connection(os.dup(output.fileno()))


def _execute(module: str, flags: Sequence[str], environ: Mapping[str, str], folder: str, out: Connection, err: Connection) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
