"""The process from which compute workers are forked. Importing this module does not import torch."""

import multiprocessing
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the process in the background, so that it imports torch while the caller goes on.

    A forked worker shares the memory of that import, which a new program would need for itself.
    """
    CONTEXT.set_forkserver_preload(["edge_student.workers.worker"])
    forkserver.ensure_running()
