"""Estimates of the rates of both sides in each split, and of the share of Forward in a cycle, learnt from finished tasks.

A task that kept its number of cores determines the rate of that number exactly. Many tasks do not: if one side is soon blocked,
the other keeps its split only briefly and then gets every core. Such a task gives one equation: the sum of rate times seconds
over its core counts equals its work. The rates are fitted to the last tasks by multiplicative corrections, task by task, the newest
last (the multiplicative algebraic reconstruction technique of tomography). All rates are work per second.

A link slower than the cores makes every split look alike. The rate of comm's cores and the rate of the link are therefore estimated
separately: the first from the time in which comm was busy, the second from the time in which it waited (`Link`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from scheduler.control.link_rate import Link
from scheduler.control.side_rates import EXACT, MEMORY, SideEstimate, by_measured_cores
from scheduler.model.checked_json import check_keys, number, shown
from scheduler.model.cost import RateTable, Workload
from scheduler.model.state import Allocation, Task

PENDING = 6
"""Tasks (those of two cycles) between two corrections of the rates. A correction costs more than a decision."""

CLOCK_S = 1e-9
"""Resolution of the kernel's clocks in seconds. A shorter time is rounding and is not used."""

LEAST_BUSY = 1e-3
"""Lower bound of the share of its time in which comm worked, whatever the clocks report."""


class Estimates:
    """Rates of both sides and of the link, the work of a cycle, and the rate table that follows from them.

    Without a known workload, a Comm task is 1 unit of work. Forward and Backward together are 1 unit: one half each, until both are
    measured. Then they share it in proportion to their durations on equal cores.
    """

    def __init__(self, workload: Workload | None = None, rates: RateTable | None = None) -> None:
        """Start with the `workload` and `rates` of a device profile, if there is one."""
        self._is_workload_known = workload is not None
        self.workload = workload or Workload(forward=0.5, backward=0.5, comm=1.0)
        self.comm = SideEstimate()
        self.comp = SideEstimate()
        self.link = Link()
        self._num_pending = 0  # tasks stored since the last correction of the rates
        self._table: RateTable | None = None
        self._made_for: tuple[int, float] | None = None  # its number of cores, and the link's rate
        self._num_profiled = 0 if rates is None else rates.num_cores
        if rates is not None:
            self._load_profile(rates)

    def finish(self, task: Task, seconds: Mapping[int, float], busy_s: float | None = None) -> None:
        """Learn from one finished task, given its seconds by number of cores. One shorter than the clock's resolution is ignored.

        `busy_s`: for a Comm, the seconds in which it ran or waited for a core. In the rest of its time it waited for the link.
        """
        measured = {cores: spent for cores, spent in seconds.items() if spent > CLOCK_S}
        if not measured:
            return
        side = self.comm if task is Task.COMM else self.comp
        work = self._works()[task]
        if task is Task.COMM and busy_s is not None:
            waited = self.link.update(work=work, seconds=sum(measured.values()), busy_s=busy_s)
            measured = _without_waits(measured, waited)
        side.store(task, work, measured)
        self._num_pending += 1

    def refresh(self) -> None:
        """Correct the rates by the stored tasks, once for every PENDING tasks since the last call and once for the rest of them.

        Call it before reading rates.
        """
        for _ in range(-(-min(self._num_pending, MEMORY) // PENDING)):
            for side in (self.comm, self.comp):
                side.correct(self._works())
            if not self._is_workload_known:
                self._learn_proportion()
        if self._num_pending:
            self._table = None
        self._num_pending = 0

    @property
    def is_due(self) -> bool:
        """Whether enough tasks have finished since the last correction."""
        return self._num_pending >= PENDING

    def untried(self, warm_up_allocations: Iterable[Allocation], num_tasks: int) -> Allocation | None:
        """Return the first allocation whose rates rest on fewer than `num_tasks` tasks, or None."""
        return next((allocation for allocation in warm_up_allocations if not self.has_measured(allocation, num_tasks)), None)

    def has_measured(self, allocation: Allocation, num_tasks: int) -> bool:
        """Return whether the rates of both sides rest on `num_tasks` tasks, counting a Forward with its Backward as one."""
        comm, comp = allocation.comm, allocation.comp
        return (not comm or self.comm.is_measured(comm, num_tasks)) and (not comp or self.comp.is_measured(comp, 2 * num_tasks))

    def table(self, num_cores: int) -> RateTable | None:
        """Return the rates of every mode on `num_cores` (2 or more), or None while too little is known.

        Rates are linear between and above the measured core counts and proportional below them. They never fall with more cores.
        For a side that was measured with one core count, more cores add nothing. A profile has every core count. No comm rate
        exceeds the link's. The same table object is returned until PENDING more tasks have finished or the link's rate has changed.
        """
        made_for = num_cores, self.link.rate
        if self._table is None or self.is_due or self._made_for != made_for:
            self.refresh()
            self._table, self._made_for = self._make_table(num_cores), made_for
        return self._table

    def to_json(self) -> dict[str, Any]:
        """Return everything that was learnt, for `recall`."""
        work = self.workload
        return {
            "comm": self.comm.to_json(),
            "comp": self.comp.to_json(),
            "link": self.link.rate if self.link.is_bottleneck else None,
            "workload": {"forward": work.forward, "backward": work.backward, "comm": work.comm},
        }

    def recall(self, data: Any, where: str) -> None:
        """Restore the output of `to_json`. Raises ValueError, and changes nothing, for anything else.

        The rates of a profile stay for core counts that `data` lacks, and so does its workload.
        """
        check_keys(data, required=("comm", "comp", "link", "workload"), optional=("busy_s",), where=where)
        comm, comp = SideEstimate.from_json(data["comm"], f"{where}, comm"), SideEstimate.from_json(data["comp"], f"{where}, comp")
        check_keys(data["workload"], required=("forward", "backward", "comm"), where=f"{where}, workload")
        works = {name: number(data["workload"], name, f"{where}, workload") for name in ("forward", "backward", "comm")}
        if min(works.values()) <= 0:
            raise ValueError(f"{where}, workload: {shown(works)}; every work must be above 0")
        work = Workload(**works)
        link = math.inf if data["link"] is None else number(data, "link", where)
        if link <= 0:
            raise ValueError(f"{where}: the link's rate is {link:g}, must be above 0")
        comm.rates, comp.rates = self.comm.rates | comm.rates, self.comp.rates | comp.rates
        self.comm, self.comp, self.link.rate = comm, comp, link
        if not self._is_workload_known:
            self.workload = work
        self._num_pending, self._table = PENDING, None  # forces a correction before the next table

    def _make_table(self, num_cores: int) -> RateTable | None:
        comm, comp = self._by_cores(self.comm, num_cores), self._by_cores(self.comp, num_cores)
        if comm is None or comp is None:
            return None
        limit = self.link.rate
        return RateTable(comm=(0.0, *(min(rate, limit) for rate in comm)), comp=(*reversed(comp), 0.0))

    def _by_cores(self, side: SideEstimate, num_cores: int) -> list[float] | None:
        known = self._num_profiled
        if known:
            return [side.rates[min(cores, known)] for cores in range(1, num_cores + 1)]
        return by_measured_cores(side, num_cores)

    def _load_profile(self, rates: RateTable) -> None:
        last = rates.num_cores
        for cores in range(1, last + 1):
            self.comm.rates[cores] = rates.comm[cores]
            self.comp.rates[cores] = rates.comp[last - cores]

    def _works(self) -> dict[Task, float]:
        work = self.workload
        return {Task.COMM: work.comm, Task.FORWARD: work.forward, Task.BACKWARD: work.backward}

    def _learn_proportion(self) -> None:
        forward, backward = self.comp.mean_work(Task.FORWARD), self.comp.mean_work(Task.BACKWARD)
        if min(forward, backward) > EXACT * max(forward, backward):  # otherwise one of the tasks is rounding
            part = forward / (forward + backward)
            self.workload = Workload(forward=part, backward=1 - part, comm=1.0)


def _without_waits(seconds: dict[int, float], waited: float) -> dict[int, float]:
    """Return the seconds without waits for the link, which are spread over all of them."""
    worked = max(1 - waited / sum(seconds.values()), LEAST_BUSY)
    return {cores: spent * worked for cores, spent in seconds.items()}
