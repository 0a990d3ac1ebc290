"""The sample order, pinned by value for implementations in other languages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.wire.order import batch_ids, mix, permutation

LARGEST_SEED = 2**64 - 1


def by_the_letter_of_the_schema(seed: int, epoch: int, num_samples: int) -> list[int]:
    """The formula at the top of teacher.proto in plain integers, sample by sample."""

    def mix(z: int) -> int:
        z &= LARGEST_SEED
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & LARGEST_SEED
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & LARGEST_SEED
        return z ^ (z >> 31)

    def key(i: int) -> int:
        return mix(mix(mix(seed) + epoch) + i + 0x9E3779B97F4A7C15)

    return sorted(range(num_samples), key=lambda i: (key(i), i))


def test_the_mixer_is_the_published_splitmix64() -> None:
    """Its first output for seed 0, which every implementation documents."""
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [3, 5, 7, 4, 1, 2, 8, 9, 6, 0]),
        (0, 1, [7, 6, 1, 4, 0, 8, 2, 9, 5, 3]),
        (1, 0, [7, 8, 2, 0, 3, 5, 4, 6, 1, 9]),
        (LARGEST_SEED, 2**40, [9, 6, 7, 8, 2, 5, 0, 4, 3, 1]),
    ],
)
def test_an_epoch_of_ten_samples_has_these_values_in_every_language(seed: int, epoch: int, expected: list[int]) -> None:
    assert permutation(seed, 10, epoch).tolist() == expected


@pytest.mark.parametrize(
    ("seed", "num_samples", "batch_size", "index", "expected"),
    [
        (42, 1438, 6, 0, [67, 832, 265, 904, 511, 1299]),
        # The first six ids end epoch 0 of 1438 samples, the last two begin epoch 1.
        (42, 1438, 8, 179, [991, 1224, 654, 290, 465, 842, 101, 983]),
        (7, 20_000, 4, 2**31 - 1, [1364, 12374, 1965, 3783]),
        # A batch larger than the data set spans several epochs.
        (3, 4, 10, 1, [2, 0, 3, 1, 2, 0, 1, 3, 2, 0]),
    ],
)
def test_a_batch_has_these_values_in_every_language(
    seed: int, num_samples: int, batch_size: int, index: int, expected: list[int]
) -> None:
    ids = batch_ids(seed, num_samples, batch_size, index)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected


@given(seed=st.integers(0, LARGEST_SEED), epoch=st.integers(0, 2**43), num_samples=st.integers(1, 60))
def test_the_order_is_the_formula_of_the_schema(seed: int, epoch: int, num_samples: int) -> None:
    assert permutation(seed, num_samples, epoch).tolist() == by_the_letter_of_the_schema(seed, epoch, num_samples)


@given(seed=st.integers(0, LARGEST_SEED), num_samples=st.integers(1, 50), batch_size=st.integers(1, 120))
def test_batches_are_the_concatenated_epochs(seed: int, num_samples: int, batch_size: int) -> None:
    num_batches = 3
    num_epochs = num_batches * batch_size // num_samples + 1
    endless = np.concatenate([permutation(seed, num_samples, epoch) for epoch in range(num_epochs)])
    batches = np.concatenate([batch_ids(seed, num_samples, batch_size, index) for index in range(num_batches)])
    assert batches.tolist() == endless[: num_batches * batch_size].tolist()


@given(seed=st.integers(0, LARGEST_SEED), epoch=st.integers(0, 1000), num_samples=st.integers(1, 500))
def test_every_epoch_visits_every_sample_once(seed: int, epoch: int, num_samples: int) -> None:
    assert sorted(permutation(seed, num_samples, epoch).tolist()) == list(range(num_samples))


def test_a_batch_does_not_depend_on_earlier_requests() -> None:
    first = batch_ids(5, 100, 32, 9)
    for other in range(20):
        batch_ids(other, 100, 32, other)
    assert batch_ids(5, 100, 32, 9).tolist() == first.tolist()


def test_writing_into_a_batch_does_not_change_the_order() -> None:
    expected = batch_ids(0, 10, 10, 0).tolist()
    batch_ids(0, 10, 10, 0)[:] = -1
    assert batch_ids(0, 10, 10, 0).tolist() == expected
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 10, 0)[0] = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 2, 0), "seed is -1, must be in 0 .. 2^64-1"),
        ((2**64, 10, 2, 0), "seed is 18446744073709551616, must be in 0 .. 2^64-1"),
        ((0, 0, 2, 0), "num_samples is 0, must be at least 1"),
        ((0, 10, 0, 0), "batch_size is 0, must be at least 1"),
        ((0, 10, 2, -1), "batch index is -1, must be at least 0"),
    ],
)
def test_invalid_arguments_of_the_order_are_rejected_by_name(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        batch_ids(*arguments)
    assert str(refusal.value) == message
