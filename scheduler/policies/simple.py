"""The policies that need no rates: fixed splits, random splits, one side first, and nothing pinned."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from scheduler.model.checked_json import check_keys, is_whole, listing, shown
from scheduler.model.state import COMPUTE_FIRST, Allocation
from scheduler.policies.view import View


class Unpinned:
    """Nothing is pinned and the kernel shares the cores. What two policies of this kind differ in is their launch_options."""

    is_work_conserving: ClassVar[bool] = False
    needs_rates: ClassVar[bool] = False

    def __init__(self, name: str) -> None:
        self.name = name

    def choose(self, view: View) -> Allocation:
        """Unpinned, always."""
        return Allocation.unpinned(view.num_cores)


class Static:
    """The same split at every event. If cores are taken away, at most C-1 of those that are left."""

    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def __init__(self, comm_cores: int) -> None:
        self.comm_cores = comm_cores
        self.name = f"static:{comm_cores}"

    def choose(self, view: View) -> Allocation:
        """`comm_cores` to comm."""
        return Allocation.split(min(self.comm_cores, view.num_cores - 1), view.num_cores)


class Random:
    """A split uniform in 1..C-1 at every event, from a generator of its own."""

    name: ClassVar[str] = "random"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)

    def choose(self, view: View) -> Allocation:
        """The next draw."""
        if view.num_cores == 1:
            return Allocation.all_comp(1)
        return Allocation.split(self._generator.randint(1, view.num_cores - 1), view.num_cores)

    def to_json(self) -> dict[str, Any]:
        """The state of the generator."""
        version, internal, _ = self._generator.getstate()
        return {"version": version, "internal": list(internal)}

    def recall(self, data: Any, where: str) -> None:
        """Draw on from there."""
        check_keys(data, required=("version", "internal"), where=where)
        internal = listing(data["internal"], where)
        if not all(is_whole(value) and 0 <= value < 1 << 32 for value in internal):
            raise ValueError(f"{where}: {shown(internal)} is no state of a generator")
        try:
            self._generator.setstate((data["version"], tuple(internal), None))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: no state of a generator: {error}") from None


class CommPriority:
    """Exclusive: all cores to comm until all comm is done, then all to comp."""

    name: ClassVar[str] = "comm-priority"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def choose(self, view: View) -> Allocation:
        """All to comm."""
        return Allocation.all_comm(view.num_cores)


class CompPriority:
    """Exclusive: all cores to comp whenever it can run, else to comm."""

    name: ClassVar[str] = "comp-priority"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def choose(self, view: View) -> Allocation:
        """All to comp."""
        return Allocation.all_comp(view.num_cores)


class ComputeFirst:
    """Training on every core, and comm behind it on every core, with what training leaves."""

    name: ClassVar[str] = COMPUTE_FIRST
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def choose(self, view: View) -> Allocation:
        """Every core to both, comm at the lowest priority."""
        return Allocation.sharing(COMPUTE_FIRST, view.num_cores)
