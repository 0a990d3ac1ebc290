"""gRPC client of the logit stream: requests windows of batches, verifies every chunk, and resumes by batch index after a failure.

The module knows gRPC and the protobuf schema. It knows neither the use of the logits nor the other processes of the machine.
gRPC never retries a stream after its first message, so the receiver retries: it requests a lost stream again from the first
incomplete batch.
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
from edge_student.receive.description import AccessDeniedError, RequestRefusedError, check_description
from edge_student.receive.retry import LinkLostError, RetryPolicy
from edge_student.receive.verify import decode_chunk, is_duplicate, parse_message
from edge_student.receive.watchdog import Watchdog
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import ChunkError, Encoding, Format, to_wire
from edgekd.wire.inputs import InputEncoding, Inputs, for_dtype, input_to_wire
from edgekd.wire.limits import MAX_STRIDE
from edgekd.wire.order import batch_ids

T = TypeVar("T")
OnRows = Callable[[npt.NDArray[np.int64], memoryview, Inputs], None]

_MAX_REJECTED = 5
_MAX_DUPLICATES = 4096  # per batch: enough for a whole batch in chunks of one row


class BadTeacherError(RuntimeError):
    """The teacher keeps sending chunks that break the protocol."""


class Receiver:
    """Receives batches in order, from one teacher at a time. Not thread-safe.

    `on_trouble(cause, attempt)` is called after every failed attempt that another attempt follows.
    """

    def __init__(self, config: Configure, on_trouble: Callable[[str, int], None], *, first_teacher: int = 0) -> None:
        """`first_teacher` is the position in `config.teacher` of the teacher to connect to first."""
        self._config = config
        self._connection = Connection(config, first_teacher)
        self._watchdog = Watchdog(config.max_silence_s)
        self._retry = RetryPolicy(config.max_wait_s, self._before_next_attempt)
        self._form = Format(Encoding(config.encoding), config.top_k)
        self._inputs = InputEncoding(config.inputs) if config.inputs else None
        self._on_trouble = on_trouble
        self._stride = 1
        self._max_streams = 1
        self._stream: ChunkStream | None = None
        self._described: Described | None = None
        self._num_rejected = 0
        self._furthest_row = 0
        self.num_reconnects = 0
        self.num_refused_chunks = 0
        self.num_duplicate_chunks = 0

    def describe(self) -> Described:
        """Request the teacher's description; retry for up to `max_wait_s` until a teacher is reachable.

        Raises LinkLostError when the time is up, RequestRefusedError if the teacher cannot serve this configuration.
        """
        answer = self._retry.call(lambda: self._with_failover(self._describe_once))
        self._window = min(self._config.window, answer.max_window)
        self._max_streams = min(max(1, answer.max_stride), answer.max_streams or MAX_STRIDE)
        self._described = Described(
            teacher_digest=answer.teacher_digest,
            dataset_digest=answer.dataset_digest,
            dataset_name=answer.dataset_name,
            num_samples=answer.num_samples,
            num_classes=answer.num_classes,
            input_shape=tuple(answer.input_shape),
            input_dtype=answer.input_dtype or "uint8",
            class_names=tuple(answer.class_names),
            classes_digest=answer.classes_digest,
        )
        self._inputs = for_dtype(self._inputs, self._described.input_dtype)
        self.num_reconnects = 0  # attempts before the first connection are not reconnects
        self._connection.readmit()  # a teacher that denies access now may grant it when it is needed
        return self._described

    def divide(self, num_streams: int) -> list["Receiver"]:
        """Return `num_streams` receivers that share the batches, this one first, or as many as the teacher can serve.

        Receiver n of m receives batches n, n + m, n + 2m, ... over its own connection. Call it after `describe` and before
        `receive`.
        """
        num_streams = min(num_streams, self._max_streams)
        others = (Receiver(self._config, self._on_trouble, first_teacher=number) for number in range(1, num_streams))
        receivers = [self, *others]
        for receiver in receivers:
            receiver._stride, receiver._described, receiver._window = num_streams, self._described, self._window
            receiver._inputs = self._inputs
        return receivers

    @property
    def stride(self) -> int:
        """Number of receivers that share the batches."""
        return self._stride

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None], on_rows: OnRows | None = None) -> int:
        """Fill `slot` with batch `index`. Returns the bytes of payload and inputs that crossed the wire.

        Batches must be requested in order; `stop` bounds how far the teacher may run ahead. `between_chunks` may block.
        `on_rows` is called for every accepted chunk: sample ids, int64 [rows]; the rows as encoded; the decoded inputs.

        Raises LinkLostError after `max_wait_s` without progress, RequestRefusedError at once, and BadTeacherError after
        _MAX_REJECTED chunks of this batch were rejected; the last two only if no other teacher is left.
        """
        assert self._described is not None, "describe() comes first"
        slot.sample_ids[:] = batch_ids(self._config.seed, self._described.num_samples, self._config.batch_size, index)
        self._num_rejected = self._furthest_row = 0
        return self._retry.call(lambda: self._with_failover(lambda: self._receive_once(index, stop, slot, between_chunks, on_rows)))

    def release(self) -> None:
        """End the stream, so that the teacher can serve another one. The next `receive` opens a new stream."""
        if self._stream is not None:
            self.close()  # cancelling the stream alone is not enough, see close()

    def close(self) -> None:
        """Close the connection. The next call opens a new one."""
        stream, self._stream = self._stream, None
        self._watchdog.close()
        self._connection.close()
        # Only this thread reads the stream's events. Until it reads the end of the stream, gRPC keeps the connection open and the
        # teacher keeps the stream. After `cancel` the end cannot be read; on a closed channel it can.
        with contextlib.suppress(grpc.RpcError):
            for _ in stream or ():
                pass

    def _describe_once(self) -> teacher_pb2.DescribeResponse:
        try:
            answer = teacher_pb2.DescribeResponse.FromString(self._connection.describe())
        except grpc.RpcError as error:
            raise self._translate(error) from None
        except DecodeError:
            raise BadTeacherError(f"teacher {self._connection.address}: the answer to Describe is not a DescribeResponse") from None
        check_description(answer, self._config, self._connection.address)
        return answer

    def _receive_once(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None], on_rows: OnRows | None) -> int:
        row = num_bytes = num_duplicates = 0
        while row < len(slot.logits):
            between_chunks()
            message = self._next_message(index, stop)
            try:
                chunk = parse_message(message, index=index)
                if is_duplicate(chunk, index=index, row=row):
                    self.num_duplicate_chunks += 1
                    num_duplicates += 1
                    if num_duplicates > _MAX_DUPLICATES:
                        raise ChunkError(f"batch {index}: more than {_MAX_DUPLICATES} duplicate chunks were sent")
                    continue
                num_rows = decode_chunk(chunk, slot, index=index, row=row, form=self._form, inputs=self._inputs)
            except ChunkError as error:
                self._reject(error)
            if on_rows is not None:
                on_rows(slot.sample_ids[row : row + num_rows], chunk.payload, slot.inputs[row : row + num_rows])
            row += num_rows
            if row > self._furthest_row:  # rows that an earlier attempt already received are no progress
                self._furthest_row = row
                self._retry.note_success()
            num_bytes += len(chunk.payload) + len(chunk.inputs)
        return num_bytes

    def _next_message(self, index: int, stop: int) -> bytes:
        try:
            message = self._await_message(index, stop)
            if message is None:  # the window is complete
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

    def _reject(self, error: ChunkError) -> NoReturn:
        self.num_refused_chunks += 1
        self._num_rejected += 1
        if self._num_rejected >= _MAX_REJECTED:
            raise BadTeacherError(f"rejected {self._num_rejected} chunks of one batch, the last one: {error}") from error
        raise LinkLostError(f"rejected a chunk: {error}") from error

    def _translate(self, error: grpc.RpcError) -> Exception:
        if error.code() is grpc.StatusCode.CANCELLED and self._watchdog.has_fired:
            limit_s = self._watchdog.limit_s
            return LinkLostError(f"teacher {self._connection.address}: connected, but sent no data for {limit_s:g} s")
        has_worked = self._described is not None
        return self._connection.translate(error, diagnose=not has_worked or self._retry.has_failed, has_worked=has_worked)

    def _with_failover(self, action: Callable[[], T]) -> T:
        """Run `action`. A permanent error of this teacher becomes LinkLostError while other teachers are left."""
        try:
            return action()
        except (RequestRefusedError, BadTeacherError) as error:
            if not self._connection.exclude(for_good=not isinstance(error, AccessDeniedError)):
                raise
            self._num_rejected = 0  # counts per teacher
            raise LinkLostError(f"{error}; this teacher is not used any more") from error

    def _before_next_attempt(self, cause: str, attempt: int) -> None:
        self.close()
        self._connection.next_teacher()
        self.num_reconnects += 1
        self._on_trouble(cause, attempt)
