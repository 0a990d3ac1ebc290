"""Named arrays in one piece of shared memory, for the trainer and its compute workers.

The memory is a memfd: nothing is left after a crash, and a small /dev/shm is no limit.
"""

import math
import mmap
import os
from collections.abc import Callable, Mapping
from multiprocessing import reduction
from typing import Any

import numpy as np
import numpy.typing as npt

_ALIGNMENT = 4096
"""Bytes. Each array starts on a page of its own, so that two processes never write to the same cache line by accident."""

Specs = Mapping[str, tuple[str, tuple[int, ...]]]
"""Data type and shape of each array, by name."""


class SharedArrays:
    """The arrays of `specs`, zero at first. A child process that the object is passed to maps the same memory."""

    def __init__(self, specs: Specs, fd: int | None = None) -> None:
        """Create the memory, or map the memory behind `fd`, which this object then owns."""
        self._specs = dict(specs)
        sizes = {name: math.prod(shape) * np.dtype(kind).itemsize for name, (kind, shape) in self._specs.items()}
        num_bytes = sum(-(-size // _ALIGNMENT) for size in sizes.values()) * _ALIGNMENT
        self.fd = os.memfd_create("edgekd-workers", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, max(num_bytes, _ALIGNMENT))
        memory = mmap.mmap(self.fd, max(num_bytes, _ALIGNMENT))
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        offset = 0
        for name, (kind, shape) in self._specs.items():
            flat = np.frombuffer(memory, kind, count=math.prod(shape), offset=offset)
            self._arrays[name] = flat.reshape(shape)
            offset += -(-sizes[name] // _ALIGNMENT) * _ALIGNMENT

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return the array with this name: a view of the shared memory."""
        return self._arrays[name]

    def __reduce__(self) -> tuple[Callable[..., "SharedArrays"], tuple[Any, ...]]:
        return _attach, (self._specs, reduction.DupFd(self.fd))

    def close(self) -> None:
        """Close the descriptor. The memory is freed with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _attach(specs: Specs, descriptor: Any) -> SharedArrays:
    return SharedArrays(specs, descriptor.detach())
