"""Ring buffer in shared memory: passes decoded logits from the comm worker to the compute worker.

The ring has one writer and one reader. Batch i lies in slot i % num_slots. A message (messages.py) reports a full slot. Two
header words go the other way: the number of consumed batches, and the hold flag of the scheduler. A process that changes one of
them sends a Wake afterwards. The system calls that send and receive the Wake are also the memory barrier between the processes.

The memory is a memfd, passed by descriptor: a crash leaves nothing to clean up, and a small /dev/shm is no limit.
"""

import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.wire.codec import Format
from edgekd.wire.inputs import Inputs
from edgekd.wire.layouts import Decoded
from edgekd.wire.limits import MAX_DIMENSIONS

_HEADER = struct.Struct("<8sIIIIIIIII")
_MAGIC = b"EDGEKD04"
_HOLD_OFFSET = 64  # each word has its own cache line
_CONSUMED_OFFSET = 128
_PAGE = 4096
_TYPES: dict[int, type[np.float32] | type[np.float16]] = {4: np.float32, 2: np.float16}
_INPUT_TYPES: dict[int, type[np.uint8] | type[np.float32]] = {1: np.uint8, 4: np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class RingShape:
    """Size of a ring: `num_slots` batches of `batch_size` rows with `num_classes` logits of 4 bytes (float32) or 2 (float16).

    `input_shape` is the shape of an input that travels with its logits, of values of 1 byte (uint8) or 4 (float32). It is empty if
    inputs do not travel.
    """

    num_slots: int
    batch_size: int
    num_classes: int
    logit_bytes: int = 4
    input_shape: tuple[int, ...] = ()
    input_bytes: int = 1

    def __post_init__(self) -> None:
        if min(self.num_slots, self.batch_size, self.num_classes) < 1:
            raise ValueError(f"ring is {self}, must have at least one slot, one row and one class")
        if self.logit_bytes not in _TYPES:
            raise ValueError(f"logit_bytes is {self.logit_bytes}, must be 4 or 2")
        if self.input_bytes not in _INPUT_TYPES or len(self.input_shape) > MAX_DIMENSIONS or 0 in self.input_shape:
            raise ValueError(
                f"inputs are {self.input_shape} of {self.input_bytes} bytes, must have at most {MAX_DIMENSIONS} dimensions"
            )

    @classmethod
    def one_slot(
        cls, form: Format, *, batch_size: int, num_classes: int, input_shape: tuple[int, ...] = (), input_dtype: str = "uint8"
    ) -> "RingShape":
        """Return the shape of a ring for one batch decoded from `form`; an empty `input_shape` means no inputs."""
        return cls(
            num_slots=1,
            batch_size=batch_size,
            num_classes=num_classes,
            logit_bytes=np.dtype(form.layout(num_classes).dtype).itemsize,
            input_shape=input_shape,
            input_bytes=np.dtype(input_dtype).itemsize,
        )

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: int64 sample ids, logits, inputs, rounded up to whole pages."""
        inputs = math.prod(self.input_shape) * self.input_bytes if self.input_shape else 0
        raw = self.batch_size * (8 + self.logit_bytes * self.num_classes + inputs)
        return -(-raw // _PAGE) * _PAGE

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole ring."""
        return _PAGE + self.num_slots * self.slot_bytes


def prefetch_limit(num_slots: int, cycles: int) -> int | None:
    """Return the number of batches a ring lets a run receive ahead; None if it has a slot for every batch of the run."""
    return num_slots if num_slots < cycles else None


class Slot(NamedTuple):
    """Arrays of one batch: sample ids int64 [batch_size]; logits float32 or float16 [batch_size, classes]; inputs uint8 or float32
    [batch_size, ...], empty if inputs do not travel. Views into a ring, or separate arrays.
    """

    sample_ids: npt.NDArray[np.int64]
    logits: Decoded
    inputs: Inputs

    def fill(self, other: "Slot") -> None:
        """Copy the arrays of another slot into this one."""
        self.sample_ids[:] = other.sample_ids
        self.logits[:] = other.logits
        self.inputs[:] = other.inputs

    @classmethod
    def empty(cls, shape: RingShape) -> "Slot":
        """Return an uninitialised slot in separate memory."""
        logits: Decoded = np.empty((shape.batch_size, shape.num_classes), _TYPES[shape.logit_bytes])
        inputs = np.empty((shape.batch_size, *(shape.input_shape or (0,))), _INPUT_TYPES[shape.input_bytes])
        return cls(np.empty(shape.batch_size, np.int64), logits, inputs)  # type: ignore[arg-type]


class Ring:
    """A mapped ring: `create` makes a new one, `attach` maps one of another process."""

    def __init__(self, fd: int, shape: RingShape) -> None:
        self.fd = fd
        self.shape = shape
        self._memory = mmap.mmap(fd, shape.num_bytes)
        self._held = np.frombuffer(self._memory, np.uint8, count=1, offset=_HOLD_OFFSET)
        self._consumed = np.frombuffer(self._memory, np.uint64, count=1, offset=_CONSUMED_OFFSET)
        ids_bytes = 8 * shape.batch_size
        num_logits = shape.batch_size * shape.num_classes
        input_shape = shape.input_shape or (0,)
        num_inputs = shape.batch_size * math.prod(input_shape)
        self._slots: list[Slot] = []
        for slot in range(shape.num_slots):
            start = _PAGE + slot * shape.slot_bytes
            ids = np.frombuffer(self._memory, np.int64, count=shape.batch_size, offset=start)
            logits = np.frombuffer(self._memory, _TYPES[shape.logit_bytes], count=num_logits, offset=start + ids_bytes)
            kind = _INPUT_TYPES[shape.input_bytes]
            inputs = np.frombuffer(self._memory, kind, count=num_inputs, offset=start + ids_bytes + logits.nbytes)
            rows = logits.reshape(shape.batch_size, shape.num_classes)
            self._slots.append(Slot(ids, rows, inputs.reshape(shape.batch_size, *input_shape)))  # type: ignore[arg-type]

    @classmethod
    def create(cls, shape: RingShape) -> "Ring":
        """Create an empty ring. The kernel allocates each page at its first write."""
        fd = os.memfd_create("edgekd-ring", os.MFD_CLOEXEC)
        os.ftruncate(fd, shape.num_bytes)
        dimensions = [*shape.input_shape, *[0] * (MAX_DIMENSIONS - len(shape.input_shape))]
        sizes = (shape.num_slots, shape.batch_size, shape.num_classes, shape.logit_bytes, shape.input_bytes, *dimensions)
        os.pwrite(fd, _HEADER.pack(_MAGIC, *sizes), 0)
        return cls(fd, shape)

    @classmethod
    def attach(cls, fd: int) -> "Ring":
        """Map the ring behind a descriptor. Raises ValueError if it is not a ring."""
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            raise ValueError(f"descriptor {fd} is not an EdgeKD ring: it has {len(header)} bytes")
        magic, num_slots, batch_size, num_classes, logit_bytes, input_bytes, *dimensions = _HEADER.unpack(header)
        shape = RingShape(
            num_slots=num_slots,
            batch_size=batch_size,
            num_classes=num_classes,
            logit_bytes=logit_bytes,
            input_shape=tuple(filter(None, dimensions)),
            input_bytes=input_bytes,
        )
        if magic != _MAGIC or os.fstat(fd).st_size != shape.num_bytes:
            raise ValueError(f"descriptor {fd} is not an EdgeKD ring: magic {magic!r}, {os.fstat(fd).st_size} bytes")
        return cls(fd, shape)

    def __reduce__(self) -> "tuple[Callable[[Any], Ring], tuple[Any]]":
        """Map the same memory in a child process that the ring is passed to."""
        return _attach, (reduction.DupFd(self.fd),)

    def slot(self, batch_index: int) -> Slot:
        """Return the slot of a batch: views into the ring, not copies."""
        return self._slots[batch_index % self.shape.num_slots]

    def logits(self, batch_index: int) -> Decoded:
        """Return the logits of a batch, float32 or float16 [batch_size, num_classes]."""
        return self.slot(batch_index).logits

    def inputs(self, batch_index: int) -> Inputs:
        """Return the public inputs of a batch, uint8 or float32 [batch_size, ...]; empty if inputs do not travel."""
        return self.slot(batch_index).inputs

    @property
    def is_held(self) -> bool:
        """Whether the comm worker must pause before its next chunk."""
        return bool(self._held[0])

    def set_held(self, held: bool) -> None:
        """Set or clear the hold flag. After clearing it, send a Wake: the worker sleeps on its socket."""
        self._held[0] = held

    @property
    def num_consumed(self) -> int:
        """Number of consumed batches: the slots of batches 0 .. num_consumed-1 are free."""
        return int(self._consumed[0])

    def set_consumed(self, num_batches: int) -> None:
        """Free the slots of batches 0 .. num_batches-1. Send a Wake afterwards."""
        self._consumed[0] = num_batches

    def has_slot_for(self, batch_index: int) -> bool:
        """Return whether the previous batch in the slot of `batch_index` has been consumed."""
        return batch_index - self.num_consumed < self.shape.num_slots

    def close(self) -> None:
        """Close the descriptor. The memory is freed with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _attach(descriptor: Any) -> Ring:
    return Ring.attach(descriptor.detach())
