"""`adaptive`: follows the best of a few strategies, found by the stopwatch; one of them is to plan with rates (`lookahead.py`).

The strategies: to leave everything to the kernel, as without us, so that whoever is better off alone is left alone; to split the
cores whenever both sides can run; to keep comm behind training on every core; and to foresee, from the rates, which mode lets the
run end soonest. Which of them is best a race decides (`race.py`). Where rates foretell every task exactly, as in a simulation,
there is nothing to race for.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, number, whole
from scheduler.model.state import COMPUTE_FIRST, Allocation
from scheduler.policies.lookahead import Lookahead
from scheduler.policies.race import Block, Prices, Race
from scheduler.policies.view import View, split_trials

LOOKAHEAD, KERNEL = "foresight", "kernel"
"""Names of strategies, beside compute-first."""

BURST = 4
"""Batches that comm receives at a time, once the buffer was full."""

SHORT_BLOCK = BURST
LONG_BLOCK = 8 * BURST
BLOCKS_PER_RUN = 30
"""Cycles of a block: so many that this many blocks fit into a run, within these limits. Whole bursts, and best whole periods of
filling and emptying the buffer, which block by block would look like noise. The first cycle after a change does not count.
"""

REMEMBERED_LEVELS = 16
"""Cycles over which the level of the buffer is averaged, about."""

LEAST_PRICE = 0.05
"""Of a cycle of training, beside 1 for both: a block in which no batch came at all is not worth nothing."""

TRYING = 0.1
"""Part of a run's cycles, and as much of those behind it, that may go by under strategies that do not lead."""

LAST_TRIALS = 0.75
"""Part of a run after which nothing is tried: what it found could no longer make up for what it cost."""

LOSING = 0.015
"""Part of a run's time, and as much of that behind it, that may be lost by trying; what others gain makes up for what they lose."""

HOPELESS = 1.5
"""A strategy that takes longer than the best, by this factor, is not followed to the end of its block."""


class Adaptive:
    """Races its strategies, and follows the best."""

    name: ClassVar[str] = "adaptive"

    def __init__(self) -> None:
        self._lookahead = Lookahead()
        self._race: Race | None = None
        self._strategy = ""
        self._num_cores = 0
        self._modes: dict[str, Allocation] = {}  # of the strategies that have one, while comm runs
        self._refill = _Refill()
        self._start: _Mark | None = None  # of the block; None before it counts
        self._num_cycles = 0  # complete when it was last asked
        self._since = 0  # the cycles that were complete when the strategy was taken up, or its last block ended
        self._num_tried = 0  # cycles under strategies that did not lead
        self._lost_s = 0.0  # what those took longer than the leader would have
        self._is_due = False  # whether a block may end with this cycle
        self._fullness = 0.0  # of the buffer, in the mean of the last cycles: 0 is empty, 1 is full
        self._num_levels = 0  # that the mean rests on
        self._standing: dict[str, float] = {}

    @property
    def is_work_conserving(self) -> bool:
        """Not while the kernel has its way."""
        return self._strategy != KERNEL

    @property
    def needs_rates(self) -> bool:
        """Only to foresee, and where a block ends, for what it is worth and its noise: else they cost more than the decision."""
        return self._is_due or self._strategy in (LOOKAHEAD, "")

    @property
    def strategy(self) -> str:
        """The strategy that is followed now, and what lookahead chose last if it is that."""
        return f"{LOOKAHEAD}: {self._lookahead.chosen}" if self._strategy == LOOKAHEAD else self._strategy

    def describe(self) -> dict[str, object]:
        """What each strategy that was tried costs, in seconds per cycle, and how full the buffer was: it says what counts."""
        return {"standing": self._standing, "fullness": self._fullness}

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        """For lookahead, every kind of mode, the one that cannot do much harm first. No other strategy needs to know them."""
        if self._strategy != LOOKAHEAD:
            return ()
        exclusive = Allocation.all_comp(num_cores), Allocation.all_comm(num_cores)
        return Allocation.sharing(COMPUTE_FIRST, num_cores), *exclusive, *split_trials(num_cores)

    def choose(self, view: View) -> Allocation:
        """What the strategy of now does here."""
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
        """How the race stands, if it has begun."""
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
        """Go on with the race, following its leader; on another number of cores it begins anew all the same."""
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
        """On so many cores as there are now.

        Lookahead begins where a profile tells the rates. Else it is last, because it has to learn them, and the kernel's way is
        first, because with that nothing is lost yet.
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
        """A training step has ended: perhaps a block has, and another strategy has its turn."""
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
        else:  # it ends with the next cycle, for which the rates are asked
            length = self._block_length(view.cycles)
            self._is_due = block.cycles + 1 >= length or self._is_hopeless(block, length)

    def _end_block(self, view: View, here: _Mark, block: Block) -> None:
        """`block` ends `here`: the next begins at once, or another strategy is taken up."""
        assert self._race is not None
        prices = self._prices(view)
        self._race.take_in(self._strategy, block)
        if self._strategy != self._race.leader:
            self._num_tried += here.cycles - self._since
            if self._standing:
                due_s = block.worth(prices) * self._best_s()
                self._lost_s += min(block.seconds - due_s, due_s)  # what took far longer met another world
        may_try = self._may_try(here.cycles, view.cycles)
        leader = self._race.leader
        strategy = self._race.next(prices, view.noise, may_try=may_try)
        if self._race.leader != leader:
            self._lost_s = 0.0  # it was no loss to find a better one, or another world
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
        """What part of a whole cycle is its training worth, and what part its batch.

        A buffer that stays empty says that training waits for comm, so that only batches count, and a full one the contrary: the
        backlog of a queue is the price of what would change it (backpressure, Tassiulas and Ephremides, 1992). Without a limit of
        the buffer the rates tell what they are worth, as far as they are known.
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
        """Of the strategy of now; the first that a strategy ever has is only to fill caches."""
        assert self._race is not None
        if not self._race.is_warm(self._strategy):
            return SHORT_BLOCK
        return min(max(cycles // BLOCKS_PER_RUN // BURST * BURST, SHORT_BLOCK), LONG_BLOCK)

    def _follow(self, strategy: str) -> None:
        self._strategy, self._start, self._since, self._is_due = strategy, None, self._num_cycles, False
        self._refill = _Refill()

    def _is_hopeless(self, block: Block, length: int) -> bool:
        """Whether this block has already taken much longer than a whole one of the best strategy: it is bad, or the world
        has changed. Not earlier, or of an uneven strategy only the worst moments would be counted.
        """
        return block.seconds > HOPELESS * self._best_s() * length

    def _may_try(self, done: int, cycles: int) -> bool:
        """Whether strategies that do not lead may still be tried, after `done` of the run's cycles."""
        lost = self._lost_s / self._best_s()
        return done < LAST_TRIALS * cycles and self._num_tried < TRYING * (done + cycles) and lost < LOSING * (done + cycles)

    def _best_s(self) -> float:
        """Seconds of a cycle under the best strategy, as it stood when the last block ended; infinite before."""
        return min(self._standing.values(), default=math.inf)


class _Refill:
    """When comm runs beside a full buffer: not for every batch that fits, but as soon as `BURST` of them do and then until it is
    full, because each time that cores go from one side to the other costs both. Without a limit of the buffer comm always runs.
    """

    def __init__(self) -> None:
        self._is_open = True
        self._cycle = -1  # the last one whose end was seen

    def goes_on(self, view: View) -> bool:
        """Whether comm is to run now."""
        if view.prefetch is None:
            return True
        if view.num_forward == view.num_backward != self._cycle:
            self._cycle = view.num_backward
            level = view.num_comm - view.num_backward
            self._is_open = level < view.prefetch - 1 if self._is_open else level + min(BURST, view.prefetch) <= view.prefetch
        return self._is_open


class _Mark(NamedTuple):
    """Where a block may begin or end: the time, the cycles that are complete, and the batches, the running one by its part."""

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
    """The strategies that are one allocation, by their names."""
    splits = [Allocation.split(c, num_cores) for c in _raced_cores(num_cores)]
    return {str(split): split for split in splits} | {COMPUTE_FIRST: Allocation.sharing(COMPUTE_FIRST, num_cores)}


def _raced_cores(num_cores: int) -> list[int]:
    """Comm's cores in the splits that are raced: few, because comm seldom pays for many."""
    return sorted({1, max(num_cores // 4, 1), max(num_cores // 2, 1)}) if num_cores > 1 else []
