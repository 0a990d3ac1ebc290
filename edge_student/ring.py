"""The ring: shared memory through which the comm worker hands decoded logits to the compute worker.

One writer, one reader. Batch i lies in slot i % slots. That a slot is full travels as a message (messages.py). Two words in the
header go the other way: how many batches have been consumed, and whether the scheduler holds the comm worker. Whoever changes one
sends a Wake afterwards; the system calls that send and receive it are also the memory barrier between the two processes.

The memory is a memfd that is passed by descriptor: nothing to clean up after a crash, and no limit from a small /dev/shm.
"""

import mmap
import os
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.layouts import Decoded

_HEADER = struct.Struct("<8sIIII")
_MAGIC = b"EDGEKD02"
_HOLD_OFFSET = 64  # each word on a cache line of its own
_CONSUMED_OFFSET = 128
_PAGE = 4096
_TYPES: dict[int, type[np.float32] | type[np.float16]] = {4: np.float32, 2: np.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class RingShape:
    """Size of a ring: `num_slots` batches of `batch_size` rows with `num_classes` logits of 4 bytes each, or of 2: halves."""

    num_slots: int
    batch_size: int
    num_classes: int
    logit_bytes: int = 4

    def __post_init__(self) -> None:
        if min(self.num_slots, self.batch_size, self.num_classes) < 1:
            raise ValueError(f"a ring needs at least one slot, one row and one class, not {self}")
        if self.logit_bytes not in _TYPES:
            raise ValueError(f"a logit takes 4 or 2 bytes, not {self.logit_bytes}")

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: int64 sample ids, then the logits, rounded up to whole pages."""
        raw = 8 * self.batch_size + self.logit_bytes * self.batch_size * self.num_classes
        return -(-raw // _PAGE) * _PAGE

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole ring."""
        return _PAGE + self.num_slots * self.slot_bytes


class Ring:
    """A mapped ring. Make one with `create`, or map one that another process made with `attach`."""

    def __init__(self, fd: int, shape: RingShape) -> None:
        self.fd = fd
        self.shape = shape
        self._memory = mmap.mmap(fd, shape.num_bytes)
        self._held = np.frombuffer(self._memory, np.uint8, count=1, offset=_HOLD_OFFSET)
        self._consumed = np.frombuffer(self._memory, np.uint64, count=1, offset=_CONSUMED_OFFSET)
        ids_bytes = 8 * shape.batch_size
        num_logits = shape.batch_size * shape.num_classes
        self._ids: list[npt.NDArray[np.int64]] = []
        self._logits: list[Decoded] = []
        for slot in range(shape.num_slots):
            start = _PAGE + slot * shape.slot_bytes
            self._ids.append(np.frombuffer(self._memory, np.int64, count=shape.batch_size, offset=start))
            logits = np.frombuffer(self._memory, _TYPES[shape.logit_bytes], count=num_logits, offset=start + ids_bytes)
            self._logits.append(logits.reshape(shape.batch_size, shape.num_classes))  # type: ignore[arg-type]

    @classmethod
    def create(cls, shape: RingShape) -> "Ring":
        """Make a new, empty ring. Pages are taken from memory when they are first written."""
        fd = os.memfd_create("edgekd-ring", os.MFD_CLOEXEC)
        os.ftruncate(fd, shape.num_bytes)
        os.pwrite(fd, _HEADER.pack(_MAGIC, shape.num_slots, shape.batch_size, shape.num_classes, shape.logit_bytes), 0)
        return cls(fd, shape)

    @classmethod
    def attach(cls, fd: int) -> "Ring":
        """Map the ring behind a descriptor; ValueError if it is not one."""
        magic, num_slots, batch_size, num_classes, logit_bytes = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        shape = RingShape(num_slots=num_slots, batch_size=batch_size, num_classes=num_classes, logit_bytes=logit_bytes)
        if magic != _MAGIC or os.fstat(fd).st_size != shape.num_bytes:
            raise ValueError(f"descriptor {fd} is not an EdgeKD ring: magic {magic!r}, {os.fstat(fd).st_size} bytes")
        return cls(fd, shape)

    def logits(self, batch_index: int) -> Decoded:
        """The logits of a batch, [batch_size, num_classes] of float32 or float16: a view into the ring, no copy."""
        return self._logits[batch_index % self.shape.num_slots]

    def sample_ids(self, batch_index: int) -> npt.NDArray[np.int64]:
        """The sample ids of a batch, int64 [batch_size]: a view into the ring."""
        return self._ids[batch_index % self.shape.num_slots]

    @property
    def is_held(self) -> bool:
        """Whether the comm worker has to stop at its next chunk."""
        return bool(self._held[0])

    def set_held(self, held: bool) -> None:
        """Raise or lower the hold flag. Whoever lowers it also sends a Wake, because the worker sleeps on its socket."""
        self._held[0] = held

    @property
    def num_consumed(self) -> int:
        """Batches 0 .. num_consumed-1 have been consumed; their slots are free."""
        return int(self._consumed[0])

    def set_consumed(self, num_batches: int) -> None:
        """Free the slots of batches 0 .. num_batches-1. Send a Wake afterwards."""
        self._consumed[0] = num_batches

    def has_slot_for(self, batch_index: int) -> bool:
        """Whether the batch that lay in the slot of `batch_index` has been consumed."""
        return batch_index - self.num_consumed < self.shape.num_slots

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last view of it goes."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
