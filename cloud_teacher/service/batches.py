"""Builds the messages of a window from the rows of the store.

Reads the store and never computes rows. It builds several chunks in one call, because a switch to another thread and back costs as
much as building a small chunk.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloud_teacher.logits.public_inputs import EncodedInputs, PublicInputs
from cloud_teacher.logits.store import ROWS_PER_FORWARD, LogitStore
from cloud_teacher.service.admission import Window
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import checksum, chunk_rows, encode, to_wire
from edgekd.wire.inputs import input_to_wire
from edgekd.wire.limits import MAX_INPUTS_BYTES
from edgekd.wire.order import batch_ids

# Large enough to outweigh a thread switch, and small enough to stay in the CPU cache until they are sent.
_GROUP_BYTES = 256 << 10
_GROUP_CHUNKS = 64

_PAYLOAD_TAG = bytes([teacher_pb2.LogitsChunk.PAYLOAD_FIELD_NUMBER << 3 | 2])
_INPUTS_TAG = bytes([teacher_pb2.LogitsChunk.INPUTS_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """A serialized LogitsChunk, its number of rows, and the bytes of payload and inputs, which the rate limit counts."""

    data: bytes
    rows: int
    payload_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The next messages to send. If there are none, `missing` has the ids of the rows to compute first."""

    messages: list[Message]
    missing: npt.NDArray[np.int64]


class WindowReader:
    """Reads a window from its first to its last chunk. Used by one thread at a time."""

    def __init__(
        self, window: Window, store: LogitStore, inputs: PublicInputs | None = None, *, most_bytes: int = MAX_INPUTS_BYTES
    ) -> None:
        """Start at the beginning of `window`. A window with inputs needs `inputs`.

        `most_bytes` bounds the payload of a chunk, and separately its inputs. The protocol's own limits apply too, and a chunk has
        at least one row.
        """
        assert window.inputs is None or inputs is not None
        self._window = window
        self._store = store
        self._inputs = inputs
        self._most_input_bytes = min(most_bytes, MAX_INPUTS_BYTES)
        row_bytes = window.form.layout(store.key.num_classes).row_bytes
        self._chunk_rows = max(1, min(chunk_rows(store.key.num_classes, window.form), most_bytes // row_bytes))
        self._batch = window.start
        self._stop = window.start + window.count * window.stride
        self._row = 0
        self._ids = np.empty(0, np.int64)

    @property
    def is_done(self) -> bool:
        """Whether the whole window has been read."""
        return self._batch == self._stop

    def read(self) -> Group:
        """Build the next chunks, up to the first with a missing row. If that is the first of all, return missing ids instead."""
        messages: list[Message] = []
        num_bytes = 0
        while not self.is_done and num_bytes < _GROUP_BYTES and len(messages) < _GROUP_CHUNKS:
            if self._row == 0:
                window = self._window
                self._ids = batch_ids(window.seed, self._store.key.num_samples, window.batch_size, self._batch)
            ids = self._ids[self._row : self._row + self._chunk_rows]
            if self._inputs is not None and self._window.inputs is not None:
                ids = ids[: self._inputs.num_fitting(ids, self._window.inputs, self._most_input_bytes)]
            if len(self._store.missing(ids)):
                return Group(messages=messages, missing=self._ids[:0] if messages else self._missing_ahead(len(ids)))
            message = self._message(ids)
            messages.append(message)
            num_bytes += message.payload_bytes
            self._row += len(ids)
            if self._row == self._window.batch_size:
                self._batch, self._row = self._batch + self._window.stride, 0
        return Group(messages=messages, missing=self._ids[:0])

    def _missing_ahead(self, num_rows: int) -> npt.NDArray[np.int64]:
        """Return the missing ids of the next `num_rows` rows, and more of the window until one forward of the teacher is full."""
        missing = self._store.missing(self._ids[self._row : self._row + max(num_rows, ROWS_PER_FORWARD)])
        window, later = self._window, self._batch + self._window.stride
        while len(missing) < ROWS_PER_FORWARD and later < self._stop:
            ids = batch_ids(window.seed, self._store.key.num_samples, window.batch_size, later)
            more = np.setdiff1d(self._store.missing(ids), missing)
            missing = np.concatenate([missing, more[: ROWS_PER_FORWARD - len(missing)]])
            later += window.stride
        return missing

    def _message(self, ids: npt.NDArray[np.int64]) -> Message:
        payload = encode(self._store.read(ids), self._window.form)
        inputs = EncodedInputs(data=b"", lengths=[], pixels_crc32=0)
        if self._inputs is not None and self._window.inputs is not None:
            inputs = self._inputs.encode(ids, self._window.inputs)
        header = teacher_pb2.LogitsChunk(
            batch_index=self._batch,
            row_start=self._row,
            num_rows=len(ids),
            num_classes=self._store.key.num_classes,
            encoding=to_wire(self._window.form.encoding),
            top_k=self._window.form.top_k,
            sample_ids=ids.tolist(),
            crc32=checksum(payload),
            input_encoding=input_to_wire(self._window.inputs),
            input_lengths=inputs.lengths,
            pixels_crc32=inputs.pixels_crc32,
        )
        # A protobuf message may have its fields in any order, so payload and inputs are appended as bytes. Setting them in the
        # object would copy them twice more.
        parts = [header.SerializeToString(), _PAYLOAD_TAG, _varint(len(payload)), payload]
        if inputs.data:
            parts += [_INPUTS_TAG, _varint(len(inputs.data)), inputs.data]
        return Message(data=b"".join(parts), rows=len(ids), payload_bytes=len(payload) + len(inputs.data))


def _varint(number: int) -> bytes:
    """Encode a length as a protobuf varint: 7 bits per byte, lowest first, with the top bit set on all but the last byte."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
