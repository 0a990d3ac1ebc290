"""Validates the description that an untrusted teacher sends, and whether this edge can work with this teacher.

No field may be used before this check: the fields determine folder names and array sizes.
"""

import math
import re

from edge_student.ipc.messages import Configure
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import Encoding, Format, to_wire
from edgekd.wire.inputs import InputEncoding, input_to_wire
from edgekd.wire.limits import MAX_INPUTS_BYTES, MAX_SAMPLES, PROTOCOL_VERSION

_DIGEST = re.compile("[0-9a-f]{64}")
_MAX_NAME = 1000


class RequestRefusedError(ValueError):
    """The teacher rejects the request for good, or cannot serve this edge's configuration. A retry cannot help."""


class AccessDeniedError(RequestRefusedError):
    """The teacher rejects this edge's certificate or token, or requires one. Either end can correct this later."""


def check_description(answer: teacher_pb2.DescribeResponse, config: Configure, address: str) -> None:
    """Raise RequestRefusedError if the teacher at `address` is invalid or cannot serve `config`; the error names both."""
    who = f"the teacher at {address}"
    if answer.protocol_version != PROTOCOL_VERSION:
        raise RequestRefusedError(
            f"{who} has protocol version {answer.protocol_version}, this edge has {PROTOCOL_VERSION}: update the older end"
        )
    _check_sanity(answer, who)
    _check_encoding(answer, who, Format(Encoding(config.encoding), config.top_k))
    if config.inputs:
        _check_inputs(answer, who, InputEncoding(config.inputs))
    if config.batch_size > answer.max_batch_size:
        raise RequestRefusedError(
            f"public batch size is {config.batch_size}, must be at most {answer.max_batch_size}, the teacher's limit"
        )


def _check_sanity(answer: teacher_pb2.DescribeResponse, who: str) -> None:
    """Check the fields that must be valid for every configuration."""
    for name, digest in (("teacher", answer.teacher_digest), ("data set", answer.dataset_digest)):
        if not _DIGEST.fullmatch(digest):
            raise RequestRefusedError(f"{who} has an invalid {name} digest, must be 64 lower-case hexadecimal digits")
    if not 1 <= answer.num_samples <= MAX_SAMPLES:
        raise RequestRefusedError(f"{who} has {answer.num_samples} samples, must be in 1 .. {MAX_SAMPLES}")
    if len(answer.input_shape) not in (0, 3):
        shape = tuple(answer.input_shape[:8])
        raise RequestRefusedError(f"{who} has inputs of shape {shape}, must be channels, height and width")
    if answer.max_window < 1:
        raise RequestRefusedError(f"{who} serves windows of {answer.max_window} batches, must be at least 1")
    if len(answer.dataset_name) > _MAX_NAME or not answer.dataset_name.isprintable():
        raise RequestRefusedError(f"{who} has an invalid data set name, must be printable and at most {_MAX_NAME} characters")


def _check_encoding(answer: teacher_pb2.DescribeResponse, who: str, form: Format) -> None:
    if to_wire(form.encoding) not in answer.encodings:
        known = [encoding.value for encoding in Encoding if to_wire(encoding) in answer.encodings]
        raise RequestRefusedError(
            f"{who} cannot send encoding {form.encoding}; it can send {', '.join(known) or 'no encoding that this edge knows'}"
        )
    try:
        form.layout(answer.num_classes)
    except ValueError as error:
        remedy = "; choose fewer with --top-k" if form.top_k else ""
        raise RequestRefusedError(f"{who} cannot send encoding {form}: {error}{remedy}") from None


def _check_inputs(answer: teacher_pb2.DescribeResponse, who: str, inputs: InputEncoding) -> None:
    if input_to_wire(inputs) not in answer.input_encodings:
        known = [encoding.value for encoding in InputEncoding if input_to_wire(encoding) in answer.input_encodings]
        raise RequestRefusedError(
            f"{who} cannot send inputs as {inputs}; it can send {', '.join(known) or 'no inputs'}: give this edge the public "
            "data set and use --public-inputs local"
        )
    shape = tuple(answer.input_shape)
    if not shape or not 0 < math.prod(shape) <= MAX_INPUTS_BYTES:
        raise RequestRefusedError(
            f"{who} has inputs of shape {shape}, must be channels, height and width, and at most {MAX_INPUTS_BYTES} bytes"
        )
