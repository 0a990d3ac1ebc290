"""A teacher in front of a real one, with faults as data: it splits batches into small chunks and changes some of them."""

from collections.abc import Iterator
from concurrent import futures

import grpc
from scripted_teacher import BreakStream, Fault

from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.codec import checksum
from edgekd.wire.limits import channel_options, server_options

ROWS_PER_CHUNK = 5


class Relay(teacher_pb2_grpc.TeacherServicer):
    """Calls the teacher at `address` and forwards its answers, except for `faults[batch, n]`, the n-th chunk of a batch.

    A fault is repeated until an edge has received it and requests its batch again: data sent before an earlier fault is never read.
    """

    def __init__(self, address: str, faults: dict[tuple[int, int], Fault]) -> None:
        self._channel = grpc.insecure_channel(address, options=channel_options())
        self._teacher = teacher_pb2_grpc.TeacherStub(self._channel)
        self.faults = dict(faults)
        self.happened: set[tuple[int, int]] = set()
        self.requests: list[teacher_pb2.StreamLogitsRequest] = []

    def Describe(self, request: teacher_pb2.DescribeRequest, context: grpc.ServicerContext) -> teacher_pb2.DescribeResponse:
        answer: teacher_pb2.DescribeResponse = self._teacher.Describe(request, timeout=20)
        return answer

    def StreamLogits(
        self, request: teacher_pb2.StreamLogitsRequest, context: grpc.ServicerContext
    ) -> Iterator[teacher_pb2.LogitsChunk]:
        self.requests.append(request)
        for whole in self._teacher.StreamLogits(request, timeout=60):
            for chunk in cut(whole):
                place = chunk.batch_index, chunk.row_start // ROWS_PER_CHUNK
                fault = self.faults.get(place)
                if fault is None or (place in self.happened and request.start == chunk.batch_index):
                    yield chunk
                    continue
                self.happened.add(place)
                try:
                    yield from fault(chunk)
                except BreakStream as broken:
                    context.abort(broken.code, "scripted")

    def __enter__(self) -> str:
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=server_options())
        teacher_pb2_grpc.add_TeacherServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return f"127.0.0.1:{port}"

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()
        self._channel.close()


def cut(whole: teacher_pb2.LogitsChunk) -> Iterator[teacher_pb2.LogitsChunk]:
    """Split a chunk into chunks of ROWS_PER_CHUNK rows. Inputs are not sent."""
    row_bytes = len(whole.payload) // whole.num_rows
    for start in range(0, whole.num_rows, ROWS_PER_CHUNK):
        ids = whole.sample_ids[start : start + ROWS_PER_CHUNK]
        payload = whole.payload[start * row_bytes : (start + len(ids)) * row_bytes]
        yield teacher_pb2.LogitsChunk(
            batch_index=whole.batch_index,
            row_start=whole.row_start + start,
            num_rows=len(ids),
            num_classes=whole.num_classes,
            encoding=whole.encoding,
            top_k=whole.top_k,
            sample_ids=ids,
            payload=payload,
            crc32=checksum(payload),
        )
