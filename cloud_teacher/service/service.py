"""The Teacher service of teacher.proto: describes itself and streams windows of batches.

What may take long runs on two threads of its own, so that the event loop only ever writes. One computes: a sample that several
edges want is computed once, because they queue here. One reads and encodes: a stream whose rows are all there never waits for
another edge's computing. Each write is awaited, so that HTTP/2's flow control bounds what a slow edge can make us hold: one group
of chunks.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
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
from edgekd.wire.codec import Encoding, to_wire
from edgekd.wire.inputs import InputEncoding, input_to_wire
from edgekd.wire.limits import MAX_CHUNK_BYTES, MAX_INPUTS_BYTES, PROTOCOL_VERSION, SERVICE_NAME

_OUR_FAULT = "the teacher failed; its log says why"
_GOING_AWAY = "the teacher is shutting down; ask again from the first batch that is incomplete"

_ROUND_S = 10.0
"""Where the rate is limited, chunks are so small that every stream gets one in this time. An edge that got none for its
--max-silence, 30 s if not set, would take that for a teacher that hangs.
"""

logger = logging.getLogger(__name__)

T = TypeVar("T")


class TeacherService:
    """Serves the rows of one store."""

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
    ) -> None:
        """`computing` runs the teacher; it must have one thread, and whoever made it ends it. Without `inputs` none can travel."""
        self.limits = limits
        self.metrics = metrics
        self._store = store
        self._dataset_name = dataset_name
        self._places = StreamSlots(limits)
        self._rate_limiter = rate_limiter
        self._turn = asyncio.Lock()  # first come, first served
        self._most_chunk_bytes = MAX_INPUTS_BYTES if rate_limiter is None else rate_limiter.bytes_in(_ROUND_S / limits.max_streams)
        self._computing = computing
        self._inputs = inputs
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._going_away = asyncio.Event()

    @property
    def num_streams(self) -> int:
        """Streams open now."""
        return self._places.num_streams

    def handlers(self) -> grpc.GenericRpcHandler:
        """The service as a gRPC server takes it.

        Requests are parsed here, so that garbage is refused like any other mistake, and chunks come as bytes already.
        """
        methods = {
            "Describe": grpc.unary_unary_rpc_method_handler(
                self.describe, response_serializer=teacher_pb2.DescribeResponse.SerializeToString
            ),
            "StreamLogits": grpc.unary_stream_rpc_method_handler(self.stream_logits),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def describe(self, request: bytes, context: grpc.aio.ServicerContext) -> teacher_pb2.DescribeResponse:
        """Who we are, what we serve, and within which limits. An empty message asks for it, so there is nothing to parse."""
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
            # An edge divides its batches among as many; were it told of those of all edges, some of its own would never open.
            max_streams=limits.streams_for_one,
            input_shape=() if self._inputs is None else self._inputs.shape,
            input_encodings=[input_to_wire(encoding) for encoding in self._input_encodings],
        )

    async def stream_logits(self, request: bytes, context: grpc.aio.ServicerContext) -> None:
        """The batches of a window in order, each as one or more chunks; or a status that says why not."""
        caller = caller_of(context)
        with log_context(edge=caller.edge, run=caller.run, peer=caller.peer):
            try:
                window = admit(parse(request), self._store.key, self.limits, self._input_encodings)
                with self._places.take(caller):
                    await self._serve(window, caller, context)
            except RefusedError as refused:
                logger.info("%s: refused, %s: %s", caller, refused.code.name, refused.details)
                await context.abort(refused.code, refused.details)
            except grpc.aio.InternalError:
                # How a write fails when its edge vanished and the cancellation has not come yet.
                logger.info("%s: it is gone", caller)
                context.set_code(grpc.StatusCode.CANCELLED)
            except InputChangedError as error:
                logger.error("%s: %s", caller, error)
                why = f"the image file of sample {error.sample} has changed since this server was started; it must be started again"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
            except (ValueError, OSError) as error:
                logger.error("%s: %s", caller, error)
                await context.abort(grpc.StatusCode.INTERNAL, _OUR_FAULT)
            except Exception:
                logger.exception("%s: unexpected failure", caller)
                await context.abort(grpc.StatusCode.INTERNAL, _OUR_FAULT)

    @property
    def _input_encodings(self) -> list[InputEncoding]:
        return [] if self._inputs is None else self._inputs.encodings

    async def fill_store(self) -> None:
        """Compute, a forward at a time, what no edge has asked for yet; what one asks for meanwhile is computed in between.

        Ends when everything is there, when the server goes away, or, with a word in the log, when it cannot be done.
        """
        everything = np.arange(self._store.key.num_samples)
        try:
            for begin in range(0, len(everything), ROWS_PER_FORWARD):
                if len(missing := self._store.missing(everything[begin : begin + ROWS_PER_FORWARD])):
                    await self._compute(missing)
                else:
                    await asyncio.sleep(0)  # to look at a large store that is full takes seconds
        except RefusedError:  # going away
            return
        except Exception as error:  # of the model or the disk; what edges ask for is still tried
            logger.error("the store is no longer filled in the background: %s", error)
            return
        logger.info("all %d rows are in the store", len(everything))

    def go_away(self) -> None:
        """End every stream at its next chunk, with a status that tells the edge to come back, and stop computing."""
        self._going_away.set()
        self._store.interrupt()

    def close(self) -> None:
        """Wait for the reading thread and end it."""
        self._reading.shutdown(cancel_futures=True)

    async def _serve(self, window: Window, caller: Caller, context: grpc.aio.ServicerContext) -> None:
        # Of a busy server there are hundreds of these a minute, so they are for who looks for something.
        extent = {"index": window.start, "count": window.count}
        logger.debug("%s: a stream of %d batches from %d on begins", caller, window.count, window.start, extra=extent)
        self.metrics.stream_began()
        reader = WindowReader(window, self._store, self._inputs, most_bytes=self._most_chunk_bytes)
        try:
            while not reader.is_done:
                group = await _on(self._reading, reader.read)
                if len(group.missing):
                    await self._compute(group.missing)
                await self._send(group, context)
        finally:
            self.metrics.stream_ended()
            how = "whole" if reader.is_done else "broken off"
            logger.debug("%s: the stream from batch %d on has ended, %s", caller, window.start, how, extra=extent)

    async def _send(self, group: Group, context: grpc.aio.ServicerContext) -> None:
        sent = Sent()
        try:
            for message in group.messages:
                if self._rate_limiter is not None:
                    await self._wait_for_link(self._rate_limiter, message.payload_bytes)
                if self._going_away.is_set():
                    raise RefusedError(grpc.StatusCode.UNAVAILABLE, _GOING_AWAY)
                begun = time.perf_counter()
                await context.write(message.data)
                sent.waited_s += time.perf_counter() - begun
                sent.chunks += 1
                sent.rows += message.rows
                sent.payload_bytes += message.payload_bytes
        finally:
            if sent.chunks:
                self.metrics.group_ended(sent)

    async def _compute(self, ids: npt.NDArray[np.int64]) -> None:
        filling = asyncio.get_running_loop().run_in_executor(self._computing, self._store.fill, ids)
        leaving = asyncio.ensure_future(self._going_away.wait())
        try:
            await asyncio.wait((filling, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not filling.done():
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, _GOING_AWAY)
            filling.result()
        except StoreInterruptedError:
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, _GOING_AWAY) from None
        finally:
            leaving.cancel()
            # What already runs goes on, and is kept; what still waits in line for an edge that is gone is dropped.
            filling.cancel()

    async def _wait_for_link(self, rate_limiter: RateLimiter, num_bytes: int) -> None:
        """Until it is this stream's turn to send so many bytes. One that gives up leaves the line, and has taken nothing."""
        clock = asyncio.get_running_loop().time
        async with self._turn:
            await self._pause(rate_limiter.wait(clock()))
            rate_limiter.take(num_bytes, clock())

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake when the server goes away."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._going_away.wait()


async def _on(executor: Executor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(executor, work)
