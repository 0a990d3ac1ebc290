"""Map the core counts of an allocation to core ids: comm gets the lowest ids, comp the highest.

Comm gets the lowest because a Raspberry Pi handles the network card's interrupts on core 0, so its cache holds the packets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from scheduler.model.state import ELASTIC, Allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The core ids of both sides. With `is_pinned` False both sides may use every core, and no mask is set.

    With `is_shared` comm may run on the cores of comp: at idle priority, or at normal priority beside `num_idle_workers` compute
    workers of idle priority. `comp` is ordered, because each compute worker gets its own core.
    """

    comm: frozenset[int]
    comp: tuple[int, ...]
    is_pinned: bool
    is_shared: bool = False
    num_idle_workers: int = 0

    @property
    def comm_is_idle(self) -> bool:
        """Whether comm has idle priority."""
        return self.is_shared and not self.num_idle_workers


def place(allocation: Allocation, cores: Sequence[int]) -> Placement:
    """Choose the cores of `allocation` from `cores`, the ids that this process may use, in any order.

    A side without cores gets an empty set. Raises ValueError if the allocation needs more cores than are available.
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
        num_idle_workers=allocation.comm if allocation.shared == ELASTIC else 0,
    )
