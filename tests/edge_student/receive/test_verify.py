"""The trust boundary of the comm worker: each rule of a chunk, checked without a channel."""

from collections.abc import Iterator

import numpy as np
import pytest

from edge_student.ipc.ring import RingShape, Slot
from edge_student.receive.verify import decode_chunk, is_duplicate, parse_message
from edgekd.v1 import teacher_pb2
from edgekd.wire.chunks import Chunk, parse_chunk
from edgekd.wire.codec import ChunkError, Encoding, Format, checksum, encode, to_wire
from edgekd.wire.inputs import InputEncoding

INDEX, ROW, BATCH, NUM_CLASSES, INPUT_SHAPE = 4, 3, 8, 5, (1, 2, 2)
FLOAT32 = Format(Encoding.FLOAT32)
IDS = np.arange(40, 40 + BATCH)
LOGITS = np.random.default_rng(0).normal(size=(BATCH, NUM_CLASSES)).astype(np.float32)
INPUTS = np.random.default_rng(1).integers(0, 256, (BATCH, *INPUT_SHAPE), np.uint8)
UNTOUCHED = -1.0


def message(form: Format = FLOAT32, *, row: int = ROW, stop: int = BATCH, with_inputs: bool = False, **changes: object) -> bytes:
    """A valid chunk with rows `row` .. `stop - 1` of batch INDEX, with some fields changed."""
    payload, inputs = encode(LOGITS[row:stop], form), INPUTS[row:stop].tobytes()
    fields = {
        "batch_index": INDEX,
        "row_start": row,
        "num_rows": stop - row,
        "num_classes": NUM_CLASSES,
        "encoding": to_wire(form.encoding),
        "top_k": form.top_k,
        "sample_ids": IDS[row:stop].tolist(),
        "payload": payload,
        "crc32": checksum(payload),
    }
    if with_inputs:
        fields |= {"input_encoding": 1, "inputs": inputs, "pixels_crc32": checksum(inputs)}
    return teacher_pb2.LogitsChunk(**(fields | changes)).SerializeToString()  # type: ignore[arg-type]


def chunk(*args: Format, **changes: object) -> Chunk:
    return parse_chunk(message(*args, **changes))  # type: ignore[arg-type]


@pytest.fixture
def slot() -> Iterator[Slot]:
    """A slot whose rows are marked. Fails if a test writes to a row before ROW."""
    made = Slot.empty(RingShape(num_slots=1, batch_size=BATCH, num_classes=NUM_CLASSES, input_shape=INPUT_SHAPE))
    made.sample_ids[:] = IDS
    made.logits[:], made.inputs[:] = UNTOUCHED, 0
    yield made
    assert (made.logits[:ROW] == UNTOUCHED).all()
    assert not made.inputs[:ROW].any()


def decode(received: Chunk, slot: Slot, *, row: int = ROW, form: Format = FLOAT32, inputs: InputEncoding | None = None) -> int:
    return decode_chunk(received, slot, index=INDEX, row=row, form=form, inputs=inputs)


@pytest.mark.parametrize("stop", [ROW + 1, BATCH])
@pytest.mark.parametrize("form", [FLOAT32, Format(Encoding.FLOAT16), Format(Encoding.INT8), Format(Encoding.TOPK, 2)], ids=str)
def test_a_valid_chunk_fills_its_rows_and_no_others(form: Format, stop: int, slot: Slot) -> None:
    assert decode(chunk(form, stop=stop), slot, form=form) == stop - ROW
    expected = np.empty((stop - ROW, NUM_CLASSES), np.float32)
    form.layout(NUM_CLASSES).decode(encode(LOGITS[ROW:stop], form), expected)
    assert np.array_equal(slot.logits[ROW:stop], expected)
    assert (slot.logits[stop:] == UNTOUCHED).all()


def test_inputs_are_decoded_with_their_logits(slot: Slot) -> None:
    assert decode(chunk(with_inputs=True), slot, inputs=InputEncoding.PIXELS) == BATCH - ROW
    assert np.array_equal(slot.inputs[ROW:], INPUTS[ROW:])
    assert np.array_equal(slot.logits[ROW:], LOGITS[ROW:])


WITH_NAN, WITH_INFINITY = LOGITS[ROW:].copy(), LOGITS[ROW:].copy()
WITH_NAN[0, 1], WITH_INFINITY[2, 0] = np.nan, -np.inf
SWAPPED = [*IDS[ROW : ROW + 2].tolist()[::-1], *IDS[ROW + 2 :].tolist()]
BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "gap": ({"row": ROW + 1}, "the chunk starts at row 4 of batch 4, must start at row 3 of batch 4"),
    "gap of a batch": ({"batch_index": 5, "row_start": 0}, "the chunk starts at row 0 of batch 5, must start at row 3 of batch 4"),
    "reordered": ({"row": ROW + 3, "stop": ROW + 5}, "the chunk starts at row 6 of batch 4, must start at row 3 of batch 4"),
    "repeated row": ({"row_start": ROW - 1}, "the chunk starts at row 2 of batch 4, must start at row 3 of batch 4"),
    "no rows": ({"num_rows": 0}, "num_rows is 0, must be in 1 .. 5 at row 3 of 8"),
    "too many rows": ({"num_rows": 6}, "num_rows is 6, must be in 1 .. 5 at row 3 of 8"),
    "most rows": ({"num_rows": 2**32 - 1}, "num_rows is 4294967295, must be in 1 .. 5 at row 3 of 8"),
    "fewer classes": ({"num_classes": 4}, "num_classes is 4, must be 5 as the teacher described"),
    "more classes": ({"num_classes": 2**32 - 1}, "num_classes is 4294967295, must be 5 as the teacher described"),
    "other encoding": ({"encoding": 2}, "encoding is number 2 with top_k 0, must be float32 as requested"),
    "unknown encoding": ({"encoding": 77}, "encoding 77 is unknown, must be one of 1 (float32), 2 (float16), 3 (int8), 4 (topk)"),
    "top_k": ({"top_k": 3}, "encoding is number 1 with top_k 3, must be float32 as requested"),
    "fewer ids": ({"sample_ids": IDS[ROW:-1].tolist()}, "4 sample ids were sent, must be 5"),
    "more ids": ({"sample_ids": [*IDS[ROW:].tolist(), 7]}, "6 sample ids were sent, must be 5"),
    "swapped ids": ({"sample_ids": SWAPPED}, "sample ids: row 3 has id 44, must be 43: the sample orders differ"),
    "large id": ({"sample_ids": [43, 44, 45, 46, 2**64 - 1]}, "sample ids: row 7 has id 18446744073709551615, must be 47"),
    "short payload": ({"payload": bytes(99)}, "payload has 99 bytes, must have 100 for 5 rows x 5 float32"),
    "long payload": ({"payload": bytes(101)}, "payload has 101 bytes, must have 100 for 5 rows x 5 float32"),
    "checksum": ({"crc32": 1}, "must be 00000001"),
    "NaN": ({"payload": WITH_NAN.tobytes(), "crc32": checksum(WITH_NAN.tobytes())}, "payload holds a NaN or an infinity"),
    "infinity": (
        {"payload": WITH_INFINITY.tobytes(), "crc32": checksum(WITH_INFINITY.tobytes())},
        "payload holds a NaN or an infinity",
    ),
    "unrequested inputs": ({"with_inputs": True}, "inputs are 20 bytes with encoding number 1, must be absent as requested"),
    "inputs without encoding": ({"inputs": b"abc"}, "inputs are 3 bytes with encoding number 0, must be absent as requested"),
}


@pytest.mark.promise(number=9)
@pytest.mark.promise(number=10)
@pytest.mark.parametrize("rule", BROKEN)
def test_a_chunk_that_breaks_a_rule_is_rejected_with_batch_rule_and_value(rule: str, slot: Slot) -> None:
    changes, message = BROKEN[rule]
    with pytest.raises(ChunkError) as rejected:
        decode(chunk(**changes), slot)
    assert str(rejected.value).startswith("batch 4: ")
    assert message in str(rejected.value)
    assert (slot.logits == UNTOUCHED).all()


@pytest.mark.promise(number=10)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"with_inputs": False}, "inputs are 0 bytes with encoding number 0, must be pixels as requested"),
        ({"input_encoding": 2}, "inputs are 20 bytes with encoding number 2, must be pixels as requested"),
        ({"input_encoding": 77}, "inputs are 20 bytes with encoding number 77, must be pixels as requested"),
        ({"inputs": bytes(19)}, "inputs have 19 bytes, must have 20"),
        ({"pixels_crc32": 1}, "must be 00000001"),
        ({"input_lengths": [4]}, "1 input lengths were sent with pixels"),
    ],
    ids=["absent", "stored", "unknown", "short", "checksum", "lengths"],
)
def test_inputs_that_break_a_rule_are_rejected(changes: dict[str, object], message: str, slot: Slot) -> None:
    with pytest.raises(ChunkError) as rejected:
        decode(chunk(**({"with_inputs": True} | changes)), slot, inputs=InputEncoding.PIXELS)
    assert str(rejected.value).startswith("batch 4: ")
    assert message in str(rejected.value)
    assert (slot.logits == UNTOUCHED).all()


@pytest.mark.promise(number=9)
@pytest.mark.parametrize(
    ("batch_index", "row_start", "expected"),
    [
        (INDEX, ROW, False),
        (INDEX, ROW - 1, True),
        (INDEX, ROW + 1, False),
        (INDEX - 1, BATCH, True),
        (INDEX + 1, 0, False),
        (0, 2**32 - 1, True),
        (2**64 - 1, 0, False),
    ],
)
def test_a_duplicate_starts_before_the_next_row(batch_index: int, row_start: int, expected: bool) -> None:
    received = chunk(batch_index=batch_index, row_start=row_start)
    assert is_duplicate(received, index=INDEX, row=ROW) is expected


@pytest.mark.promise(number=9)
def test_the_chunks_of_a_batch_fill_it_in_order(slot: Slot) -> None:
    slot.sample_ids[:ROW] = IDS[:ROW]
    assert decode(chunk(row=ROW, stop=5), slot) == 2
    with pytest.raises(ChunkError, match="must start at row 5 of batch 4"):
        decode(chunk(row=ROW, stop=5), slot, row=5)
    assert decode(chunk(row=5, stop=BATCH), slot, row=5) == 3
    assert np.array_equal(slot.logits[ROW:], LOGITS[ROW:])


@pytest.mark.promise(number=10)
def test_a_rejected_chunk_can_be_replaced_by_a_valid_one(slot: Slot) -> None:
    with pytest.raises(ChunkError):
        decode(chunk(with_inputs=True, crc32=1), slot, inputs=InputEncoding.PIXELS)
    decode(chunk(with_inputs=True), slot, inputs=InputEncoding.PIXELS)
    assert np.array_equal(slot.inputs[ROW:], INPUTS[ROW:])
    assert np.array_equal(slot.logits[ROW:], LOGITS[ROW:])


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("received", [b"\xff" * 100, message()[:50]], ids=["garbage", "cut"])
def test_a_message_that_is_not_a_chunk_is_rejected(received: bytes) -> None:
    with pytest.raises(ChunkError, match=rf"^batch 4: a message of {len(received)} bytes is not a LogitsChunk$"):
        parse_message(received, index=INDEX)


def test_a_message_is_parsed_to_a_chunk() -> None:
    assert parse_message(message(), index=INDEX).header.sample_ids == IDS[ROW:].tolist()
