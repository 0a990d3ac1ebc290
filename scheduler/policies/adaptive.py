"""`adaptive`: comm gets what keeps the prefetch buffer filled, and training gets all other time of all cores.

The level of the buffer shows which side is short, as the backlog of a queue does (backpressure, Tassiulas and Ephremides, 1992):

- While the buffer is nearly full, training runs first: comm has idle priority on every core and uses what training leaves.
- While it is nearly empty, comm runs first, on cores of its own. A compute worker of idle priority uses what comm leaves there.

No core is idle while one of the sides could use it, and a decision needs no rates, so there is nothing to learn and nothing to
search for (docs/decisions/031). In a simulation, where rates predict every task exactly, it plans instead (`lookahead.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from scheduler.model.checked_json import check_keys
from scheduler.model.state import COMPUTE_FIRST, Allocation
from scheduler.policies.lookahead import Lookahead
from scheduler.policies.simple import Elastic
from scheduler.policies.view import View

LOW, HIGH = 0.25, 0.75
"""Levels of the buffer, as shares of its size: below the first comm runs first, from the second on training does."""

UNLIMITED = 16
"""Number of batches that count as a full buffer if there is no limit."""


class Adaptive:
    """Follows the level of the prefetch buffer. With `plans`, which needs exact rates, it plans with them.

    Without compute workers (`has_workers`), comm's own cores are taken from the team. Without the right to change priorities in
    both directions (`may_change_priority`), comm is held while the buffer is nearly full. With one core, training runs first.
    """

    name: ClassVar[str] = "adaptive"
    is_work_conserving: ClassVar[bool] = True

    def __init__(self, *, plans: bool, has_workers: bool, may_change_priority: bool) -> None:
        self._lookahead = Lookahead()
        self._elastic = Elastic(has_workers=has_workers)
        self._may_change_priority = may_change_priority
        self._plans = plans
        self._is_filling = True

    def choose(self, view: View) -> Allocation:
        """Return the allocation for the level of the buffer, or of the plan."""
        if view.num_cores == 1:
            return Allocation.sharing(COMPUTE_FIRST, 1) if self._may_change_priority and not self._plans else Allocation.all_comp(1)
        if self._plans:
            return self._lookahead.choose(view)
        level = (view.num_comm - view.num_backward) / (view.prefetch or UNLIMITED)
        self._is_filling = level < (HIGH if self._is_filling else LOW)
        if self._is_filling:
            return self._elastic.choose(view)
        if self._may_change_priority:
            return Allocation.sharing(COMPUTE_FIRST, view.num_cores)
        return Allocation.all_comp(view.num_cores)

    def to_json(self) -> dict[str, Any]:
        """Return whether the buffer is being filled."""
        return {"is_filling": self._is_filling}

    def recall(self, data: Any, where: str) -> None:
        """Restore the state of `to_json`. Earlier versions stored a race of strategies, which is ignored. Raises ValueError."""
        if isinstance(data, dict) and "race" in data:
            return
        check_keys(data, required=("is_filling",), where=where)
        if not isinstance(data["is_filling"], bool):
            raise ValueError(f"{where}: is_filling must be true or false")
        self._is_filling = data["is_filling"]
