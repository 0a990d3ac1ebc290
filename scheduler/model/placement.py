"""From counts of cores to core ids: comm takes the lowest, comp the highest.

Why comm the lowest: on a Raspberry Pi the network card's interrupts land on core 0, and the packets are warm in its cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from scheduler.model.state import Allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The core ids of both sides. With `is_pinned` False both may use every core, and no mask needs to be set. With `is_shared`
    comm may run on the cores of comp, behind it.

    `comp` is ordered, because each thread of the training team gets a core of its own.
    """

    comm: frozenset[int]
    comp: tuple[int, ...]
    is_pinned: bool
    is_shared: bool = False


def place(allocation: Allocation, cores: Sequence[int]) -> Placement:
    """The cores of `allocation` among `cores`, the ids that this process may use, in any order.

    A side with no cores gets an empty set. ValueError if the allocation needs more cores than there are.
    """
    return _place(allocation, tuple(cores))


@cache
def _place(allocation: Allocation, cores: tuple[int, ...]) -> Placement:
    ids = sorted(set(cores))
    shares_cores = not allocation.pinned or allocation.shared is not None
    needed = max(allocation.comm, allocation.comp) if shares_cores else allocation.comm + allocation.comp
    if needed > len(ids):
        raise ValueError(f"'{allocation}' needs {needed} cores, but only {len(ids)} may be used: {ids}")
    return Placement(
        comm=frozenset(ids[: allocation.comm]),
        comp=tuple(ids[len(ids) - allocation.comp :]),
        is_pinned=allocation.pinned,
        is_shared=allocation.shared is not None,
    )
