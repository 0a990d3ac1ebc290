"""A race of strategies: measure which of a few strategies makes the same progress in the least time.

Rates of tasks do not always show what a mode costs. If comm receives for only a tenth of a cycle, the cost of one batch for
training is smaller than the noise of whole tasks. The cost of a decision itself is in no rate. The time of a few cycles includes
both. So the strategies take turns, each for a block of cycles, because the speed of a machine drifts. A strategy that is behind by
more than the noise drops out, and the best one leads. From time to time a challenger gets a block, less and less often.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, shown, whole

ROUNDS = 2
"""Number of blocks after which a strategy that is not behind counts as measured. Its first block, a warm-up, does not count."""

REMEMBERED = 6
"""Number of the latest blocks of a strategy that determine its standing."""

LEAST_MARGIN = 0.02
"""Least relative lag for which a strategy is dropped."""

SURE = 2.5
"""A strategy is dropped if its lag exceeds the noise of a difference by this factor."""

COLD = 1.0
"""Allowed relative lag of a strategy in its first block: a new number of threads loads other linear algebra kernels."""

INCREDIBLE = 5.0
"""A strategy slower than the best by this factor was measured before the machine changed: its blocks are dropped."""

NEAR = 3.0
"""A strategy that is behind by more than this number of margins is not tried again, unless the machine changes."""

CHANGED = 4.0
"""The race restarts if the leader's last two blocks differ from its others by this factor times the noise."""

LEAST_CHANGE = 0.1
"""Least relative difference that counts as a change of the machine."""

FAR = 2.0
"""A block slower than a later block of its strategy by this number of changes is from before a change of the machine."""

FIRST_CHALLENGE_INTERVAL = 4
MAX_CHALLENGE_INTERVAL = 32
"""Number of the leader's blocks between two challenges: the first value, then doubled each time up to the maximum."""

FEWEST = 6
"""Number of blocks from which the noise of blocks is measured."""

_MAD = 1.4826  # converts a median absolute deviation to the standard deviation of a normal distribution

Prices = tuple[float, float]
"""The worth of training a cycle and of receiving its batch, as shares of a whole cycle's worth. They add up to 1."""


class Block(NamedTuple):
    """Some cycles of training under one strategy: their seconds, their number, and the batches received in this time.

    `number` is the position of the block among the blocks of all strategies.
    """

    seconds: float
    cycles: int
    batches: float
    number: int = 0

    def worth(self, prices: Prices) -> float:
        """Return the progress in cycles. The prices add up to 1."""
        return prices[0] * self.cycles + prices[1] * self.batches


class Race:
    """Chooses the strategy of the next block, and the leader. The first strategy starts as the leader."""

    leader: str
    """The best strategy of the last standing."""

    def __init__(self, strategies: Sequence[str]) -> None:
        assert strategies, "a race needs at least one strategy"
        self._order = list(strategies)
        self._is_warm: set[str] = set()
        self._num_blocks = 0
        self._restart()

    def take_in(self, strategy: str, block: Block) -> None:
        """Add a completed block of this strategy. Its first block, which warms the caches, is dropped when the second is added."""
        blocks = self._blocks[strategy]
        if strategy not in self._is_warm and len(blocks) == 1:
            self._is_warm.add(strategy)
            blocks.clear()
        self._num_blocks += 1
        blocks.append(block._replace(number=self._num_blocks))

    def is_warm(self, strategy: str) -> bool:
        """Whether the strategy has completed its warm-up block."""
        return strategy in self._is_warm

    def standing(self, prices: Prices) -> dict[str, float]:
        """Return, for each strategy with blocks, the seconds per cycle's worth of progress."""
        return {strategy: _score(blocks, prices) for strategy, blocks in self._blocks.items() if blocks}

    def next(self, prices: Prices, noise: float, *, may_try: bool = True) -> str:
        """Return the strategy of the next block; without `may_try`, the leader.

        `noise` is the expected relative standard error of a block.
        """
        margin = max(LEAST_MARGIN, SURE * self._noise(prices, noise))
        change = max(CHANGED * margin / SURE, LEAST_CHANGE)
        self._forget_worse_times(prices, FAR * change)
        scores = self.standing(prices)
        if self._has_changed(prices, change):
            self._order.sort(key=lambda strategy: scores.get(strategy, math.inf))
            self._restart()
            scores = {}
        leader = min(self._order, key=lambda strategy: scores.get(strategy, math.inf))
        if leader != self.leader:
            self.leader, self._challenge_interval, self._since_challenge = leader, FIRST_CHALLENGE_INTERVAL, 0
        if not may_try or not self._blocks[leader]:
            return leader
        best = scores.get(leader, math.inf)
        for strategy in [strategy for strategy in self._order if scores.get(strategy, 0.0) > INCREDIBLE * best]:
            self._blocks[strategy].clear()
            del scores[strategy]
        within = [strategy for strategy in self._order if scores.get(strategy, 0.0) <= best * (1 + self._margin(strategy, margin))]
        unmeasured = [strategy for strategy in within if len(self._blocks[strategy]) < ROUNDS or strategy not in self._is_warm]
        if unmeasured and within != [leader]:
            return min(unmeasured, key=lambda strategy: (strategy in self._is_warm, len(self._blocks[strategy])))
        reach = {strategy: best * (1 + NEAR * self._margin(strategy, margin)) for strategy in self._order if strategy != leader}
        near = [strategy for strategy, worst in reach.items() if scores.get(strategy, 0.0) <= worst]
        return self._challenger(scores, near) or leader

    def to_json(self) -> dict[str, Any]:
        """Return the state of the race as JSON values, for `recall`."""
        return {
            "order": self._order,
            "warm": sorted(self._is_warm),
            "blocks": {strategy: [list(block) for block in blocks] for strategy, blocks in self._blocks.items()},
            "leader": self.leader,
            "patience": self._challenge_interval,  # files keep the older word
            "since_challenge": self._since_challenge,
        }

    def recall(self, data: Any, where: str) -> None:
        """Restore the state of `to_json`. Raises ValueError, and changes nothing, if the data do not fit these strategies."""
        check_keys(data, required=("order", "warm", "blocks", "leader", "patience", "since_challenge"), where=where)
        order, warm = listing(data["order"], f"{where}, order"), listing(data["warm"], f"{where}, warm")
        blocks_by_strategy = mapping(data["blocks"], f"{where}, blocks")
        known = set(self._order)
        if len(order) != len(known) or not all(isinstance(name, str) for name in (*order, *warm, data["leader"])):
            raise ValueError(f"{where}: the strategies are {shown(order)}, must be {sorted(known)}")
        if set(order) != known or set(blocks_by_strategy) != known or not set(warm) <= known or data["leader"] not in known:
            raise ValueError(f"{where}: the strategies are {shown(order)}, must be {sorted(known)}")
        blocks = {
            strategy: [_block(entry, where) for entry in listing(blocks_by_strategy[strategy], f"{where}, blocks")]
            for strategy in order
        }
        challenge_interval = whole(data, "patience", where, least=1, most=MAX_CHALLENGE_INTERVAL)
        since = whole(data, "since_challenge", where, least=0, most=None)
        self._order, self._is_warm = list(order), set(warm)
        self._restart()
        for strategy in order:
            self._blocks[strategy].extend(blocks[strategy])
        self._num_blocks = max((block.number for each in blocks.values() for block in each), default=0)
        self.leader, self._challenge_interval, self._since_challenge = data["leader"], challenge_interval, since

    def _noise(self, prices: Prices, expected: float) -> float:
        """Return the relative noise of blocks: measured within strategies, or `expected` while there are too few blocks.

        Medians are used, because a block in which the machine changed contains no information about noise.
        """
        deviations = []
        for blocks in self._blocks.values():
            scores = [_score([block], prices) for block in blocks]
            if len(scores) > 1:
                middle = statistics.median(scores)
                deviations += [abs(score / middle - 1) for score in scores]
        return _MAD * statistics.median(deviations) if len(deviations) >= FEWEST else expected

    def _margin(self, strategy: str, margin: float) -> float:
        """Return the relative lag that is allowed for a strategy."""
        return margin / math.sqrt(max(len(self._blocks[strategy]), 1)) if strategy in self._is_warm else COLD

    def _challenger(self, scores: dict[str, float], others: list[str]) -> str | None:
        """Return the best of the others if a challenge is due, otherwise None."""
        self._since_challenge += 1
        if self._since_challenge <= self._challenge_interval or not others:
            return None
        self._since_challenge, self._challenge_interval = 0, min(2 * self._challenge_interval, MAX_CHALLENGE_INTERVAL)
        return min(others, key=lambda strategy: scores.get(strategy, 0.0))

    def _restart(self) -> None:
        self._blocks: dict[str, deque[Block]] = {strategy: deque(maxlen=REMEMBERED) for strategy in self._order}
        self.leader = self._order[0]
        self._challenge_interval = FIRST_CHALLENGE_INTERVAL
        self._since_challenge = 0

    def _forget_worse_times(self, prices: Prices, margin: float) -> None:
        """Drop each block far slower than a later block of its strategy, and all earlier blocks: the machine has changed."""
        last = 0
        for blocks in self._blocks.values():
            if len(blocks) > 1:
                most = _score([blocks[-1]], prices) * (1 + margin)
                last = max([last, *(block.number for block in blocks if _score([block], prices) > most)])
        for blocks in self._blocks.values():
            while blocks and blocks[0].number <= last:
                blocks.popleft()

    def _has_changed(self, prices: Prices, margin: float) -> bool:
        """Whether the leader's last two blocks differ from its earlier blocks by more than `margin`."""
        blocks = list(self._blocks[self.leader])
        if len(blocks) < REMEMBERED - 2:
            return False
        before, now = _score(blocks[:-2], prices), _score(blocks[-2:], prices)
        return not before / (1 + margin) <= now <= before * (1 + margin)


def _block(data: Any, where: str) -> Block:
    values = [not_negative(value, "a block's number", where, "a block's field") for value in listing(data, where, length=4)]
    seconds, cycles, batches, number = values
    if not seconds or not cycles:
        raise ValueError(f"{where}: block {shown(data)}: its time and cycles must be above 0")
    return Block(seconds, int(cycles), batches, int(number))


def _score(blocks: Collection[Block], prices: Prices) -> float:
    worth = sum(block.worth(prices) for block in blocks)
    return sum(block.seconds for block in blocks) / worth if worth > 0 else math.inf
