"""What a request must be before anything is allocated for it: every field has its rule, and every broken rule its status.

The answers say the rule and the server's own values. They repeat numbers that came, never strings: those may be megabytes long, and
end up in somebody's terminal.
"""

from collections.abc import Collection
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError

from cloud_teacher.logits.store import StoreKey
from cloud_teacher.service.limits import Limits
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import Format, from_wire
from edgekd.wire.inputs import InputEncoding, input_from_wire
from edgekd.wire.limits import MAX_START


class RefusedError(Exception):
    """A request that is not granted: the status code and its details."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A granted request: batches start, start+stride, ..., count of them, of batch_size samples each, in the order of seed."""

    start: int
    count: int
    batch_size: int
    seed: int
    form: Format
    stride: int = 1
    inputs: InputEncoding | None = None


def parse(message: bytes) -> teacher_pb2.StreamLogitsRequest:
    """The request that came. Raises RefusedError if the bytes are none."""
    try:
        return teacher_pb2.StreamLogitsRequest.FromString(message)
    except DecodeError:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "the message is not a StreamLogitsRequest") from None


def admit(
    request: teacher_pb2.StreamLogitsRequest, key: StoreKey, limits: Limits, input_encodings: Collection[InputEncoding] = ()
) -> Window:
    """The window that `request` asks of the teacher and data set `key`, whose inputs can travel in these ways.

    Raises RefusedError with the codes that teacher.proto lists.
    """
    _check_range("count", request.count, limits.max_window)
    _check_range("batch_size", request.batch_size, limits.max_batch_size)
    try:
        form = Format(from_wire(request.encoding), request.top_k)
        form.layout(key.num_classes)
        inputs = input_from_wire(request.input_encoding)
    except ValueError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
    if inputs is not None and inputs not in input_encodings:
        can = ", ".join(input_encodings) or "nothing"
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"input_encoding is {inputs}, this server's inputs travel as {can}")
    if request.stride > limits.max_stride:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"stride is {request.stride}, must be in 0 .. {limits.max_stride}")
    stride = max(request.stride, 1)
    last = request.start + (request.count - 1) * stride
    if last > MAX_START:
        raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, f"the window ends at batch {last}, the last one is {MAX_START}")
    _check_digest("teacher_digest", request.teacher_digest, key.teacher_digest)
    _check_digest("dataset_digest", request.dataset_digest, key.dataset_digest)
    return Window(
        start=request.start,
        count=request.count,
        batch_size=request.batch_size,
        seed=request.seed,
        form=form,
        stride=stride,
        inputs=inputs,
    )


def _check_range(field: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is {value}, must be in 1 .. {largest}")


def _check_digest(field: str, value: str, own: str) -> None:
    if not value:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is empty, must be what Describe answered")
    if value != own:
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{field} is not this server's, which begins with {own[:16]}: the teacher or the data set has changed, "
            "and logits of two are never mixed; describe it again and start anew",
        )
