"""The hybrid source: which batches it reads from the cache, and where its window over the wire ends."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import Slot
from edge_student.receive.receiver import OnRows
from edge_student.receive.source import Hybrid
from edgekd.wire.codec import Encoding, Format, encode
from edgekd.wire.order import batch_ids

NUM_SAMPLES, NUM_CLASSES, BATCH, SEED, WINDOW = 40, 3, 4, 7, 5
EPOCH = NUM_SAMPLES // BATCH
FORM = Format(Encoding.FLOAT32, 0)


def ids_of(index: int) -> np.ndarray:
    return batch_ids(SEED, NUM_SAMPLES, BATCH, index)


def logits_of(ids: np.ndarray) -> np.ndarray:
    return (ids[:, None] * 10.0 + np.arange(NUM_CLASSES)).astype(np.float32)


class FakeReceiver:
    """Delivers every batch, and records index and stop of each request."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.requests: list[tuple[int, int]] = []

    def describe(self) -> Described:
        return Described(
            teacher_digest="a" * 64, dataset_digest="b" * 64, dataset_name="tiny", num_samples=NUM_SAMPLES, num_classes=NUM_CLASSES
        )

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None], on_rows: OnRows) -> int:
        self.requests.append((index, stop))
        on_rows(ids_of(index), encode(logits_of(ids_of(index)), FORM), slot.inputs)
        return 100

    def close(self) -> None:
        pass


class Received:
    """A hybrid source with these batches in its cache, and its requests over the wire."""

    def __init__(self, folder: Path, cached: tuple[int, ...], *, stride: int = 1) -> None:
        self.receiver = FakeReceiver(stride)
        config = Configure(
            teacher="vm:1",
            batch_size=BATCH,
            seed=SEED,
            encoding="float32",
            top_k=0,
            window=WINDOW,
            max_wait_s=1.0,
            log_level="info",
            niceness=0,
            is_idle=False,
            logits="hybrid",
            cache=str(folder),
        )
        self.source = Hybrid(self.receiver, config)  # type: ignore[arg-type]
        self.source.describe()
        for index in cached:
            self.source.cache.put(ids_of(index), encode(logits_of(ids_of(index)), FORM), np.zeros((BATCH, 0, 0, 0), np.uint8))

    def receive(self, index: int, stop: int) -> int:
        slot = Slot(np.zeros(BATCH, np.int64), np.zeros((BATCH, NUM_CLASSES), np.float32), np.zeros((BATCH, 0, 0, 0), np.uint8))
        num_bytes = self.source.receive(index, stop, slot, lambda: None)
        if num_bytes == 0:
            assert slot.sample_ids.tolist() == ids_of(index).tolist()
            assert np.array_equal(slot.logits, logits_of(ids_of(index)))
        return num_bytes


@pytest.mark.parametrize(
    ("cached", "stride", "index", "stop", "wire_stop"),
    [
        ((), 1, 0, 8, WINDOW),  # the window limits
        ((), 1, 0, 3, 3),  # the end of the run limits
        ((2,), 1, 0, 8, 2),  # a cached batch does not cross the wire again
        ((7,), 1, 0, 8, WINDOW),  # a cached batch past the window does not matter
        ((), 1, EPOCH - 1, 3 * EPOCH, EPOCH + 4),
        ((), 2, 0, 3 * EPOCH, EPOCH),  # one of two streams: no window reaches into the second epoch
        ((), 2, EPOCH, 3 * EPOCH, 2 * EPOCH),
        ((3,), 2, 0, EPOCH, EPOCH),  # batch 3 belongs to the other stream
        ((4,), 2, 0, EPOCH, 4),
    ],
)
def test_a_window_ends_at_the_next_cached_batch(
    cached: tuple[int, ...], stride: int, index: int, stop: int, wire_stop: int, tmp_path: Path
) -> None:
    run = Received(tmp_path, cached, stride=stride)
    assert run.receive(index, stop) == 100
    assert run.receiver.requests == [(index, wire_stop)]
    run.source.close()


def test_a_batch_whose_rows_the_window_itself_brings_ends_the_window(tmp_path: Path) -> None:
    """Every batch of the second epoch consists of samples of the first, so the last batches of epoch 1 complete the cache."""
    run = Received(tmp_path, tuple(range(EPOCH - 1)))
    assert run.receive(EPOCH - 1, 3 * EPOCH) == 100
    assert run.receiver.requests == [(EPOCH - 1, EPOCH)]
    assert [run.receive(index, 3 * EPOCH) for index in range(EPOCH, 2 * EPOCH)] == [0] * EPOCH
    run.source.close()


def test_inside_a_window_the_cache_is_not_asked_again(tmp_path: Path) -> None:
    run = Received(tmp_path, (3,))
    assert [run.receive(index, 6) for index in range(6)] == [100, 100, 100, 0, 100, 100]
    assert run.receiver.requests == [(0, 3), (1, 3), (2, 3), (4, 6), (5, 6)]
    run.source.close()
