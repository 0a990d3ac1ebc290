"""Validates the description that an untrusted teacher sends, and whether this edge can work with this teacher.

No field may be used before this check: the fields determine folder names and array sizes.
"""

import math
import re

import numpy as np

from edge_student.ipc.messages import Configure
from edgekd.v1 import teacher_pb2
from edgekd.wire.class_names import digest_of_names
from edgekd.wire.codec import Encoding, Format, to_wire
from edgekd.wire.inputs import INPUT_DTYPES, InputEncoding, for_dtype, input_to_wire
from edgekd.wire.limits import MAX_DIMENSIONS, MAX_INPUTS_BYTES, MAX_NAMES, MAX_NAMES_BYTES, MAX_SAMPLES, PROTOCOL_VERSION

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
        _check_inputs(answer, who, for_dtype(InputEncoding(config.inputs), answer.input_dtype))
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
    if len(answer.input_shape) > MAX_DIMENSIONS:
        shape = tuple(answer.input_shape[:8])
        raise RequestRefusedError(f"{who} has inputs of shape {shape}, must have at most {MAX_DIMENSIONS} dimensions")
    if answer.input_dtype not in ("", *INPUT_DTYPES):
        raise RequestRefusedError(f"{who} has inputs of an unknown type, must be {' or '.join(INPUT_DTYPES)}")
    _check_class_names(answer, who)
    if answer.max_window < 1:
        raise RequestRefusedError(f"{who} serves windows of {answer.max_window} batches, must be at least 1")
    if len(answer.dataset_name) > _MAX_NAME or not answer.dataset_name.isprintable():
        raise RequestRefusedError(f"{who} has an invalid data set name, must be printable and at most {_MAX_NAME} characters")


def _check_class_names(answer: teacher_pb2.DescribeResponse, who: str) -> None:
    names = answer.class_names
    if names and (len(names) != answer.num_classes or len(names) > MAX_NAMES):
        raise RequestRefusedError(f"{who} has {len(names)} class names, must have {answer.num_classes}, and at most {MAX_NAMES}")
    if not all(name.isprintable() for name in names) or sum(len(name.encode()) for name in names) > MAX_NAMES_BYTES:
        raise RequestRefusedError(f"{who} has invalid class names, must be printable and at most {MAX_NAMES_BYTES} bytes")
    if answer.classes_digest and not _DIGEST.fullmatch(answer.classes_digest):
        raise RequestRefusedError(f"{who} has an invalid digest of its class names, must be 64 lower-case hexadecimal digits")
    if names and answer.classes_digest != digest_of_names(names):
        raise RequestRefusedError(f"{who} has class names that differ from their digest")


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


def _check_inputs(answer: teacher_pb2.DescribeResponse, who: str, inputs: InputEncoding | None) -> None:
    if input_to_wire(inputs) not in answer.input_encodings:
        known = [encoding.value for encoding in InputEncoding if input_to_wire(encoding) in answer.input_encodings]
        raise RequestRefusedError(
            f"{who} cannot send inputs as {inputs}; it can send {', '.join(known) or 'no inputs'}: give this edge the public "
            "data set and use --public-inputs local"
        )
    shape, dtype = tuple(answer.input_shape), answer.input_dtype or "uint8"
    if not shape or not 0 < math.prod(shape) * np.dtype(dtype).itemsize <= MAX_INPUTS_BYTES:
        raise RequestRefusedError(f"{who} has inputs of shape {shape}, must be positive and at most {MAX_INPUTS_BYTES} bytes")
    if inputs is InputEncoding.STORED and (len(shape) != 3 or dtype != "uint8"):
        raise RequestRefusedError(f"{who} has image files of shape {shape}, {dtype}, must be channels, height and width, uint8")
