"""Policies that need no rates: fixed splits, random splits, priority for one side, and no pinning."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from scheduler.model.checked_json import check_keys, is_whole, listing, shown
from scheduler.model.state import COMPUTE_FIRST, ELASTIC, Allocation
from scheduler.policies.view import View


class Unpinned:
    """Nothing is pinned; the kernel schedules both sides. Policies of this kind differ only in their launch_options."""

    is_work_conserving: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def choose(self, view: View) -> Allocation:
        """Return the unpinned allocation."""
        return Allocation.unpinned(view.num_cores)


class Static:
    """The same split at every event. If cores are taken away, comm keeps at most C-1 of the remaining C cores."""

    is_work_conserving: ClassVar[bool] = True

    def __init__(self, comm_cores: int) -> None:
        self.comm_cores = comm_cores
        self.name = f"static:{comm_cores}"

    def choose(self, view: View) -> Allocation:
        """Return the split with `comm_cores` cores for comm."""
        return Allocation.split(min(self.comm_cores, view.num_cores - 1), view.num_cores)


class Random:
    """A random split at every event, uniform in 1..C-1, from its own generator."""

    name: ClassVar[str] = "random"
    is_work_conserving: ClassVar[bool] = True

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)

    def choose(self, view: View) -> Allocation:
        """Draw the next split."""
        if view.num_cores == 1:
            return Allocation.all_comp(1)
        return Allocation.split(self._generator.randint(1, view.num_cores - 1), view.num_cores)

    def to_json(self) -> dict[str, Any]:
        """Return the state of the generator."""
        version, internal, _ = self._generator.getstate()
        return {"version": version, "internal": list(internal)}

    def recall(self, data: Any, where: str) -> None:
        """Restore the state of the generator. Raises ValueError."""
        check_keys(data, required=("version", "internal"), where=where)
        internal = listing(data["internal"], where)
        if not all(is_whole(value) and 0 <= value < 1 << 32 for value in internal):
            raise ValueError(f"{where}: {shown(internal)} is not a generator state")
        try:
            self._generator.setstate((data["version"], tuple(internal), None))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: this is not a generator state: {error}") from None


class CommPriority:
    """Exclusive: all cores to comm until all batches are received, then all cores to comp."""

    name: ClassVar[str] = "comm-priority"
    is_work_conserving: ClassVar[bool] = True

    def choose(self, view: View) -> Allocation:
        """Return the allocation of all cores to comm."""
        return Allocation.all_comm(view.num_cores)


class CompPriority:
    """Exclusive: all cores to comp whenever comp can run, otherwise all cores to comm."""

    name: ClassVar[str] = "comp-priority"
    is_work_conserving: ClassVar[bool] = True

    def choose(self, view: View) -> Allocation:
        """Return the allocation of all cores to comp."""
        return Allocation.all_comp(view.num_cores)


class ComputeFirst:
    """Both sides on every core; comm has idle priority and uses the CPU time that training leaves."""

    name: ClassVar[str] = COMPUTE_FIRST
    is_work_conserving: ClassVar[bool] = True

    def choose(self, view: View) -> Allocation:
        """Return the shared allocation compute-first."""
        return Allocation.sharing(COMPUTE_FIRST, view.num_cores)


class Elastic:
    """Compute uses every core. On comm's cores it has idle priority, so comm takes what it needs at once and compute the rest.

    One team of threads (`has_workers` is false) has one priority and leaves comm's cores.
    """

    name: ClassVar[str] = ELASTIC
    is_work_conserving: ClassVar[bool] = True

    def __init__(self, *, has_workers: bool) -> None:
        self._has_workers = has_workers

    def choose(self, view: View) -> Allocation:
        """Return the shared allocation elastic with a quarter of the cores for comm, at least one; for a team the split."""
        if view.num_cores == 1:
            return Allocation.all_comp(1)
        comm_cores = max(view.num_cores // 4, 1)
        return Allocation.elastic(comm_cores, view.num_cores) if self._has_workers else Allocation.split(comm_cores, view.num_cores)
