"""The edge's end of the wire: asks for windows of batches, verifies every chunk, and resumes by index when the link fails.

It knows gRPC and the schema. It does not know what the logits are for, nor who else runs on this machine. gRPC never retries a
stream after its first message, so the retrying is ours: a lost stream is asked for again from the first batch that is incomplete.
"""

import contextlib
from collections.abc import Callable
from typing import NoReturn, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import Slot
from edge_student.receive.connection import ChunkStream, Connection
from edge_student.receive.description import NotLetInError, RequestRefusedError, check_description
from edge_student.receive.retry import LinkLostError, RetryPolicy
from edge_student.receive.watchdog import Watchdog
from edgekd.v1 import teacher_pb2
from edgekd.wire.chunks import Chunk, parse_chunk
from edgekd.wire.codec import ChunkError, Encoding, Format, decode_into, from_wire, to_wire
from edgekd.wire.inputs import InputEncoding, Pixels, decode_inputs_into, input_to_wire
from edgekd.wire.limits import MAX_STRIDE
from edgekd.wire.order import batch_ids

T = TypeVar("T")

_MAX_REFUSED_IN_A_ROW = 5
_MAX_DUPLICATES = 4096  # of one batch: as many as a whole batch that came in chunks of one row


class BadTeacherError(RuntimeError):
    """The teacher keeps sending chunks that break the protocol."""


class Receiver:
    """Receives batch after batch, from one teacher at a time.

    `on_trouble(cause, attempt)` hears of every failed attempt before the next one. Not thread-safe.
    """

    def __init__(self, config: Configure, on_trouble: Callable[[str, int], None], *, turn: int = 0) -> None:
        """`turn`: which of several teachers is asked first."""
        self._config = config
        self._connection = Connection(config, turn)
        self._watchdog = Watchdog(config.max_silence_s)
        self._patience = RetryPolicy(config.max_wait_s, self._before_next_attempt)
        self._form = Format(Encoding(config.encoding), config.top_k)
        self._inputs = InputEncoding(config.inputs) if config.inputs else None
        self._on_trouble = on_trouble
        self._stride = 1
        self._most_streams = 1
        self._stream: ChunkStream | None = None
        self._described: Described | None = None
        self._refused_in_a_row = 0
        self._furthest_row = 0
        self.on_rows: Callable[[npt.NDArray[np.int64], memoryview, Pixels], None] = lambda sample_ids, payload, inputs: None
        """Hears of every chunk that was accepted: its sample ids, int64 [rows], their rows as they were encoded, their inputs."""
        self.num_reconnects = 0
        self.num_refused_chunks = 0
        self.num_duplicate_chunks = 0

    def describe(self) -> Described:
        """Ask the teacher who it is, waiting for it to appear for up to `max_wait_s`.

        Raises LinkLostError when the time is up, RequestRefusedError if the two ends cannot understand each other.
        """
        answer = self._patience.insist(lambda: self._or_another(self._describe_once))
        self._window = min(self._config.window, answer.max_window)
        self._most_streams = min(max(1, answer.max_stride), answer.max_streams or MAX_STRIDE)
        self._described = Described(
            teacher_digest=answer.teacher_digest,
            dataset_digest=answer.dataset_digest,
            dataset_name=answer.dataset_name,
            num_samples=answer.num_samples,
            num_classes=answer.num_classes,
            input_shape=tuple(answer.input_shape),
        )
        self.num_reconnects = 0  # waiting for a teacher to appear is none
        self._connection.reconsider()  # whoever does not let us in today may do so when it is needed
        return self._described

    def divide(self, num_streams: int) -> list["Receiver"]:
        """So many receivers, this one first, or as many as the teacher can serve. Of m the n-th is for batches n, n + m, n + 2m ...

        Each has a connection of its own. After `describe`, and before anything is received.
        """
        num_streams = min(num_streams, self._most_streams)
        receivers = [self, *(Receiver(self._config, self._on_trouble, turn=turn) for turn in range(1, num_streams))]
        for receiver in receivers:
            receiver._stride, receiver._described, receiver._window = num_streams, self._described, self._window
        return receivers

    @property
    def stride(self) -> int:
        """How many receivers divide the batches."""
        return self._stride

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        """Fill `slot` with batch `index`. Returns the bytes of payload and inputs that crossed the wire.

        Batches must be asked for in order; `stop` bounds how far the teacher may run ahead. `between_chunks` may block.
        Raises LinkLostError after `max_wait_s` without success, RequestRefusedError and BadTeacherError at once.
        """
        assert self._described is not None, "describe() comes first"
        slot.sample_ids[:] = batch_ids(self._config.seed, self._described.num_samples, self._config.batch_size, index)
        self._refused_in_a_row = self._furthest_row = 0
        return self._patience.insist(lambda: self._or_another(lambda: self._receive_once(index, stop, slot, between_chunks)))

    def release(self) -> None:
        """End the stream, so that the teacher can serve another. The next `receive` asks for a new one."""
        if self._stream is not None:
            self.close()  # to cancel the stream alone would leave it to nobody: see there

    def close(self) -> None:
        """Drop the connection. The next call makes a new one."""
        stream, self._stream = self._stream, None
        self._watchdog.close()
        self._connection.close()
        # Nobody but this thread reads what happens to its stream. Unless its end is read, gRPC keeps the connection, and the
        # teacher keeps the stream. `cancel` would hide the end from us; of a closed channel it is there.
        with contextlib.suppress(grpc.RpcError):
            for _ in stream or ():
                pass

    def _describe_once(self) -> teacher_pb2.DescribeResponse:
        try:
            answer = teacher_pb2.DescribeResponse.FromString(self._connection.describe())
        except grpc.RpcError as error:
            raise self._translate(error) from None
        except DecodeError:
            where = self._connection.address
            raise BadTeacherError(f"teacher {where}: its answer to Describe is no DescribeResponse") from None
        check_description(answer, self._config, self._connection.address)
        return answer

    def _receive_once(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        row = num_bytes = num_duplicates = 0
        while row < len(slot.logits):
            between_chunks()
            chunk = self._parse_or_refuse(self._next_message(index, stop), index)
            if (chunk.header.batch_index, chunk.header.row_start) < (index, row):
                self.num_duplicate_chunks += 1
                num_duplicates += 1
                if num_duplicates > _MAX_DUPLICATES:
                    self._refuse(index, ChunkError(f"more than {_MAX_DUPLICATES} chunks came of rows that had come before"))
                continue
            try:
                row += self._accept(chunk, index, row, slot)
            except ChunkError as error:
                self._refuse(index, error)
            if row > self._furthest_row:  # else it is only as far as it was before it failed
                self._furthest_row = row
                self._patience.note_success()
            num_bytes += len(chunk.payload) + len(chunk.inputs)
        return num_bytes

    def _next_message(self, index: int, stop: int) -> bytes:
        try:
            message = self._await_message(index, stop)
            if message is None:  # the window is used up
                self._stream = None
                message = self._await_message(index, stop)
        except grpc.RpcError as error:
            raise self._translate(error) from None
        if message is None:
            raise LinkLostError(f"the teacher ended its stream before batch {index} was complete")
        return message

    def _await_message(self, index: int, stop: int) -> bytes | None:
        if self._stream is None:
            self._stream = self._open_window(index, stop)
        self._watchdog.begin(self._stream)
        try:
            return next(self._stream, None)
        finally:
            self._watchdog.end()

    def _open_window(self, index: int, stop: int) -> ChunkStream:
        assert self._described is not None
        request = teacher_pb2.StreamLogitsRequest(
            start=index,
            count=min(self._window, -(-(stop - index) // self._stride)),
            batch_size=self._config.batch_size,
            seed=self._config.seed,
            teacher_digest=self._described.teacher_digest,
            dataset_digest=self._described.dataset_digest,
            encoding=to_wire(self._form.encoding),
            top_k=self._form.top_k,
            stride=self._stride if self._stride > 1 else 0,
            input_encoding=input_to_wire(self._inputs),
        )
        return self._connection.stream(request)

    def _parse_or_refuse(self, message: bytes, index: int) -> Chunk:
        try:
            return parse_chunk(message)
        except DecodeError:
            self._refuse(index, ChunkError(f"a message of {len(message)} bytes is no LogitsChunk"))

    def _accept(self, chunk: Chunk, index: int, row: int, slot: Slot) -> int:
        """Verify one chunk and decode it to its rows; return how many. ChunkError says what is wrong with it."""
        header, logits = chunk.header, slot.logits
        if (header.batch_index, header.row_start) != (index, row):
            raise ChunkError(f"row {header.row_start} of batch {header.batch_index} came, row {row} of {index} was due")
        end = row + header.num_rows
        if not row < end <= len(logits):
            raise ChunkError(f"{header.num_rows} rows from row {row} were sent of a batch of {len(logits)}")
        if header.num_classes != logits.shape[1]:
            raise ChunkError(f"{header.num_classes} classes were sent, the teacher described {logits.shape[1]}")
        if (from_wire_or_refuse(header.encoding), header.top_k) != (self._form.encoding, self._form.top_k):
            raise ChunkError(f"encoding number {header.encoding} with top_k {header.top_k} was sent, {self._form} was asked for")
        if header.sample_ids != slot.sample_ids[row:end].tolist():
            raise ChunkError("the sample ids are not those of this batch: teacher and edge disagree on the order")
        if header.input_encoding != input_to_wire(self._inputs) or (self._inputs is None and len(chunk.inputs)):
            wanted = self._inputs or "no inputs"
            raise ChunkError(f"{len(chunk.inputs)} bytes of inputs as number {header.input_encoding} came, {wanted} were asked for")
        inputs = slot.inputs[row:end]
        if self._inputs is not None:
            decode_inputs_into(
                chunk.inputs,
                encoding=self._inputs,
                lengths=list(header.input_lengths),
                crc32=header.pixels_crc32,
                out=inputs,
            )
        decode_into(
            chunk.payload,
            form=self._form,
            rows=header.num_rows,
            num_classes=header.num_classes,
            crc32=header.crc32,
            out=logits[row:end],
        )
        self.on_rows(slot.sample_ids[row:end], chunk.payload, inputs)
        return header.num_rows

    def _refuse(self, index: int, error: ChunkError) -> NoReturn:
        self.num_refused_chunks += 1
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= _MAX_REFUSED_IN_A_ROW:
            raise BadTeacherError(
                f"batch {index} was refused {self._refused_in_a_row} times, the last time because: {error}"
            ) from error
        raise LinkLostError(f"batch {index}: chunk refused: {error}") from error

    def _translate(self, error: grpc.RpcError) -> Exception:
        if error.code() is grpc.StatusCode.CANCELLED and self._watchdog.has_bitten:
            where, limit_s = self._connection.address, self._watchdog.limit_s
            return LinkLostError(f"teacher {where}: it answers, and has sent nothing for {limit_s:g} s")
        has_worked = self._described is not None
        return self._connection.translate(error, look_closer=not has_worked or self._patience.has_failed, has_worked=has_worked)

    def _or_another(self, action: Callable[[], T]) -> T:
        """Do it; where this teacher will never do its part, but others are left, that is only a lost link."""
        try:
            return action()
        except (RequestRefusedError, BadTeacherError) as error:
            if not self._connection.rule_out(for_good=not isinstance(error, NotLetInError)):
                raise
            self._refused_in_a_row = 0  # of the next one
            raise LinkLostError(f"{error}; this teacher is asked no more") from error

    def _before_next_attempt(self, cause: str, attempt: int) -> None:
        self.close()
        self._connection.go_on()
        self.num_reconnects += 1
        self._on_trouble(cause, attempt)


def from_wire_or_refuse(number: int) -> Encoding:
    """`codec.from_wire`, with a chunk's error for a number that does not exist."""
    try:
        return from_wire(number)
    except ValueError as error:
        raise ChunkError(str(error)) from error
