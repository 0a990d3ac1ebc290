"""Sample order: computes the sample ids of every batch, so that both ends agree on them without sending inputs.

The formula is at the top of teacher.proto. The tests pin literal values for implementations in other languages. numpy only.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_ID_OFFSET = 0x9E3779B97F4A7C15


def batch_ids(seed: int, num_samples: int, batch_size: int, index: int) -> npt.NDArray[np.int64]:
    """Return the sample ids of batch `index`, int64 [batch_size], each in 0 .. num_samples-1.

    Epochs follow each other without a gap, so a batch may span two epochs, or more if batch_size > num_samples.
    Raises ValueError if seed is not in 0 .. 2^64-1, a size is not positive, or index is negative.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, must be at least 1")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, must be at least 1")
    if index < 0:
        raise ValueError(f"batch index is {index}, must be at least 0")
    ids = np.empty(batch_size, dtype=np.int64)
    epoch, offset = divmod(index * batch_size, num_samples)
    filled = 0
    while filled < batch_size:
        count = min(num_samples - offset, batch_size - filled)
        ids[filled : filled + count] = permutation(seed, num_samples, epoch)[offset : offset + count]
        filled += count
        epoch, offset = epoch + 1, 0
    return ids


# Room for several students with different seeds, each at the boundary of two epochs. An entry takes 8 bytes per sample.
@lru_cache(maxsize=8)
def permutation(seed: int, num_samples: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of one epoch: every id in 0 .. num_samples-1 once, int64 [num_samples], read-only because it is cached.

    Raises ValueError if seed is not in 0 .. 2^64-1.
    """
    if not 0 <= seed <= _MASK:
        raise ValueError(f"seed is {seed}, must be in 0 .. 2^64-1")
    base = (mix(mix(seed) + epoch) + _ID_OFFSET) & _MASK
    keys = _mix_array(np.arange(num_samples, dtype=np.uint64) + np.uint64(base))
    # mix is a bijection, so the keys are distinct and every sort gives the same order.
    order = np.argsort(keys).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def mix(z: int) -> int:
    """Apply the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) to one integer, modulo 2^64."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _mix_array(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply `mix` to uint64 [n]; numpy arrays wrap around modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
