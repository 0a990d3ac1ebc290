"""How fast each side runs in each mode, and what part of a cycle Forward is, learnt from tasks as they finish.

A task that had one share of the cores all the way tells that share's rate exactly. Many do not: where one side is soon blocked, the
other has its split for a moment only, and then every core. Such a task tells one equation, the sum over its shares of rate
times seconds being its work. So the rates are those that explain the last tasks together, found by correcting them by factors,
task after task, the newest last (the multiplicative algebraic reconstruction of tomography). All rates are work per second.

A link that is slower than the cores makes every mode look alike while it lasts. So what comm's cores can do and what the link
brings are kept apart: the first is learnt from the time in which comm was busy, the second from that in which it waited (`Link`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from scheduler.control.link_rate import Link
from scheduler.control.side_rates import EXACT, GAIN, MEMORY, OWN, SHARED, Share, SideEstimate, by_measured_cores
from scheduler.model.checked_json import check_keys, not_negative, number, shown
from scheduler.model.cost import Mode, RateTable, Workload
from scheduler.model.state import COMPUTE_FIRST, Allocation, Task

PENDING = 6
"""Tasks, those of two cycles, that may finish before the rates are corrected again: it costs more than a decision."""

CLOCK_S = 1e-9
"""Seconds that no clock of a kernel resolves: less is rounding, and no time to learn from."""

FELT = 0.03
"""What comm takes from training at worst, in parts of a cycle, below which it does not matter where comm runs."""

LEAST_BUSY = 1e-3
"""Part of its time that comm is believed to have worked at least, whatever the clocks say."""


class Estimates:
    """Both sides' rates, the link's, the work of a cycle, and the table of a device that they imply.

    Without a known workload, a Comm task is 1 unit, and Forward and Backward add up to 1: halves until both have been seen,
    then in the proportion of their durations, had they run on the same cores.
    """

    def __init__(self, workload: Workload | None = None, rates: RateTable | None = None) -> None:
        """`workload` and `rates` of a profile, if there is one; rates then begin as its own."""
        self._is_workload_known = workload is not None
        self.workload = workload or Workload(forward=0.5, backward=0.5, comm=1.0)
        self.comm = SideEstimate()
        self.comp = SideEstimate()
        self.link = Link()
        self._busy_s: float | None = None  # of one batch
        self._num_pending = 0  # tasks remembered since the rates were last corrected
        self.noise = 0.0
        """Relative error of a rate that rests on all remembered tasks."""
        self._table: RateTable | None = None
        self._made_for: tuple[int, float] | None = None  # its number of cores, and the link's rate
        self._num_believed = 0 if rates is None else rates.num_cores
        if rates is not None:
            self._believe(rates)

    def finish(self, task: Task, seconds: Mapping[Share, float], busy_s: float | None = None) -> None:
        """Learn from one finished task. One too short for the clock tells nothing.

        `busy_s`: of a Comm, the seconds in which it computed or waited for a core; the others it waited for the link.
        """
        felt = {share: spent for share, spent in seconds.items() if spent > CLOCK_S}
        if not felt:
            return
        side = self.comm if task is Task.COMM else self.comp
        work = self._works()[task]
        if task is Task.COMM and busy_s is not None:
            self._busy_s = busy_s if self._busy_s is None else self._busy_s + GAIN * (busy_s - self._busy_s)
            own_s = sum(spent for share, spent in felt.items() if share.terms == OWN)
            waited = self.link.take_in(work=work, seconds=sum(felt.values()), own_s=own_s, busy_s=busy_s)
            felt = _without_waits(felt, own_s, waited)
        side.remember(task, work, felt)
        self._num_pending += 1

    def refresh(self) -> None:
        """Correct the rates by all remembered tasks, once for each PENDING of them that came since.

        Whoever reads rates calls it; most policies never do.
        """
        for _ in range(-(-min(self._num_pending, MEMORY) // PENDING)):
            for side in (self.comm, self.comp):
                side.correct(self._works())
            if not self._is_workload_known:
                self._learn_proportion()
        self._num_pending = 0
        self.noise = max(self.comm.scatter, self.comp.scatter) / math.sqrt(MEMORY / 2)

    @property
    def is_due(self) -> bool:
        """Whether enough tasks have come to learn from."""
        return self._num_pending >= PENDING

    def untried(self, warm_up_allocations: Iterable[Allocation], num_cores: int, num_tasks: int) -> Allocation | None:
        """The first of these allocations whose rates do not rest on so many tasks yet, as far as they are worth it; else None.

        The first is always worth it. Where it shows that comm hardly costs training anything, no other could gain anything.
        """
        for place, allocation in enumerate(warm_up_allocations):
            if place > 0 and not self._comm_matters(num_cores):
                return None
            if not self.has_measured(allocation, num_tasks):
                return allocation
        return None

    def has_measured(self, allocation: Allocation, num_tasks: int = 1) -> bool:
        """Whether the rates of both sides under this allocation rest on so many tasks, Forward and Backward being one."""
        comm, comp = allocation.comm, allocation.comp
        return (not comm or self.comm.is_measured(Share.of(comm, allocation), num_tasks)) and (
            not comp or self.comp.is_measured(Share.of(comp, allocation), 2 * num_tasks)
        )

    def table(self, num_cores: int) -> RateTable | None:
        """Rates of every mode of `num_cores`, 2 or more; None while too little is known to tell.

        Linear between what was measured and above it, in proportion to the cores below, and monotone: more cores never slow a side
        down. Of a side measured with one count only, more cores are believed to add nothing; of one that was seen in compute-first
        only, every core is believed to do its part. A profile knows every count of its cores. Nothing is faster than the link.
        The same table is returned until the tasks of two cycles have come since, or the link has changed.
        """
        made_for = num_cores, self.link.rate
        if self._table is None or self.is_due or self._made_for != made_for:
            self.refresh()
            self._table, self._made_for = self._make_table(num_cores), made_for
        return self._table

    def to_json(self) -> dict[str, Any]:
        """All that was learnt, for `recall`; the table follows from it."""
        work = self.workload
        return {
            "comm": self.comm.to_json(),
            "comp": self.comp.to_json(),
            "link": self.link.rate if self.link.is_bottleneck else None,
            "busy_s": self._busy_s,
            "workload": {"forward": work.forward, "backward": work.backward, "comm": work.comm},
        }

    def recall(self, data: Any, where: str) -> None:
        """Know again what `to_json` told. ValueError, and nothing is changed, for what it cannot have told.

        Of a profile stays what was not told: rates of other shares, and the workload.
        """
        check_keys(data, required=("comm", "comp", "link", "busy_s", "workload"), where=where)
        comm, comp = SideEstimate.from_json(data["comm"], f"{where}, comm"), SideEstimate.from_json(data["comp"], f"{where}, comp")
        check_keys(data["workload"], required=("forward", "backward", "comm"), where=f"{where}, workload")
        told = {name: number(data["workload"], name, f"{where}, workload") for name in ("forward", "backward", "comm")}
        if min(told.values()) <= 0:
            raise ValueError(f"{where}, workload: {shown(told)}; works must be above 0")
        work = Workload(**told)
        link = math.inf if data["link"] is None else number(data, "link", where)
        busy_s = None if data["busy_s"] is None else not_negative(data["busy_s"], "'busy_s'", where, "a time")
        if link <= 0:
            raise ValueError(f"{where}: a link of {link:g}; it must be above 0")
        comm.rates, comp.rates = self.comm.rates | comm.rates, self.comp.rates | comp.rates
        self.comm, self.comp, self.link.rate, self._busy_s = comm, comp, link, busy_s
        if not self._is_workload_known:
            self.workload = work
        self._num_pending, self._table = PENDING, None  # to be looked at anew

    def _make_table(self, num_cores: int) -> RateTable | None:
        shared = self._compute_first(num_cores)
        comm, comp = self._by_cores(self.comm, num_cores), self._by_cores(self.comp, num_cores)
        if shared is None and (comm is None or comp is None):
            return None
        if shared is not None:
            comm = comm or [shared.comm_rate * cores / num_cores for cores in range(1, num_cores + 1)]
            comp = comp or [shared.comp_rate * cores / num_cores for cores in range(1, num_cores + 1)]
            if not self._num_believed:
                comp[-1] = max(comp[-1], shared.comp_rate)  # without comm beside it, training is not slower
        assert comm is not None
        assert comp is not None
        limit = self.link.rate
        return RateTable(
            comm=(0.0, *(min(rate, limit) for rate in comm)),
            comp=(*reversed(comp), 0.0),
            shared=() if shared is None else (shared,),
        )

    def _comm_matters(self, num_cores: int) -> bool:
        """Whether comm costs enough for a better use of the cores to be felt, or is too slow although the link is not to blame."""
        shared, work = self._compute_first(num_cores), self.workload
        if shared is None or self._busy_s is None:
            return True
        cycle_s = (work.forward + work.backward) / shared.comp_rate
        lags = work.comm / shared.comm_rate > cycle_s
        return num_cores * self._busy_s > FELT * cycle_s or (lags and not self.link.is_bottleneck)

    def _by_cores(self, side: SideEstimate, num_cores: int) -> list[float] | None:
        known = self._num_believed
        if known:
            return [side.rates[Share(min(cores, known))] for cores in range(1, num_cores + 1)]
        return by_measured_cores(side, num_cores)

    def _compute_first(self, num_cores: int) -> Mode | None:
        share = Share(num_cores, SHARED)
        comm, comp = self.comm.rates.get(share), self.comp.rates.get(share)
        if comm is None or comp is None:
            return None
        return Mode(name=COMPUTE_FIRST, comm_rate=min(comm, self.link.rate), comp_rate=comp)

    def _believe(self, rates: RateTable) -> None:
        last = rates.num_cores
        for cores in range(1, last + 1):
            self.comm.rates[Share(cores)] = rates.comm[cores]
            self.comp.rates[Share(cores)] = rates.comp[last - cores]
        for mode in rates.shared:
            if mode.name == COMPUTE_FIRST:
                self.comm.rates[Share(last, SHARED)] = mode.comm_rate
                self.comp.rates[Share(last, SHARED)] = mode.comp_rate

    def _works(self) -> dict[Task, float]:
        work = self.workload
        return {Task.COMM: work.comm, Task.FORWARD: work.forward, Task.BACKWARD: work.backward}

    def _learn_proportion(self) -> None:
        forward, backward = self.comp.mean_work(Task.FORWARD), self.comp.mean_work(Task.BACKWARD)
        if min(forward, backward) > EXACT * max(forward, backward):  # else a task was no more than rounding
            part = forward / (forward + backward)
            self.workload = Workload(forward=part, backward=1 - part, comm=1.0)


def _without_waits(seconds: dict[Share, float], own_s: float, waited: float) -> dict[Share, float]:
    """The seconds in which cores could have done more. With cores of its own comm is fastest, so there it is that it waits most."""
    in_own = min(waited / own_s, 1.0) if own_s else 0.0
    rest_s = sum(seconds.values()) - own_s
    in_rest = min(max(waited - own_s, 0.0) / rest_s, 1.0) if rest_s else 0.0
    worked = {share: 1 - (in_own if share.terms == OWN else in_rest) for share in seconds}
    return {share: spent * max(worked[share], LEAST_BUSY) for share, spent in seconds.items()}
