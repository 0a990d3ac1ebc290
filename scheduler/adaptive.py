"""`adaptive`: follows the best of a few habits, found by the stopwatch; one of them is to plan with rates (`foresight.py`).

The habits: to leave everything to the kernel, as without us, so that whoever is better off alone is left alone; to split the
cores whenever both sides can run; to keep comm behind training on every core; to receive in bursts between training steps; and
to foresee, from the rates, which mode lets the run end soonest. Which of them is best a race decides (`race.py`). Where rates
foretell every task exactly, as in a simulation, there is nothing to race for.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

from scheduler.cost import Mode, RateTable
from scheduler.foresight import Foresight
from scheduler.race import Block, Race
from scheduler.state import COMPUTE_FIRST, Allocation
from scheduler.view import View

FORESIGHT, BURSTS, KERNEL = "foresight", "bursts", "kernel"
"""Names of habits, beside compute-first."""

BURST = 4
"""Batches that are received at a time."""

SHORT_BLOCK = BURST
LONG_BLOCK = 2 * BURST
BLOCKS_PER_RUN = 30
"""Cycles of a block: long ones, if so many fit into a run. Whole bursts, or one block would have more of them than the next.
The first cycle after a change of habit does not count.
"""

TRYING = 0.1
"""Part of a run's cycles, and as much of those behind it, that may go by under habits that do not lead."""

HOPELESS = 1.5
"""A habit that takes longer than the best, by this factor, is not followed to the end of its block, nor tried if rates say so."""


class Adaptive:
    """Races its habits, and follows the best."""

    name: ClassVar[str] = "adaptive"

    def __init__(self) -> None:
        self._foresight = Foresight()
        self._race: Race | None = None
        self._habit = ""
        self._num_cores = 0
        self._modes: dict[str, Allocation] = {}  # of the habits that have one, while comm runs
        self._refill = _Refill(is_exclusive=False, most_s=0.0)
        self._start: _Mark | None = None  # of the block; None before it counts
        self._num_cycles = 0  # complete when it was last asked
        self._since = 0  # the cycles that were complete when the habit was taken up, or its last block ended
        self._num_tried = 0  # cycles under habits that did not lead
        self._is_due = False  # whether a block may end with this cycle
        self._prices = 0.0, 0.0  # of a cycle and of a batch, seconds
        self._standing: dict[str, float] = {}

    @property
    def is_work_conserving(self) -> bool:
        """Not while the kernel has its way."""
        return self._habit != KERNEL

    @property
    def needs_rates(self) -> bool:
        """Only to foresee, and to compare two blocks: at most other events rates would cost more than the decision."""
        return self._is_due or self._habit in (FORESIGHT, "")

    @property
    def stance(self) -> str:
        """The habit that is followed now, and what foresight chose last if it is that."""
        return f"{FORESIGHT}: {self._foresight.chosen}" if self._habit == FORESIGHT else self._habit

    def describe(self) -> dict[str, object]:
        """What each habit that was tried costs: seconds per second that its progress was worth by the rates."""
        return {"standing": self._standing}

    def trials(self, num_cores: int) -> tuple[Allocation, ...]:
        """For foresight, every kind of mode, the one that cannot do much harm first. No other habit needs to know them."""
        if self._habit != FORESIGHT:
            return ()
        exclusive = Allocation.all_comp(num_cores), Allocation.all_comm(num_cores)
        return Allocation.sharing(COMPUTE_FIRST, num_cores), *exclusive, *split_trials(num_cores)

    def choose(self, view: View) -> Allocation:
        """What the habit of now does here."""
        num_cores = view.num_cores
        if num_cores != self._num_cores:
            self._start_race(view)
        if num_cores == 1:
            return Allocation.all_comp(1)
        if view.num_forward == view.num_backward > self._num_cycles and view.num_comm < view.cycles:
            self._num_cycles = view.num_backward
            self._end_cycle(view)
        if self._habit == KERNEL:
            return Allocation.unpinned(num_cores)
        if self._habit == FORESIGHT:
            return self._foresight.choose(view)
        return self._modes[self._habit] if self._refill.goes_on(view) else Allocation.all_comp(num_cores)

    def _start_race(self, view: View) -> None:
        """On so many cores as there are now.

        Foresight begins where a profile tells the rates. Else it is last, because it has to learn them, and the kernel's way is
        first, because with that nothing is lost yet.
        """
        num_cores = view.num_cores
        splits = [Allocation.split(c, num_cores) for c in _split_cores(num_cores)]
        self._modes = {str(split): split for split in splits}
        self._modes[COMPUTE_FIRST] = Allocation.sharing(COMPUTE_FIRST, num_cores)
        if (
            view.prefetch is not None
        ):  # without a limit there is no burst to wait for, and foresight has its choice of when to receive
            self._modes[BURSTS] = Allocation.all_comm(num_cores)
        habits = [KERNEL, *self._modes]
        if view.rates is not None:
            habits = [FORESIGHT, *habits]
        elif view.prefetch is None:
            habits = [*habits, FORESIGHT]
        self._num_cores, self._race, self._standing = num_cores, Race(habits), {}
        self._follow(habits[0])

    def _end_cycle(self, view: View) -> None:
        """A training step has ended: perhaps a block has, and another habit has its turn."""
        if self._habit == FORESIGHT and (view.noise == 0 or math.isnan(view.time)):
            return
        here = _Mark.of(view)
        if self._start is None:
            self._start = here
            return
        block = self._start.block_until(here)
        if self._is_due:
            self._end_block(view, here, block)
        else:  # it ends with the next cycle, for which the rates are asked
            self._is_due = block.cycles + 1 >= _block_length(view.cycles) or self._is_hopeless(block)

    def _end_block(self, view: View, here: _Mark, block: Block) -> None:
        """`block` ends `here`: the next begins at once, or another habit is taken up."""
        assert self._race is not None
        barred: tuple[str, ...] = ()
        if view.rates is None:  # of no mode yet; a batch is then worth nothing, which is not far off where comm is light
            self._prices = block.seconds / block.cycles, 0.0
        else:
            comp, comm = self._foresight.cycle_work(view)
            prices = self._foresight.prices(view)
            self._prices = comp * prices[0], comm * prices[1]
            barred = self._barred(view.rates, comp, comm)
        self._race.take_in(self._habit, block)
        if self._habit != self._race.leader:
            self._num_tried += here.cycles - self._since
        may_try = self._num_tried < TRYING * (here.cycles + view.cycles)
        noise = view.noise * math.sqrt(LONG_BLOCK / block.cycles)
        habit = self._race.next(self._prices, noise, barred, may_try=may_try)
        self._standing = self._race.standing(self._prices)
        if habit == self._habit:
            self._start, self._since, self._is_due = here, here.cycles, False
        else:
            self._follow(habit)

    def _follow(self, habit: str) -> None:
        self._habit, self._start, self._since, self._is_due = habit, None, self._num_cycles, False
        self._refill = _Refill(is_exclusive=habit == BURSTS, most_s=sum(self._prices))

    def _barred(self, rates: RateTable, comp: float, comm: float) -> tuple[str, ...]:
        """Habits that need not be tried, because the rates say that they are far behind."""
        least = HOPELESS * sum(self._prices)
        barred = []
        if comp / rates.comp[0] + comm / rates.comm[-1] > least:
            barred.append(BURSTS)
        behind = next((mode for mode in rates.shared if mode.name == COMPUTE_FIRST), None)
        if behind is not None and _steady_cycle_s(behind, comp, comm, rates) > least:
            barred.append(COMPUTE_FIRST)
        return tuple(barred)

    def _is_hopeless(self, block: Block) -> bool:
        """Whether this block need not be followed to its end, be it that its habit is bad or that the world has changed."""
        best = min(self._standing.values(), default=math.inf)
        return block.seconds > HOPELESS * best * block.worth(self._prices)


class _Refill:
    """When comm runs beside a full buffer: not for every batch that fits, but for `BURST` of them, because each time that cores
    go from one side to the other costs both. Without a limit of the buffer comm always runs.

    Exclusive, with training waiting, it is for so many batches and no more, and ends after `most_s` seconds: then it has become
    a wait for the link. Beside training it goes on until the buffer is full.
    """

    def __init__(self, *, is_exclusive: bool, most_s: float) -> None:
        self._is_exclusive = is_exclusive
        self._most_s = most_s
        self._is_open = True
        self._cycle = -1  # the last one whose end was seen
        self._began = math.nan
        self._first = 0  # Comm tasks done when it began

    def goes_on(self, view: View) -> bool:
        """Whether comm is to run now."""
        if view.prefetch is None:
            return True
        if view.num_forward > view.num_backward:
            return self._is_open and not self._is_exclusive
        level = view.num_comm - view.num_backward
        size = min(BURST, view.prefetch)
        if view.num_backward != self._cycle:
            self._cycle = view.num_backward
            was_open = self._is_open and not self._is_exclusive
            self._is_open = level < view.prefetch - 1 if was_open else level + size <= view.prefetch
            self._began, self._first = view.time, view.num_comm
        elif self._is_exclusive and (view.num_comm >= self._first + size or view.time - self._began > self._most_s):
            self._is_open = False
        return self._is_open


def _block_length(cycles: int) -> int:
    return LONG_BLOCK if cycles >= BLOCKS_PER_RUN * LONG_BLOCK else SHORT_BLOCK


def _steady_cycle_s(mode: Mode, comp: float, comm: float, rates: RateTable) -> float:
    """Seconds of a cycle in which both sides have `mode` until one of them is done, and the other then every core."""
    seconds = min(comp / mode.comp_rate, comm / mode.comm_rate)
    comp_left, comm_left = comp - mode.comp_rate * seconds, comm - mode.comm_rate * seconds
    return seconds + max(comp_left, 0.0) / rates.comp[0] + max(comm_left, 0.0) / rates.comm[-1]


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


def _split_cores(num_cores: int) -> list[int]:
    """Comm's cores in the splits that are raced: few, because comm seldom pays for many."""
    return sorted({1, max(num_cores // 4, 1), max(num_cores // 2, 1)}) if num_cores > 1 else []


def split_trials(num_cores: int) -> tuple[Allocation, ...]:
    """The splits that tell most about all of them: in the middle, and with one core for either side."""
    return tuple(Allocation.split(c, num_cores) for c in dict.fromkeys((num_cores // 2, 1, num_cores - 1)))
