"""Random changes of samples: what crop-flip may change, and functions of the user."""

import numpy as np
import pytest

from edge_student.training.augment import augmented, check_augment, crop_flip


def test_crop_flip_moves_by_an_eighth_at_most_and_mirrors_half() -> None:
    images = np.zeros((400, 3, 16, 24), np.uint8)
    images[:, :, 8, 10] = 200
    changed = crop_flip(images, np.random.default_rng(0))
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
    _, _, rows, columns = np.nonzero(changed[:, :1])
    assert (rows.min(), rows.max()) == (6, 10)  # 8 moved by up to 2
    is_mirrored = columns > 24 // 2 - 1 + 2  # 10 +- 3, or 13 +- 3
    assert set(columns) == set(range(7, 17))
    assert 0.2 < is_mirrored.mean() < 0.8
    assert len(rows) == 400  # no image lost its point


def test_the_same_part_of_a_cycle_has_the_same_changes() -> None:
    images = np.arange(4 * 3 * 16 * 16, dtype=np.uint8).reshape(4, 3, 16, 16)

    def change(cycle: int, part: int) -> np.ndarray:
        return augmented(crop_flip, images, seed=5, cycle=cycle, part=part)

    assert np.array_equal(change(3, 1), change(3, 1))
    assert not np.array_equal(change(3, 1), change(3, 0))
    assert not np.array_equal(change(3, 1), change(4, 1))


def test_a_function_of_the_user_must_keep_shape_and_type() -> None:
    samples = np.ones((2, 5), np.float32)
    noise = augmented(
        lambda rows, random: rows + random.normal(size=rows.shape).astype(np.float32), samples, seed=1, cycle=0, part=0
    )
    assert noise.std() > 0
    with pytest.raises(ValueError, match=r"--augment returned float64 \[2, 5\] in cycle 0, must be float32 \[2, 5\]"):
        augmented(lambda rows, random: rows * np.float64(2) + random.normal(size=5), samples, seed=1, cycle=0, part=0)
    with pytest.raises(ValueError, match="--augment failed in cycle 0: IndexError"):
        augmented(lambda rows, random: rows[9], samples, seed=1, cycle=0, part=0)


def test_crop_flip_needs_images() -> None:
    with pytest.raises(ValueError, match=r"--augment is crop-flip, but samples of windows have shape \[3, 100\]"):
        check_augment(crop_flip, (3, 100), "windows")
