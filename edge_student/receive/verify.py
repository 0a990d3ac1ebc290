"""Trust boundary of the comm worker: verifies each message of a logit stream before a row of it reaches the ring.

The functions are pure apart from their writes to the given slot. They need no channel. Every ChunkError names the batch, the broken
rule and the received value.
"""

from google.protobuf.message import DecodeError

from edge_student.ipc.ring import Slot
from edgekd.wire.chunks import Chunk, parse_chunk
from edgekd.wire.codec import ChunkError, Format, decode_into, from_wire
from edgekd.wire.inputs import InputEncoding, decode_inputs_into, input_to_wire


def parse_message(message: bytes, *, index: int) -> Chunk:
    """Parse a message that was received for batch `index`. Raises ChunkError if it is not a LogitsChunk."""
    try:
        return parse_chunk(message)
    except DecodeError:
        raise ChunkError(f"batch {index}: a message of {len(message)} bytes is not a LogitsChunk") from None


def is_duplicate(chunk: Chunk, *, index: int, row: int) -> bool:
    """Return whether the chunk starts before row `row` of batch `index`, the next row of the stream."""
    return (chunk.header.batch_index, chunk.header.row_start) < (index, row)


def decode_chunk(chunk: Chunk, slot: Slot, *, index: int, row: int, form: Format, inputs: InputEncoding | None) -> int:
    """Verify the chunk that must continue batch `index` at row `row`, and decode it into these rows of `slot`.

    `slot.sample_ids` must hold the ids of the batch. `form` and `inputs` are the requested encodings; `inputs` is None if inputs do
    not travel. Returns the number of decoded rows.

    Raises ChunkError for a chunk that breaks a rule. Its rows of `slot.inputs` may then be overwritten; no other row is.
    """
    try:
        rows = _check_rows(chunk, slot, index, row)
        _check_encodings(chunk, slot, form, inputs)
        _check_ids(chunk, slot, rows)
        if inputs is not None:
            decode_inputs_into(
                chunk.inputs,
                encoding=inputs,
                lengths=list(chunk.header.input_lengths),
                crc32=chunk.header.pixels_crc32,
                out=slot.inputs[rows],
            )
        decode_into(
            chunk.payload,
            form=form,
            rows=chunk.header.num_rows,
            num_classes=chunk.header.num_classes,
            crc32=chunk.header.crc32,
            out=slot.logits[rows],
        )
    except ChunkError as error:
        raise ChunkError(f"batch {index}: {error}") from None
    return chunk.header.num_rows


def _check_rows(chunk: Chunk, slot: Slot, index: int, row: int) -> slice:
    header, num_rows = chunk.header, len(slot.logits)
    if (header.batch_index, header.row_start) != (index, row):
        raise ChunkError(
            f"the chunk starts at row {header.row_start} of batch {header.batch_index}, must start at row {row} of batch {index}"
        )
    if not 1 <= header.num_rows <= num_rows - row:
        raise ChunkError(f"num_rows is {header.num_rows}, must be in 1 .. {num_rows - row} at row {row} of {num_rows}")
    return slice(row, row + header.num_rows)


def _check_encodings(chunk: Chunk, slot: Slot, form: Format, inputs: InputEncoding | None) -> None:
    header, num_classes = chunk.header, slot.logits.shape[1]
    if header.num_classes != num_classes:
        raise ChunkError(f"num_classes is {header.num_classes}, must be {num_classes} as the teacher described")
    try:
        encoding = from_wire(header.encoding)
    except ValueError as error:
        raise ChunkError(str(error)) from None
    if (encoding, header.top_k) != (form.encoding, form.top_k):
        raise ChunkError(f"encoding is number {header.encoding} with top_k {header.top_k}, must be {form} as requested")
    if header.input_encoding != input_to_wire(inputs) or (inputs is None and len(chunk.inputs)):
        requested = "absent" if inputs is None else inputs
        raise ChunkError(
            f"inputs are {len(chunk.inputs)} bytes with encoding number {header.input_encoding}, must be {requested} as requested"
        )


def _check_ids(chunk: Chunk, slot: Slot, rows: slice) -> None:
    received, expected = chunk.header.sample_ids, slot.sample_ids[rows].tolist()
    if received == expected:
        return
    if len(received) != len(expected):
        raise ChunkError(f"{len(received)} sample ids were sent, must be {len(expected)}")
    at = next(at for at, (one, other) in enumerate(zip(received, expected, strict=True)) if one != other)
    raise ChunkError(f"sample ids: row {rows.start + at} has id {received[at]}, must be {expected[at]}: the sample orders differ")
