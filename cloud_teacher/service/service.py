"""The Teacher service of teacher.proto: answers Describe, and streams windows of batches.

Long work runs on two threads, so that the event loop only writes. One thread computes rows; streams queue for it, so a sample that
several edges request is computed once. The other thread reads and encodes, so a stream with all rows computed never waits for the
computation of another. Each write is awaited, so HTTP/2 flow control limits the memory for a slow edge to one group of chunks.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from cloud_teacher.logits.public_inputs import InputChangedError, PublicInputs
from cloud_teacher.logits.store import ROWS_PER_FORWARD, LogitStore, StoreInterruptedError
from cloud_teacher.monitoring.metrics import Metrics, Sent
from cloud_teacher.service.admission import RefusedError, Window, admit, parse
from cloud_teacher.service.batches import Group, WindowReader
from cloud_teacher.service.callers import Caller, StreamSlots, caller_of
from cloud_teacher.service.limits import Limits
from cloud_teacher.service.rate_limit import RateLimiter
from edgekd.cli.logs import log_context
from edgekd.v1 import teacher_pb2
from edgekd.wire.class_names import digest_of_names, sendable
from edgekd.wire.codec import Encoding, to_wire
from edgekd.wire.inputs import InputEncoding, input_to_wire
from edgekd.wire.limits import MAX_CHUNK_BYTES, MAX_INPUTS_BYTES, PROTOCOL_VERSION, SERVICE_NAME

_INTERNAL = "the teacher failed; its log has the cause"
_SHUTTING_DOWN = "the teacher is shutting down; retry from the first incomplete batch"

_ROUND_S = 10.0
"""With a rate limit, chunks are small enough that every stream gets one within this time. An edge cancels a stream that is silent
for its --max-silence, 30 s by default.
"""

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TeacherService:
    """Serves the logits of one store."""

    def __init__(
        self,
        store: LogitStore,
        *,
        dataset_name: str,
        limits: Limits,
        metrics: Metrics,
        rate_limiter: RateLimiter | None,
        computing: Executor,
        inputs: PublicInputs | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        """`computing` runs the teacher on its one thread; the caller shuts it down. Without `inputs`, only logits are sent."""
        self.limits = limits
        self.metrics = metrics
        self._store = store
        self._dataset_name = dataset_name
        self._slots = StreamSlots(limits)
        self._rate_limiter = rate_limiter
        self._rate_turn = asyncio.Lock()  # lets one stream wait for the rate limit at a time, first come, first served
        self._most_chunk_bytes = MAX_INPUTS_BYTES if rate_limiter is None else rate_limiter.bytes_in(_ROUND_S / limits.max_streams)
        self._computing = computing
        self._inputs = inputs
        self._class_names = class_names
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._shutting_down = asyncio.Event()

    @property
    def num_streams(self) -> int:
        """Number of open streams."""
        return self._slots.num_streams

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers for a gRPC server.

        Requests arrive as bytes, so that the service rejects malformed ones with a status. Chunks leave as serialized bytes.
        """
        methods = {
            "Describe": grpc.unary_unary_rpc_method_handler(
                self.describe, response_serializer=teacher_pb2.DescribeResponse.SerializeToString
            ),
            "StreamLogits": grpc.unary_stream_rpc_method_handler(self.stream_logits),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def describe(self, request: bytes, context: grpc.aio.ServicerContext) -> teacher_pb2.DescribeResponse:
        """Return the identity of teacher and data set, and the limits. The request has no fields, so it is not parsed."""
        key, limits = self._store.key, self.limits
        return teacher_pb2.DescribeResponse(
            protocol_version=PROTOCOL_VERSION,
            teacher_digest=key.teacher_digest,
            dataset_digest=key.dataset_digest,
            dataset_name=self._dataset_name,
            num_samples=key.num_samples,
            num_classes=key.num_classes,
            encodings=[to_wire(encoding) for encoding in Encoding],
            max_batch_size=limits.max_batch_size,
            max_window=limits.max_window,
            max_chunk_bytes=MAX_CHUNK_BYTES,
            max_stride=limits.max_stride,
            # An edge divides its batches among this many streams, so it must be the limit for one edge.
            max_streams=limits.streams_for_one,
            input_shape=() if self._inputs is None else self._inputs.shape,
            input_dtype="" if self._inputs is None else self._inputs.dtype,
            class_names=sendable(self._class_names),
            classes_digest=digest_of_names(self._class_names),
            input_encodings=[input_to_wire(encoding) for encoding in self._input_encodings],
        )

    async def stream_logits(self, request: bytes, context: grpc.aio.ServicerContext) -> None:
        """Write the batches of a window in order, each as one or more chunks, or abort with a status that names the cause."""
        caller = caller_of(context)
        with log_context(edge=caller.edge, run=caller.run, peer=caller.peer):
            try:
                window = admit(parse(request), self._store.key, self.limits, self._input_encodings)
                with self._slots.take(caller):
                    await self._serve(window, caller, context)
            except RefusedError as refused:
                logger.info("%s: rejected, %s: %s", caller, refused.code.name, refused.details)
                await context.abort(refused.code, refused.details)
            except grpc.aio.InternalError:
                # A write to a lost connection fails with this error if it runs before the cancellation arrives.
                logger.info("%s: connection lost", caller)
                context.set_code(grpc.StatusCode.CANCELLED)
            except InputChangedError as error:
                logger.error("%s: %s", caller, error)
                details = f"the image file of sample {error.sample} has changed since this server was started; restart the server"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, details)
            except (ValueError, OSError) as error:
                logger.error("%s: %s", caller, error)
                await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)
            except Exception:
                logger.exception("%s: unexpected failure", caller)
                await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL)

    @property
    def _input_encodings(self) -> list[InputEncoding]:
        return [] if self._inputs is None else self._inputs.encodings

    async def fill_store(self) -> None:
        """Compute all missing rows in the background, one forward at a time, with the rows that edges request in between.

        Returns when the store is full, when the server shuts down, or when a computation fails, which it logs.
        """
        all_ids = np.arange(self._store.key.num_samples)
        try:
            for begin in range(0, len(all_ids), ROWS_PER_FORWARD):
                if len(missing := self._store.missing(all_ids[begin : begin + ROWS_PER_FORWARD])):
                    await self._compute(missing)
                else:
                    await asyncio.sleep(0)  # scanning a large full store takes seconds
        except RefusedError:  # the server shuts down
            return
        except Exception as error:  # of the model or the disk; requests of edges are still served
            logger.error("stopped filling the store in the background: %s", error)
            return
        logger.info("the store has all %d rows", len(all_ids))

    def begin_shutdown(self) -> None:
        """End every stream at its next chunk with a status that makes the edge retry, and stop computing."""
        self._shutting_down.set()
        self._store.interrupt()

    def close(self) -> None:
        """Wait for the reading thread to exit."""
        self._reading.shutdown(cancel_futures=True)

    async def _serve(self, window: Window, caller: Caller, context: grpc.aio.ServicerContext) -> None:
        # At debug level, because a busy server writes hundreds of these lines per minute.
        extent = {"index": window.start, "count": window.count}
        logger.debug("%s: stream of %d batches from %d begins", caller, window.count, window.start, extra=extent)
        self.metrics.stream_started()
        reader = WindowReader(window, self._store, self._inputs, most_bytes=self._most_chunk_bytes)
        try:
            while not reader.is_done:
                group = await _run_in(self._reading, reader.read)
                if len(group.missing):
                    await self._compute(group.missing)
                await self._send(group, context)
        finally:
            self.metrics.stream_ended()
            outcome = "complete" if reader.is_done else "incomplete"
            logger.debug("%s: stream from batch %d ended, %s", caller, window.start, outcome, extra=extent)

    async def _send(self, group: Group, context: grpc.aio.ServicerContext) -> None:
        sent = Sent()
        try:
            for message in group.messages:
                if self._rate_limiter is not None:
                    await self._limit_rate(self._rate_limiter, message.payload_bytes)
                if self._shutting_down.is_set():
                    raise RefusedError(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
                started = time.perf_counter()
                await context.write(message.data)
                sent.waited_s += time.perf_counter() - started
                sent.chunks += 1
                sent.rows += message.rows
                sent.payload_bytes += message.payload_bytes
        finally:
            if sent.chunks:
                self.metrics.group_ended(sent)

    async def _compute(self, ids: npt.NDArray[np.int64]) -> None:
        filling = asyncio.get_running_loop().run_in_executor(self._computing, self._store.fill, ids)
        shutdown = asyncio.ensure_future(self._shutting_down.wait())
        try:
            await asyncio.wait((filling, shutdown), return_when=asyncio.FIRST_COMPLETED)
            if not filling.done():
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN)
            filling.result()
        except StoreInterruptedError:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, _SHUTTING_DOWN) from None
        finally:
            shutdown.cancel()
            # A running computation continues and its rows are kept. A queued one is dropped if its stream has ended.
            filling.cancel()

    async def _limit_rate(self, rate_limiter: RateLimiter, num_bytes: int) -> None:
        """Wait until this stream may send `num_bytes`, and reserve that time on the link. A cancelled wait reserves nothing."""
        clock = asyncio.get_running_loop().time
        async with self._rate_turn:
            await self._pause(rate_limiter.wait(clock()))
            rate_limiter.take(num_bytes, clock())

    async def _pause(self, seconds: float) -> None:
        """Sleep, and return early if the server shuts down."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._shutting_down.wait()


async def _run_in(executor: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, work)
