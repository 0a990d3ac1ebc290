"""`adaptive`: measure a few strategies during the run, and follow the fastest.

The strategies are:
- kernel: leave the allocation to the kernel, so that a run is no slower than without a scheduler;
- one of a few splits, whenever both sides can run;
- compute-first: both sides on every core, comm at idle priority;
- lookahead: plan with rates which mode lets the run end earliest (`lookahead.py`).
A race decides which strategy is best (`race.py`). If the rates predict every task exactly, as in a simulation, there is no race.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, number, whole
from scheduler.model.state import COMPUTE_FIRST, Allocation
from scheduler.policies.lookahead import Lookahead
from scheduler.policies.race import Block, Prices, Race
from scheduler.policies.view import View, warm_up_splits

LOOKAHEAD, KERNEL = "foresight", "kernel"
"""Names of strategies, in addition to the splits and compute-first. Files keep the older word "foresight" for lookahead."""

BURST = 4
"""Number of batches that comm receives in one go after the prefetch buffer was full."""

SHORT_BLOCK = BURST
LONG_BLOCK = 8 * BURST
BLOCKS_PER_RUN = 30
"""Limits of the cycles of a block, and the number of blocks that should fit into a run.

A block has whole bursts. It should have whole periods of filling and emptying the buffer, because parts of a period would look
like noise. The first cycle after a change of strategy does not count.
"""

REMEMBERED_LEVELS = 16
"""Approximate number of cycles over which the buffer level is averaged."""

LEAST_PRICE = 0.05
"""Least price of training a cycle, where both prices add up to 1: a block without any received batch still has some worth."""

TRYING = 0.1
"""Largest share of cycles under strategies that do not lead, as a share of the run's cycles plus the completed cycles."""

TRYING_ENDS = 0.75
"""Share of a run after which no other strategy is tried: the rest is too short to repay the cost."""

LOSING = 0.015
"""Largest share of time that trying other strategies may lose, of the run's time plus the elapsed time. Gains reduce the loss."""

HOPELESS = 1.5
"""A block ends early if its strategy is slower than the best strategy by this factor."""


class Adaptive:
    """Measures its strategies in a race, and follows the fastest."""

    name: ClassVar[str] = "adaptive"

    def __init__(self) -> None:
        self._lookahead = Lookahead()
        self._race: Race | None = None
        self._strategy = ""
        self._num_cores = 0
        self._modes: dict[str, Allocation] = {}  # of each strategy with a fixed allocation, while comm runs
        self._refill = _Refill()
        self._start: _Mark | None = None  # of the block; None while the block does not count yet
        self._num_cycles = 0  # completed at the last call of `choose`
        self._since = 0  # completed cycles when the strategy was started, or when its last block ended
        self._num_tried = 0  # cycles under strategies that did not lead
        self._lost_s = 0.0  # extra seconds of those cycles, compared with the leader
        self._is_due = False  # whether a block may end with this cycle
        self._fullness = 0.0  # mean buffer level of the last cycles: 0 is empty, 1 is full
        self._num_levels = 0  # number of levels in this mean
        self._standing: dict[str, float] = {}

    @property
    def is_work_conserving(self) -> bool:
        """False while the strategy is the kernel's own scheduling."""
        return self._strategy != KERNEL

    @property
    def needs_rates(self) -> bool:
        """True for lookahead, and at the end of a block for its worth and noise. Otherwise rates would only slow the decision."""
        return self._is_due or self._strategy in (LOOKAHEAD, "")

    @property
    def strategy(self) -> str:
        """The current strategy; for lookahead, also the mode that it chose last."""
        return f"{LOOKAHEAD}: {self._lookahead.chosen}" if self._strategy == LOOKAHEAD else self._strategy

    def describe(self) -> dict[str, object]:
        """Return the cost of each measured strategy in seconds per cycle, and the mean buffer level, which sets the prices."""
        return {"standing": self._standing, "fullness": self._fullness}

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        """Return every kind of mode for lookahead, the least harmful first. Other strategies need no measured rates."""
        if self._strategy != LOOKAHEAD:
            return ()
        exclusive = Allocation.all_comp(num_cores), Allocation.all_comm(num_cores)
        return Allocation.sharing(COMPUTE_FIRST, num_cores), *exclusive, *warm_up_splits(num_cores)

    def choose(self, view: View) -> Allocation:
        """Return the allocation of the current strategy."""
        num_cores = view.num_cores
        if num_cores != self._num_cores:
            self._start_race(view)
        if num_cores == 1:
            return Allocation.all_comp(1)
        if view.num_forward == view.num_backward > self._num_cycles and view.num_comm < view.cycles:
            self._num_cycles = view.num_backward
            self._end_cycle(view)
        if self._strategy == KERNEL:
            return Allocation.unpinned(num_cores)
        if self._strategy == LOOKAHEAD:
            return self._lookahead.choose(view)
        return self._modes[self._strategy] if self._refill.goes_on(view) else Allocation.all_comp(num_cores)

    def to_json(self) -> dict[str, Any]:
        """Return the state of the race, if it has begun."""
        return {
            "num_cores": self._num_cores,
            "race": None if self._race is None else self._race.to_json(),
            "num_cycles": self._num_cycles,
            "num_tried": self._num_tried,
            "lost_s": self._lost_s,
            "fullness": self._fullness,
            "standing": self._standing,
        }

    def recall(self, data: Any, where: str) -> None:
        """Restore the race and follow its leader. The race restarts later if the number of cores differs. Raises ValueError."""
        required = ("num_cores", "race", "num_cycles", "num_tried", "lost_s", "fullness", "standing")
        check_keys(data, required=required, where=where)
        if data["race"] is None:
            return
        num_cores = whole(data, "num_cores", where, least=1, most=None)
        order = listing(mapping(data["race"], f"{where}, race").get("order"), f"{where}, race")
        modes = _modes(num_cores)
        race = Race([KERNEL, *modes, *([LOOKAHEAD] if LOOKAHEAD in order else [])])
        race.recall(data["race"], f"{where}, race")
        standing = {
            strategy: not_negative(seconds, repr(strategy), where, "a time")
            for strategy, seconds in mapping(data["standing"], f"{where}, standing").items()
        }
        counts = [whole(data, name, where, least=0, most=None) for name in ("num_cycles", "num_tried")]
        lost_s, fullness = number(data, "lost_s", where), number(data, "fullness", where)
        self._num_cores, self._modes, self._race, self._standing = num_cores, modes, race, standing
        self._num_cycles, self._num_tried = counts
        self._lost_s, self._fullness, self._num_levels = lost_s, min(max(fullness, 0.0), 1.0), REMEMBERED_LEVELS
        self._follow(race.leader)

    def _start_race(self, view: View) -> None:
        """Start a race on the current number of cores.

        With a profile, lookahead is first. Without rates, lookahead takes part only if there is no prefetch limit, and is last
        because it must learn the rates. Then the kernel is first, because it loses no time.
        """
        self._modes = _modes(view.num_cores)
        strategies = [KERNEL, *self._modes]
        if view.rates is not None:
            strategies = [LOOKAHEAD, *strategies]
        elif view.prefetch is None:
            strategies = [*strategies, LOOKAHEAD]
        self._num_cores, self._race, self._standing = view.num_cores, Race(strategies), {}
        self._follow(strategies[0])

    def _end_cycle(self, view: View) -> None:
        """Handle the end of a training step: a block may end, and the strategy may change."""
        if self._strategy == LOOKAHEAD and (view.noise == 0 or math.isnan(view.time)):
            return
        here = _Mark.of(view)
        self._note_level(view, here)
        if self._start is None:
            self._start = here
            return
        block = self._start.block_until(here)
        if self._is_due:
            self._end_block(view, here, block)
        else:  # the block ends with the next cycle, whose view needs rates
            length = self._block_length(view.cycles)
            self._is_due = block.cycles + 1 >= length or self._is_hopeless(block, length)

    def _end_block(self, view: View, here: _Mark, block: Block) -> None:
        """End `block` at `here`. The next block starts at once, or another strategy does."""
        assert self._race is not None
        prices = self._prices(view)
        self._race.take_in(self._strategy, block)
        if self._strategy != self._race.leader:
            self._num_tried += here.cycles - self._since
            if self._standing:
                due_s = block.worth(prices) * self._best_s()
                self._lost_s += min(block.seconds - due_s, due_s)  # a far larger loss comes from a change of the machine
        may_try = self._may_try(here.cycles, view.cycles)
        leader = self._race.leader
        strategy = self._race.next(prices, view.noise, may_try=may_try)
        if self._race.leader != leader:
            self._lost_s = 0.0  # finding a better strategy, or a change of the machine, is not a loss
        self._standing = self._race.standing(prices)
        if strategy == self._strategy:
            self._start, self._since, self._is_due = here, here.cycles, False
        else:
            self._follow(strategy)

    def _note_level(self, view: View, here: _Mark) -> None:
        if view.prefetch is not None:
            level = min(max((here.batches - here.cycles) / view.prefetch, 0.0), 1.0)
            self._num_levels = min(self._num_levels + 1, REMEMBERED_LEVELS)
            self._fullness += (level - self._fullness) / self._num_levels

    def _prices(self, view: View) -> Prices:
        """Return the worth of training a cycle and of receiving its batch, as shares of a whole cycle's worth.

        If the buffer stays empty, training waits for comm and only batches count. If the buffer stays full, only training counts.
        This uses the backlog of a queue as a price (backpressure, Tassiulas and Ephremides, 1992). Without a prefetch limit the
        rates give the prices; without rates only training counts.
        """
        if view.prefetch is not None:
            cycle = max(self._fullness, LEAST_PRICE)
            return cycle, 1 - cycle
        if view.rates is None:
            return 1.0, 0.0
        works, prices = self._lookahead.cycle_work(view), self._lookahead.prices(view)
        comp, comm = works[0] * prices[0], works[1] * prices[1]
        return comp / (comp + comm), comm / (comp + comm)

    def _block_length(self, cycles: int) -> int:
        """Return the cycles of a block of the current strategy. Its first block is short and only warms the caches."""
        assert self._race is not None
        if not self._race.is_warm(self._strategy):
            return SHORT_BLOCK
        return min(max(cycles // BLOCKS_PER_RUN // BURST * BURST, SHORT_BLOCK), LONG_BLOCK)

    def _follow(self, strategy: str) -> None:
        self._strategy, self._start, self._since, self._is_due = strategy, None, self._num_cycles, False
        self._refill = _Refill()

    def _is_hopeless(self, block: Block, length: int) -> bool:
        """Whether this block has already taken much longer than a whole block of the best strategy.

        Then the strategy is bad, or the machine has changed. An earlier test would measure only the worst part of an uneven
        strategy.
        """
        return block.seconds > HOPELESS * self._best_s() * length

    def _may_try(self, done: int, cycles: int) -> bool:
        """Whether strategies that do not lead may still be tried after `done` of the run's cycles."""
        lost = self._lost_s / self._best_s()
        return done < TRYING_ENDS * cycles and self._num_tried < TRYING * (done + cycles) and lost < LOSING * (done + cycles)

    def _best_s(self) -> float:
        """Return the seconds of a cycle under the best strategy at the end of the last block; infinite before."""
        return min(self._standing.values(), default=math.inf)


class _Refill:
    """Decide when comm runs while the buffer is nearly full.

    Comm starts when `BURST` batches fit, and then runs until the buffer is full. Starting for each single batch would cost both
    sides time, because moving cores between the sides is not free. Without a prefetch limit comm always runs.
    """

    def __init__(self) -> None:
        self._is_open = True
        self._cycle = -1  # the last cycle whose end was handled

    def goes_on(self, view: View) -> bool:
        """Whether comm runs now."""
        if view.prefetch is None:
            return True
        if view.num_forward == view.num_backward != self._cycle:
            self._cycle = view.num_backward
            level = view.num_comm - view.num_backward
            self._is_open = level < view.prefetch - 1 if self._is_open else level + min(BURST, view.prefetch) <= view.prefetch
        return self._is_open


class _Mark(NamedTuple):
    """A possible start or end of a block: the time, the completed cycles, and the batches, with the fraction of the running one."""

    time: float
    cycles: int
    batches: float

    @classmethod
    def of(cls, view: View) -> _Mark:
        (comm,), _ = view.works.tasks(view.num_comm, view.num_comm + 1)
        return cls(view.time, view.num_backward, view.num_comm + 1 - view.comm_left / comm)

    def block_until(self, end: _Mark) -> Block:
        return Block(end.time - self.time, end.cycles - self.cycles, end.batches - self.batches)


def _modes(num_cores: int) -> dict[str, Allocation]:
    """Return the strategies that are one fixed allocation, by name."""
    splits = [Allocation.split(c, num_cores) for c in _raced_cores(num_cores)]
    return {str(split): split for split in splits} | {COMPUTE_FIRST: Allocation.sharing(COMPUTE_FIRST, num_cores)}


def _raced_cores(num_cores: int) -> list[int]:
    """Return the comm cores of the splits in the race: few, because comm seldom benefits from many cores."""
    return sorted({1, max(num_cores // 4, 1), max(num_cores // 2, 1)}) if num_cores > 1 else []
