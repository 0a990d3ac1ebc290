"""The receiver and a teacher that breaks streams, sends duplicates, sends wrong values, or sends garbage."""

import grpc
import numpy as np
import pytest
from scripted_teacher import (
    INPUT_SHAPE,
    NUM_CLASSES,
    NUM_SAMPLES,
    Fault,
    RunningTeacher,
    ScriptedTeacher,
    broken,
    changed,
    inputs_of,
    logits_of,
)

from edge_student.ipc.messages import Configure
from edge_student.ipc.ring import RingShape, Slot
from edge_student.receive import receiver as receiver_module
from edge_student.receive.description import RequestRefusedError
from edge_student.receive.receiver import BadTeacherError, Receiver
from edge_student.receive.retry import LinkLostError
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import Encoding, Format, checksum, decode_into, encode
from edgekd.wire.order import batch_ids

BATCH, CYCLES, SEED = 7, 6, 3
NO_INPUTS = np.zeros((BATCH, 0, 0, 0), np.uint8)


def configure(address: str, **changes: object) -> Configure:
    fields = {
        "teacher": address,
        "batch_size": BATCH,
        "seed": SEED,
        "encoding": "float32",
        "top_k": 0,
        "window": 4,
        "max_wait_s": 20.0,
        "log_level": "info",
        "niceness": 0,
        "is_idle": False,
    }
    return Configure(**(fields | changes))


def receive_all(teacher: ScriptedTeacher, **changes: object) -> tuple[np.ndarray, Receiver, list[str]]:
    """Return all received batches [CYCLES, BATCH, classes], the receiver, and the reported failures."""
    troubles: list[str] = []
    with RunningTeacher(teacher) as running:
        receiver = Receiver(configure(running.address, **changes), lambda cause, attempt: troubles.append(cause))
        receiver.describe()
        out = np.full((CYCLES, BATCH, NUM_CLASSES), np.nan, np.float32)
        ids = np.zeros(BATCH, np.int64)
        try:
            for index in range(CYCLES):
                receiver.receive(index, CYCLES, Slot(ids, out[index], NO_INPUTS), lambda: None)
                assert ids.tolist() == batch_ids(SEED, NUM_SAMPLES, BATCH, index).tolist()
        finally:
            receiver.close()
    return out, receiver, troubles


def expected() -> np.ndarray:
    return np.stack([logits_of(batch_ids(SEED, NUM_SAMPLES, BATCH, index)) for index in range(CYCLES)])


def poisoned(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
    values = np.frombuffer(chunk.payload, np.float32).copy()
    values[1] = np.nan
    chunk.payload = values.tobytes()
    chunk.crc32 = checksum(chunk.payload)
    return [chunk]


def test_a_whole_session_takes_as_few_requests_as_windows() -> None:
    teacher = ScriptedTeacher()
    out, receiver, troubles = receive_all(teacher)
    assert np.array_equal(out, expected())
    assert [(request.start, request.count) for request in teacher.requests] == [(0, 4), (4, 2)]
    assert (receiver.num_reconnects, troubles) == (0, [])


def test_float16_arrives_within_its_rounding() -> None:
    out, _, _ = receive_all(ScriptedTeacher(), encoding="float16")
    assert np.array_equal(out, expected().astype(np.float16).astype(np.float32))


def test_a_stream_that_breaks_in_the_middle_of_a_batch_is_resumed_at_that_batch() -> None:
    teacher = ScriptedTeacher({4: broken(grpc.StatusCode.UNAVAILABLE)})  # second chunk of batch 1
    out, receiver, troubles = receive_all(teacher)
    assert np.array_equal(out, expected())
    assert [request.start for request in teacher.requests] == [0, 1, 5]
    assert receiver.num_reconnects == 1
    assert "UNAVAILABLE" in troubles[0]


@pytest.mark.promise(number=9)
@pytest.mark.promise(number=10)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (changed(crc32=1), "CRC-32"),
        (changed(payload=b"short"), "bytes"),
        (poisoned, "NaN"),
        (changed(num_classes=NUM_CLASSES + 1), "num_classes"),
        (changed(num_rows=200), "rows"),
        (changed(num_rows=0), "rows"),
        (changed(encoding=2), "encoding"),
        (changed(encoding=77), "encoding"),
        (changed(top_k=2), "top_k 2"),
        (changed(sample_ids=[1, 2, 3]), "sample ids"),
        (changed(sample_ids=[2**63, 2**64 - 1, 0]), "sample ids"),
        (changed(batch_index=9), "batch 9"),
        (lambda chunk: [], "must start at"),
    ],
)
def test_a_chunk_that_breaks_a_rule_is_rejected_and_requested_again(fault: Fault, reason: str) -> None:
    out, receiver, troubles = receive_all(ScriptedTeacher({3: fault}))
    assert np.array_equal(out, expected())
    assert receiver.num_refused_chunks == 1
    assert reason in troubles[0]


@pytest.mark.promise(number=9)
def test_a_duplicated_chunk_is_dropped_and_counted() -> None:
    out, receiver, troubles = receive_all(ScriptedTeacher({3: lambda chunk: [chunk, chunk]}))
    assert np.array_equal(out, expected())
    assert (receiver.num_duplicate_chunks, troubles) == (1, [])


@pytest.mark.promise(number=10)
def test_a_teacher_that_keeps_sending_garbage_ends_the_run_with_the_cause() -> None:
    with pytest.raises(BadTeacherError, match=r"rejected 5 chunks of one batch, the last one: batch 0: .*CRC-32"):
        receive_all(ScriptedTeacher(dict.fromkeys(range(100), changed(crc32=1))))


@pytest.mark.parametrize("code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_rejected_request_is_not_retried(code: grpc.StatusCode) -> None:
    teacher = ScriptedTeacher({0: broken(code)})
    with pytest.raises(RequestRefusedError, match=code.name):
        receive_all(teacher)
    assert len(teacher.requests) == 1


def test_a_teacher_of_another_protocol_version_is_rejected() -> None:
    with pytest.raises(RequestRefusedError, match="protocol version 2"):
        receive_all(ScriptedTeacher(protocol_version=2))


def test_a_teacher_without_the_requested_encoding_is_rejected() -> None:
    with pytest.raises(RequestRefusedError, match=r"cannot send encoding float16; it can send float32, int8$"):
        receive_all(ScriptedTeacher(encodings=[teacher_pb2.ENCODING_FLOAT32, 3, 77]), encoding="float16")


def test_top_k_must_be_below_the_number_of_classes() -> None:
    with pytest.raises(RequestRefusedError, match=r"cannot send encoding topk:5: top_k is 5, must be below the number of classes"):
        receive_all(ScriptedTeacher(), encoding="topk", top_k=5)


@pytest.mark.parametrize(("encoding", "top_k"), [("int8", 0), ("topk", 2)])
def test_other_encodings_arrive_as_they_were_sent(encoding: str, top_k: int) -> None:
    out, _, _ = receive_all(ScriptedTeacher(), encoding=encoding, top_k=top_k)
    form = Format(Encoding(encoding), top_k)
    flat = expected().reshape(-1, NUM_CLASSES)
    payload, decoded = encode(flat, form), np.empty_like(flat)
    decode_into(payload, form=form, rows=len(flat), num_classes=NUM_CLASSES, crc32=checksum(payload), out=decoded)
    assert np.array_equal(out.reshape(-1, NUM_CLASSES), decoded)


def test_an_absent_teacher_is_an_error_with_its_address_after_max_wait() -> None:
    with RunningTeacher(ScriptedTeacher()) as running:
        address = running.address
    receiver = Receiver(configure(address, max_wait_s=0.5), lambda cause, attempt: None)
    with pytest.raises(LinkLostError, match=f"gave up after 0.5 s.*{address}.*UNAVAILABLE"):
        receiver.describe()
    receiver.close()


def test_a_long_hold_before_a_broken_stream_does_not_count_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time without a failure does not count towards --max-wait."""
    clock = {"now": 0.0}
    monkeypatch.setattr("edge_student.receive.retry.time.monotonic", lambda: clock["now"])
    teacher = ScriptedTeacher({4: broken(grpc.StatusCode.UNAVAILABLE)})
    with RunningTeacher(teacher) as running:
        receiver = Receiver(configure(running.address, max_wait_s=10.0), lambda cause, attempt: None)
        receiver.describe()
        out = np.zeros((2, BATCH, NUM_CLASSES), np.float32)

        def held_for_long() -> None:
            clock["now"] += 100.0

        for index in range(2):
            receiver.receive(index, 2, Slot(np.zeros(BATCH, np.int64), out[index], NO_INPUTS), held_for_long)
        receiver.close()
    assert np.array_equal(out, expected()[:2])
    assert receiver.num_reconnects == 1


def receive_inputs(teacher: ScriptedTeacher, **changes: object) -> tuple[list[Slot], Receiver]:
    """Return all batches with their inputs, and the receiver."""
    slots = []
    with RunningTeacher(teacher) as running:
        receiver = Receiver(configure(running.address, **({"inputs": "pixels"} | changes)), lambda cause, attempt: None)
        receiver.describe()
        try:
            for index in range(CYCLES):
                shape = RingShape(num_slots=1, batch_size=BATCH, num_classes=NUM_CLASSES, input_shape=INPUT_SHAPE)
                slots.append(Slot.empty(shape))
                receiver.receive(index, CYCLES, slots[-1], lambda: None)
        finally:
            receiver.close()
    return slots, receiver


def test_inputs_are_received_with_their_logits() -> None:
    slots, _ = receive_inputs(ScriptedTeacher())
    assert np.array_equal(np.stack([slot.logits for slot in slots]), expected())
    assert all(np.array_equal(slot.inputs, inputs_of(slot.sample_ids)) for slot in slots)


@pytest.mark.parametrize(
    "fault",
    [
        changed(pixels_crc32=1),
        changed(inputs=b"short"),
        changed(inputs=bytes(3 << 20)),
        changed(input_encoding=0),
        changed(input_encoding=2),
        changed(input_encoding=77),
        lambda chunk: [chunk.MergeFrom(teacher_pb2.LogitsChunk(input_lengths=[1])) or chunk],
    ],
    ids=["checksum", "short", "oversized", "none", "stored", "unknown", "lengths"],
)
def test_inputs_that_break_a_rule_are_rejected_and_requested_again(fault: Fault) -> None:
    slots, receiver = receive_inputs(ScriptedTeacher({2: fault}))
    assert all(np.array_equal(slot.inputs, inputs_of(slot.sample_ids)) for slot in slots)
    assert (receiver.num_refused_chunks, receiver.num_reconnects) == (1, 1)


def test_unrequested_inputs_are_rejected() -> None:
    out, receiver, troubles = receive_all(ScriptedTeacher({1: changed(inputs=b"surprise")}))
    assert np.array_equal(out, expected())
    assert (receiver.num_refused_chunks, "inputs are 8 bytes with encoding number 0, must be absent" in troubles[0]) == (1, True)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"input_encodings": []}, r"cannot send inputs as pixels; it can send no inputs: give this edge"),
        ({"input_encodings": [2, 99]}, r"cannot send inputs as pixels; it can send stored: give this edge"),
        ({"input_shape": [1, 2, 3, 4, 5]}, r"has inputs of shape \(1, 2, 3, 4, 5\), must have at most 4 dimensions"),
        ({"input_dtype": "float64"}, r"has inputs of an unknown type, must be uint8 or float32"),
        ({"input_dtype": "float32"}, r"cannot send inputs as float32; it can send pixels"),
        ({"input_dtype": "float32", "input_encodings": [3], "input_shape": [1, 1024, 1024]}, r"and at most 2097152 bytes"),
        ({"class_names": ["a"]}, r"has 1 class names, must have"),
        ({"input_shape": [1, 2, 0]}, r"has inputs of shape"),
        ({"input_shape": [2**32 - 1] * 3}, r"and at most 2097152 bytes"),
    ],
)
def test_a_teacher_that_cannot_send_its_inputs_is_rejected(description: dict[str, object], message: str) -> None:
    with pytest.raises(RequestRefusedError, match=message):
        receive_inputs(ScriptedTeacher(**description))


def test_each_receiver_requests_only_its_share_of_the_batches() -> None:
    teacher = ScriptedTeacher({9: broken(grpc.StatusCode.UNAVAILABLE)})
    with RunningTeacher(teacher) as running:
        first = Receiver(configure(running.address, window=2), lambda cause, attempt: None)
        first.describe()
        receivers = first.divide(3)
        assert receivers[0] is first
        out = np.full((20, BATCH, NUM_CLASSES), np.nan, np.float32)
        for number, receiver in enumerate(receivers):
            for index in range(number, 20, 3):
                receiver.receive(index, 20, Slot(np.zeros(BATCH, np.int64), out[index], NO_INPUTS), lambda: None)
            receiver.close()
    requested = np.stack([logits_of(batch_ids(SEED, NUM_SAMPLES, BATCH, index)) for index in range(20)])
    assert np.array_equal(out, requested)
    assert sum(receiver.num_reconnects for receiver in receivers) == 1
    starts = [(request.start, request.count, request.stride) for request in teacher.requests if request.start % 3 == 1]
    assert starts == [(1, 2, 3), (7, 2, 3), (13, 2, 3), (19, 1, 3)]


def test_a_teacher_without_strides_serves_one_stream() -> None:
    with RunningTeacher(ScriptedTeacher(max_stride=0)) as running:
        receiver = Receiver(configure(running.address), lambda cause, attempt: None)
        receiver.describe()
        assert receiver.divide(4) == [receiver]
        assert receiver.stride == 1
        receiver.close()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"teacher_digest": "/".join([".."] * 3 + ["x" * 55])}, "an invalid teacher digest"),
        ({"teacher_digest": ""}, "an invalid teacher digest"),
        ({"dataset_digest": "D" * 64}, "an invalid data set digest"),
        ({"dataset_digest": "d" * 65}, "an invalid data set digest"),
        ({"num_samples": 0}, "0 samples, must be in 1 .. 134217728"),
        ({"num_samples": 2**32}, "4294967296 samples"),
        ({"max_window": 0}, "windows of 0 batches"),
        ({"dataset_name": "a\x1b[2Jb"}, "an invalid data set name"),
        ({"dataset_name": "a" * 1001}, "an invalid data set name"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2**32 - 1}, "num_classes is 4294967295"),
        ({"max_batch_size": 0}, "must be at most 0, the teacher's limit"),
    ],
)
def test_an_invalid_description_is_rejected(description: dict[str, object], message: str) -> None:
    with pytest.raises(RequestRefusedError, match=message):
        receive_all(ScriptedTeacher(**description))


@pytest.mark.promise(number=9)
def test_a_teacher_that_sends_endless_duplicates_ends_the_run_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "_MAX_DUPLICATES", 20)

    def again(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        return [teacher_pb2.LogitsChunk(batch_index=0, row_start=0)] * 50

    with pytest.raises(
        BadTeacherError, match=r"rejected 5 chunks of one batch, the last one: batch 1: more than 20 duplicate chunks"
    ):
        receive_all(ScriptedTeacher(dict.fromkeys(range(3, 100), again)))


def test_an_invalid_default_names_its_flag() -> None:
    with pytest.raises(RequestRefusedError, match=r"below the number of classes, 5; choose fewer with --top-k$"):
        receive_all(ScriptedTeacher(), encoding="topk", top_k=10)
