"""A run in virtual time: a rate table gives the durations of tasks, and every event goes through the real controller."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scheduler.control.controller import Controller
from scheduler.model.cost import RateTable, Workload
from scheduler.model.state import Allocation, Decision, Started, State, Task, TaskDone


@dataclass
class Run:
    makespan: float
    decisions: list[Decision]
    done: list[tuple[Task, float, float]]  # task, when it first had cores, when it ended


def next_comp(state: State) -> Task:
    """Return the comp task that runs or waits in this state."""
    return Task.BACKWARD if state.num_forward > state.num_backward else Task.FORWARD


def drive(
    controller: Controller,
    rates: RateTable,
    work: Workload,
    *,
    start: float = 0.0,
    share_unpinned: float = 0.5,
    max_events: int = 10_000,
    comp_moves_at_boundaries: bool = False,
) -> Run:
    """Run to the end. Unpinned, both sides get `share_unpinned` of their rates alone.

    With `comp_moves_at_boundaries` training keeps its cores to the end of a task, and comm gets the free cores of its allocation,
    as in a live run with one team of threads. The rates of each side are then those of its own cores.
    """
    mirror = State.initial(cycles=controller.state.cycles, prefetch=controller.state.prefetch)
    now = start
    decision = controller.handle(Started(time=now))
    run = Run(makespan=math.nan, decisions=[decision], done=[])
    left = {"comm": work.comm, "comp": work.forward}
    in_force = decision.allocation
    began: dict[str, float | None] = {"comm": None, "comp": None}
    while not mirror.comp_is_done:
        speed = dict(zip(("comm", "comp"), _speeds(in_force, rates, share_unpinned), strict=True))
        if mirror.comm_is_done or mirror.comm_is_blocked:
            speed["comm"] = 0.0
        if mirror.comp_is_done or mirror.comp_is_blocked:
            speed["comp"] = 0.0
        for side in speed:
            if speed[side] and began[side] is None:
                began[side] = now
        need = {side: left[side] / speed[side] if speed[side] else math.inf for side in speed}
        side = min(need, key=lambda name: need[name])
        assert math.isfinite(need[side]), f"the run stalls: {decision}"
        now += need[side]
        for other in speed:
            left[other] = max(left[other] - speed[other] * need[side], 0.0)
        task = Task.COMM if side == "comm" else next_comp(mirror)
        comp_goes_on = task is Task.COMM and speed["comp"] > 0
        mirror = mirror.after(task)
        first = began[side]
        assert first is not None
        run.done.append((task, first, now))
        began[side] = None
        left[side] = work.comm if side == "comm" else work.backward if task is Task.FORWARD else work.forward
        decision = controller.handle(TaskDone(task=task, time=now))
        assert decision.state == mirror
        run.decisions.append(decision)
        if comp_moves_at_boundaries and comp_goes_on:
            in_force = _until_the_boundary(in_force, decision.allocation, rates.num_cores)
        else:
            in_force = decision.allocation
        assert len(run.decisions) < max_events
    run.makespan = now - start
    return run


def _until_the_boundary(in_force: Allocation, wanted: Allocation, num_cores: int) -> Allocation:
    """Return the allocation in effect while training keeps its cores: comm gets the free cores of its allocation."""
    free = min(wanted.comm, num_cores - in_force.comp)
    if free or not wanted.comm:
        return Allocation(comm=free, comp=in_force.comp)
    return wanted if wanted.shared else in_force


def _speeds(allocation: Allocation, rates: RateTable, share_unpinned: float) -> tuple[float, float]:
    """Return the speeds of both sides by their own cores. In a shared mode without an entry, comm gets a tenth of its rate."""
    for mode in rates.shared:
        if allocation.shared == mode.name:
            return mode.comm_rate, mode.comp_rate
    if allocation.shared is not None:
        return 0.1 * rates.comm[-1], 0.9 * rates.comp[0]
    if allocation.pinned:
        assert allocation.comm + allocation.comp <= rates.num_cores
        return rates.comm[allocation.comm], rates.comp[rates.num_cores - allocation.comp]
    return share_unpinned * rates.comm[-1], share_unpinned * rates.comp[0]
