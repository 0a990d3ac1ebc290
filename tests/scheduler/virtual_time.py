"""A run in virtual time: a rate table says how long tasks take, and every event goes through the real controller."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scheduler.controller import Controller
from scheduler.cost import RateTable, Workload
from scheduler.state import Allocation, Decision, Started, State, Task, TaskDone


@dataclass
class Run:
    makespan: float
    decisions: list[Decision]
    done: list[tuple[Task, float, float]]  # task, when it first had cores, when it ended


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
    """Run to the end. Unpinned, both sides get `share_unpinned` of the rates they have alone.

    With `comp_moves_at_boundaries` training keeps its cores to the end of a task, and comm gets what is free of what it was
    given, as in a live run. The rates of comm are then those of its own cores, those of comp of its own.
    """
    mirror = State.initial(cycles=controller.state.cycles, prefetch=controller.state.prefetch)
    now = start
    decision = controller.handle(Started(time=now))
    run = Run(makespan=math.nan, decisions=[decision], done=[])
    left = {"comm": work.comm, "comp": work.forward}
    comm_cores, comp_cores = decision.allocation.comm, decision.allocation.comp
    began: dict[str, float | None] = {"comm": None, "comp": None}
    while not mirror.is_finished:
        if comp_moves_at_boundaries:
            speed = {"comm": rates.comm[comm_cores], "comp": rates.comp[rates.num_cores - comp_cores]}
        else:
            speed = dict(zip(("comm", "comp"), _speeds(decision.allocation, rates, share_unpinned), strict=True))
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
        task = Task.COMM if side == "comm" else mirror.next_comp
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
        if comp_goes_on:
            free = min(decision.allocation.comm, rates.num_cores - comp_cores)
            comm_cores = free if free or not decision.allocation.comm else comm_cores
        else:
            comm_cores, comp_cores = decision.allocation.comm, decision.allocation.comp
        assert len(run.decisions) < max_events
    run.makespan = now - start
    return run


def _speeds(allocation: Allocation, rates: RateTable, share_unpinned: float) -> tuple[float, float]:
    if allocation.pinned:
        assert allocation.comm + allocation.comp == rates.num_cores
        return rates.comm[allocation.comm], rates.comp[allocation.comm]
    return share_unpinned * rates.comm[-1], share_unpinned * rates.comp[0]
