"""The process from which compute workers are forked. Importing this module does not import torch."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, popen_forkserver, spawn
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
_LIBRARIES = ("torchvision", "timm")


_PREPARING = threading.Lock()


class _Popen(popen_forkserver.Popen):
    """Starts a process that does not run the caller's script again.

    multiprocessing would import `__main__` in the process, which fails in a notebook and repeats a script without a main guard.
    Code of `__main__` reaches the workers by value.
    """

    def _launch(self, process_obj: Any) -> None:
        with _PREPARING:
            original: Any = spawn.get_preparation_data

            def without_main(name: str) -> dict[str, Any]:
                return {key: value for key, value in original(name).items() if not key.startswith("init_main_")}

            spawn.get_preparation_data = without_main
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                spawn.get_preparation_data = original


class WorkerProcess(ForkServerProcess):
    """A process of the fork server."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _Popen(process_obj)


def start_server(model: str = "") -> None:
    """Start the process in the background, so that it imports torch, and the library of `model`, while the caller goes on.

    A forked worker shares the memory of these imports, which a new program would need for itself. Without effect if it runs.
    """
    library = model.partition(":")[0]
    CONTEXT.set_forkserver_preload(["edge_student.workers.worker", *([library] if library in _LIBRARIES else [])])
    forkserver.ensure_running()


def stop_server() -> None:
    """End the process, if it runs and no worker needs it: it holds the memory of torch's import."""
    server: Any = forkserver._forkserver  # there is no public name
    if server._forkserver_pid is not None:
        os.kill(server._forkserver_pid, signal.SIGKILL)  # it would end by itself only after the import
        server._stop()


def leave_server_to_trainer() -> None:
    """Let the fork server end with the trainer, and this worker, which it has forked, with the server.

    By default the server lives as long as one process that it has forked, for the sake of processes that those may start. After a
    SIGKILL of the trainer, server and workers would then keep each other alive. To be called in the worker.
    """
    server: Any = forkserver._forkserver  # there is no public name
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
