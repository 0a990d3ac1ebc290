"""The process from which compute workers are forked. Importing this module does not import torch."""

import multiprocessing
from multiprocessing import forkserver

CONTEXT = multiprocessing.get_context("forkserver")


_LIBRARIES = ("torchvision", "timm")


def start_server(model: str = "") -> None:
    """Start the process in the background, so that it imports torch, and the library of `model`, while the caller goes on.

    A forked worker shares the memory of these imports, which a new program would need for itself. Without effect if it runs.
    """
    library = model.partition(":")[0]
    CONTEXT.set_forkserver_preload(["edge_student.workers.worker", *([library] if library in _LIBRARIES else [])])
    forkserver.ensure_running()
