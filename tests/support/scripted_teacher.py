"""A teacher with faults as data: chunk n of the session is changed, repeated or dropped, or ends the stream."""

from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import numpy as np

from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.codec import Format, checksum, encode, from_wire
from edgekd.wire.limits import server_options
from edgekd.wire.order import batch_ids

NUM_SAMPLES, NUM_CLASSES, ROWS_PER_CHUNK = 40, 5, 3
INPUT_SHAPE = (1, 2, 3)
Fault = Callable[[teacher_pb2.LogitsChunk], list[teacher_pb2.LogitsChunk]]


class BreakStream(Exception):
    """Ends the stream with a status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self.code = code


def logits_of(ids: np.ndarray) -> np.ndarray:
    """float32 [n, NUM_CLASSES], a fixed function of the sample."""
    return np.sin(ids[:, None] * 3.0 + np.arange(NUM_CLASSES)).astype(np.float32)


def inputs_of(ids: np.ndarray) -> np.ndarray:
    """uint8 [n, *INPUT_SHAPE], a fixed function of the sample."""
    return (ids[:, None, None, None] * 6 + np.arange(6).reshape(INPUT_SHAPE)).astype(np.uint8)


class ScriptedTeacher(teacher_pb2_grpc.TeacherServicer):
    """`faults[n]` applies to the n-th chunk that this teacher sends."""

    def __init__(self, faults: dict[int, Fault] | None = None, **description: object) -> None:
        self.faults = dict(faults or {})
        self.description = description
        self.num_sent = 0
        self.requests: list[teacher_pb2.StreamLogitsRequest] = []

    def Describe(self, request: teacher_pb2.DescribeRequest, context: grpc.ServicerContext) -> teacher_pb2.DescribeResponse:
        fields: dict[str, object] = {
            "protocol_version": 1,
            "teacher_digest": "7" * 64,
            "dataset_digest": "d0" * 32,
            "dataset_name": "scripted:public",
            "num_samples": NUM_SAMPLES,
            "num_classes": NUM_CLASSES,
            "encodings": [1, 2, 3, 4],
            "max_batch_size": 64,
            "max_window": 8,
            "max_chunk_bytes": 1 << 20,
            "max_stride": 64,
            "input_shape": INPUT_SHAPE,
            "input_encodings": [1],
        }
        return teacher_pb2.DescribeResponse(**(fields | self.description))

    def StreamLogits(
        self, request: teacher_pb2.StreamLogitsRequest, context: grpc.ServicerContext
    ) -> Iterator[teacher_pb2.LogitsChunk]:
        self.requests.append(request)
        stride = max(request.stride, 1)
        for index in range(request.start, request.start + request.count * stride, stride):
            for chunk in chunks_of(request, index):
                fault = self.faults.pop(self.num_sent, None)
                self.num_sent += 1
                try:
                    yield from [chunk] if fault is None else fault(chunk)
                except BreakStream as broken:
                    context.abort(broken.code, "scripted")


def chunks_of(request: teacher_pb2.StreamLogitsRequest, index: int) -> Iterator[teacher_pb2.LogitsChunk]:
    """Yield a batch in chunks of ROWS_PER_CHUNK rows."""
    ids = batch_ids(request.seed, NUM_SAMPLES, request.batch_size, index)
    form = Format(from_wire(request.encoding), request.top_k)
    for start in range(0, request.batch_size, ROWS_PER_CHUNK):
        rows = ids[start : start + ROWS_PER_CHUNK]
        payload = encode(logits_of(rows), form)
        inputs = inputs_of(rows).tobytes() if request.input_encoding else b""
        yield teacher_pb2.LogitsChunk(
            batch_index=index,
            row_start=start,
            num_rows=len(rows),
            num_classes=NUM_CLASSES,
            encoding=request.encoding,
            top_k=request.top_k,
            sample_ids=rows.tolist(),
            payload=payload,
            crc32=checksum(payload),
            input_encoding=request.input_encoding,
            inputs=inputs,
            pixels_crc32=checksum(inputs),
        )


class RunningTeacher:
    """A ScriptedTeacher behind a real server on a free port of loopback. Use as a context manager."""

    def __init__(self, teacher: ScriptedTeacher, *, port: int = 0) -> None:
        self.teacher = teacher
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=server_options())
        teacher_pb2_grpc.add_TeacherServicer_to_server(teacher, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "RunningTeacher":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()


def broken(code: grpc.StatusCode) -> Fault:
    def fault(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        raise BreakStream(code)

    return fault


def changed(**fields: object) -> Fault:
    def fault(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        for name, value in fields.items():
            if name == "sample_ids":
                del chunk.sample_ids[:]
                chunk.sample_ids.extend(value)
            else:
                setattr(chunk, name, value)
        return [chunk]

    return fault
