"""The processes of the compute workers: started from a process that has imported torch, watched, and replaced if one is killed."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import NamedTuple

from edge_student.training.own_code import OwnCodeError
from edge_student.workers.board import Board
from edge_student.workers.server import CONTEXT, WorkerProcess, start_server
from edge_student.workers.worker import Assignment, work
from edgekd.errors import WorldError

logger = logging.getLogger(__name__)

_UNKNOWN_STATUS = 255
"""Exit status that multiprocessing reports if the fork server was killed, and the workers with it. A new server then starts."""
MAX_REPLACED = 3
"""Number of workers of a run that are replaced. More replacements have a lasting cause, such as too little memory."""


class WorkerFailed(Exception):
    """A compute worker raised an exception. The message has its traceback."""


class _Running(NamedTuple):
    process: ForkServerProcess
    errors: Connection


class WorkerPool:
    """One process for each shard, from `start` to `close`."""

    def __init__(self, board: Board, assign: Callable[[int], Assignment]) -> None:
        self._board = board
        self._assign = assign
        self._workers: list[_Running] = []
        self.pids: tuple[int, ...] = ()
        """The process ids of the workers, in the order of shards. The same object while no worker is replaced."""
        self.replaced: list[str] = []
        """A text for every worker that was replaced."""

    def start(self) -> None:
        """Start the processes."""
        start_server()
        for number in range(self._board.num_shards):
            self._workers.append(self._start(number))
        self._list_pids()

    def await_phases(self, num_phases: int) -> None:
        """Wait until all workers have completed the phases below `num_phases`. A worker that was killed is replaced.

        Raises WorkerFailed for an exception in a worker, OwnCodeError for one of the user's code, and WorldError if workers are
        killed again and again.
        """
        self._await(lambda: self._board.num_done >= num_phases)

    def await_ready(self) -> None:
        """Wait until all workers have warmed up. Raises as `await_phases`."""
        self._await(lambda: self._board.are_all_ready)

    def _await(self, is_reached: Callable[[], bool]) -> None:
        while not is_reached():
            ended = self._board.trainer_bell.wait([worker.process.sentinel for worker in self._workers])
            if ended:
                self._replace(ended)

    def close(self) -> None:
        """End the processes by SIGKILL and reap them."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.errors.close()
        self._workers.clear()
        self._list_pids()

    def _start(self, number: int) -> _Running:
        errors, sending = CONTEXT.Pipe(duplex=False)
        process = WorkerProcess(target=work, args=(self._assign(number), sending), name=f"edgekd-shard-{number}")
        process.start()
        sending.close()
        return _Running(process, errors)

    def _replace(self, ended: Sequence[int]) -> None:
        for number, worker in enumerate(self._workers):
            if worker.process.sentinel not in ended:
                continue
            worker.process.join()
            with contextlib.suppress(EOFError, OSError):  # it sent nothing, or was killed while it sent
                failure = worker.errors.recv()
                raise failure if isinstance(failure, OwnCodeError) else WorkerFailed(failure)
            status = worker.process.exitcode
            cause = f"the worker of shard {number} (process {worker.process.pid}) ended with status {status}"
            if status is None or (status >= 0 and status != _UNKNOWN_STATUS):
                raise WorkerFailed(f"{cause}; see its message above, if it printed one")
            if len(self.replaced) >= MAX_REPLACED:
                raise WorldError(f"{cause}, after {MAX_REPLACED} others were replaced: is there too little memory?")
            self.replaced.append(f"{cause} and was replaced")
            logger.warning("%s; another one takes its place", cause)
            worker.errors.close()
            self._workers[number] = self._start(number)
        self._list_pids()

    def _list_pids(self) -> None:
        self.pids = tuple(worker.process.pid or 0 for worker in self._workers)
