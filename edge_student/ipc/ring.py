"""The ring: shared memory through which the comm worker hands decoded logits to the compute worker.

One writer, one reader. Batch i lies in slot i % slots. That a slot is full travels as a message (messages.py). Two words in the
header go the other way: how many batches have been consumed, and whether the scheduler holds the comm worker. Whoever changes one
sends a Wake afterwards; the system calls that send and receive it are also the memory barrier between the two processes.

The memory is a memfd that is passed by descriptor: nothing to clean up after a crash, and no limit from a small /dev/shm.
"""

import math
import mmap
import os
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.wire.codec import Format
from edgekd.wire.layouts import Decoded

_HEADER = struct.Struct("<8sIIIIIII")
_MAGIC = b"EDGEKD03"
_HOLD_OFFSET = 64  # each word on a cache line of its own
_CONSUMED_OFFSET = 128
_PAGE = 4096
_TYPES: dict[int, type[np.float32] | type[np.float16]] = {4: np.float32, 2: np.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class RingShape:
    """Size of a ring: `num_slots` batches of `batch_size` rows with `num_classes` logits of 4 bytes each, or of 2: halves.

    `input_shape` is the channels, height and width of an input, where inputs travel with their logits.
    """

    num_slots: int
    batch_size: int
    num_classes: int
    logit_bytes: int = 4
    input_shape: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if min(self.num_slots, self.batch_size, self.num_classes) < 1:
            raise ValueError(f"a ring needs at least one slot, one row and one class, not {self}")
        if self.logit_bytes not in _TYPES:
            raise ValueError(f"a logit takes 4 or 2 bytes, not {self.logit_bytes}")

    @classmethod
    def one_slot(cls, form: Format, *, batch_size: int, num_classes: int, input_shape: tuple[int, ...] = ()) -> "RingShape":
        """Of one batch as it is decoded from `form`; without an input shape inputs do not travel."""
        channels, height, width = input_shape or (0, 0, 0)
        return cls(
            num_slots=1,
            batch_size=batch_size,
            num_classes=num_classes,
            logit_bytes=np.dtype(form.layout(num_classes).dtype).itemsize,
            input_shape=(channels, height, width),
        )

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: int64 sample ids, then the logits, then the inputs, rounded up to whole pages."""
        raw = self.batch_size * (8 + self.logit_bytes * self.num_classes + math.prod(self.input_shape))
        return -(-raw // _PAGE) * _PAGE

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole ring."""
        return _PAGE + self.num_slots * self.slot_bytes


def prefetch_limit(num_slots: int, cycles: int) -> int | None:
    """Return the number of batches a ring lets a run receive ahead; None if it has a slot for every batch of the run."""
    return num_slots if num_slots < cycles else None


class Slot(NamedTuple):
    """A place for one batch: int64 [batch_size], float32 or float16 [batch_size, classes], and uint8 [batch_size, channels, height,
    width], which has no elements where inputs do not travel. Views into a ring, or arrays of the same shapes.
    """

    sample_ids: npt.NDArray[np.int64]
    logits: Decoded
    inputs: npt.NDArray[np.uint8]

    def copy(self) -> "Slot":
        """The same in memory of its own."""
        return Slot(self.sample_ids.copy(), self.logits.copy(), self.inputs.copy())

    @classmethod
    def empty(cls, shape: RingShape) -> "Slot":
        """In memory of its own."""
        logits: Decoded = np.empty((shape.batch_size, shape.num_classes), _TYPES[shape.logit_bytes])
        return cls(np.empty(shape.batch_size, np.int64), logits, np.empty((shape.batch_size, *shape.input_shape), np.uint8))


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
        inputs_bytes = shape.batch_size * math.prod(shape.input_shape)
        self._slots: list[Slot] = []
        for slot in range(shape.num_slots):
            start = _PAGE + slot * shape.slot_bytes
            ids = np.frombuffer(self._memory, np.int64, count=shape.batch_size, offset=start)
            logits = np.frombuffer(self._memory, _TYPES[shape.logit_bytes], count=num_logits, offset=start + ids_bytes)
            inputs = np.frombuffer(self._memory, np.uint8, count=inputs_bytes, offset=start + ids_bytes + logits.nbytes)
            logits = logits.reshape(shape.batch_size, shape.num_classes)
            self._slots.append(Slot(ids, logits, inputs.reshape(shape.batch_size, *shape.input_shape)))  # type: ignore[arg-type]

    @classmethod
    def create(cls, shape: RingShape) -> "Ring":
        """Make a new, empty ring. Pages are taken from memory when they are first written."""
        fd = os.memfd_create("edgekd-ring", os.MFD_CLOEXEC)
        os.ftruncate(fd, shape.num_bytes)
        sizes = (shape.num_slots, shape.batch_size, shape.num_classes, shape.logit_bytes, *shape.input_shape)
        os.pwrite(fd, _HEADER.pack(_MAGIC, *sizes), 0)
        return cls(fd, shape)

    @classmethod
    def attach(cls, fd: int) -> "Ring":
        """Map the ring behind a descriptor; ValueError if it is not one."""
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            raise ValueError(f"descriptor {fd} is not an EdgeKD ring: it has {len(header)} bytes")
        magic, num_slots, batch_size, num_classes, logit_bytes, *inputs = _HEADER.unpack(header)
        shape = RingShape(
            num_slots=num_slots,
            batch_size=batch_size,
            num_classes=num_classes,
            logit_bytes=logit_bytes,
            input_shape=(inputs[0], inputs[1], inputs[2]),
        )
        if magic != _MAGIC or os.fstat(fd).st_size != shape.num_bytes:
            raise ValueError(f"descriptor {fd} is not an EdgeKD ring: magic {magic!r}, {os.fstat(fd).st_size} bytes")
        return cls(fd, shape)

    def slot(self, batch_index: int) -> Slot:
        """The slot of a batch: views into the ring, no copies."""
        return self._slots[batch_index % self.shape.num_slots]

    def logits(self, batch_index: int) -> Decoded:
        """The logits of a batch, [batch_size, num_classes] of float32 or float16."""
        return self.slot(batch_index).logits

    def inputs(self, batch_index: int) -> npt.NDArray[np.uint8]:
        """The public inputs of a batch, uint8 [batch_size, channels, height, width], where they travel."""
        return self.slot(batch_index).inputs

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
