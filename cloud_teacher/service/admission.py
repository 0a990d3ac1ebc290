"""Validates requests before anything is allocated for them: every field has a rule, and every violation a status.

Status details name the rule and the server's own values. They repeat numbers of the request but never its strings: these may be
megabytes long, and they are untrusted text that reaches terminals.
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
    """A rejected request, with the gRPC status code and details."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A validated request: `count` batches start, start+stride, ..., each of batch_size samples in the order of `seed`."""

    start: int
    count: int
    batch_size: int
    seed: int
    form: Format
    stride: int = 1
    inputs: InputEncoding | None = None


def parse(message: bytes) -> teacher_pb2.StreamLogitsRequest:
    """Parse a request. Raises RefusedError if the bytes are not one."""
    try:
        return teacher_pb2.StreamLogitsRequest.FromString(message)
    except DecodeError:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "the message is not a StreamLogitsRequest") from None


def admit(
    request: teacher_pb2.StreamLogitsRequest, key: StoreKey, limits: Limits, input_encodings: Collection[InputEncoding] = ()
) -> Window:
    """Validate `request` against the teacher and data set `key`, the limits and the allowed input encodings.

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
        allowed = ", ".join(input_encodings) or "none"
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"input_encoding is {inputs}, this server supports: {allowed}")
    if request.stride > limits.max_stride:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"stride is {request.stride}, must be in 0 .. {limits.max_stride}")
    stride = max(request.stride, 1)
    last = request.start + (request.count - 1) * stride
    if last > MAX_START:
        raise RefusedError(grpc.StatusCode.OUT_OF_RANGE, f"the window ends at batch {last}, must end at {MAX_START} or before")
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
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is empty, must be the digest that Describe returned")
    if value != own:
        raise RefusedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"{field} differs from this server's, {own[:16]}: the teacher or the data set has changed; "
            "call Describe again and restart the run",
        )
