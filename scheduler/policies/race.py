"""A race of strategies: which of a few ways to use the cores makes the same progress in the least time, by the stopwatch.

What a mode is worth cannot always be told from the rates of its tasks. Where comm receives for a tenth of a cycle, what one batch
costs training drowns in the noise of whole tasks, and what a decision itself costs stands in no rate at all. The time of a few
cycles has everything in it. So each strategy is followed for a block of cycles, in turns, because a machine drifts; those that are
behind by more than the noise drop out, the best goes on, and is challenged from time to time, more and more rarely.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, shown, whole

ROUNDS = 2
"""Blocks, the first ever not among them, after which a strategy that is not behind counts as measured."""

REMEMBERED = 6
"""Blocks of a strategy that its standing rests on."""

LEAST_MARGIN = 0.02
"""A strategy is never dropped for less than this part."""

SURE = 2.5
"""How many times the noise of a difference a strategy must be behind."""

COLD = 1.0
"""Allowed lag of a strategy in its first block: another number of threads needs other linear algebra kernels."""

INCREDIBLE = 5.0
"""No strategy is worse than the best by this factor: its blocks are from before the world changed, and are forgotten."""

NEAR = 3.0
"""A strategy that is behind by more than so many margins is not tried again, unless the world changes."""

CHANGED = 4.0
"""The leader's last two blocks off its others by so many times the noise: the world has changed, and all is measured anew."""

LEAST_CHANGE = 0.1
"""A smaller part is never taken for a change of the world."""

FAR = 2.0
"""A single block that is worse than a later one of its strategy by so many changes is from another world."""

FIRST_CHALLENGE_INTERVAL = 4
MAX_CHALLENGE_INTERVAL = 32
"""Blocks of the leader between two challenges: so few at first, twice as many each time, never more than the second."""

FEWEST = 6
"""Blocks that tell how much blocks differ."""

_MAD = 1.4826  # times the median absolute deviation: the standard deviation of what is normally distributed

Prices = tuple[float, float]
"""What part of a whole cycle's worth is in its training, and what part in its batch received."""


class Block(NamedTuple):
    """Some cycles of training under one strategy: their seconds, how many, and the batches that were received meanwhile.

    `number` is its place among the blocks of all strategies.
    """

    seconds: float
    cycles: int
    batches: float
    number: int = 0

    def worth(self, prices: Prices) -> float:
        """How many cycles its progress is worth, where the prices add up to 1."""
        return prices[0] * self.cycles + prices[1] * self.batches


class Race:
    """Whose turn it is, and who leads. The first of the strategies begins, and has the benefit of the doubt."""

    leader: str
    """The strategy that the last standing says is best."""

    def __init__(self, strategies: Sequence[str]) -> None:
        assert strategies, "a race needs a runner"
        self._order = list(strategies)
        self._is_warm: set[str] = set()
        self._num_blocks = 0
        self._restart()

    def take_in(self, strategy: str, block: Block) -> None:
        """A block of this strategy has ended. Its first ever is forgotten as soon as there is another: caches had to be filled."""
        blocks = self._blocks[strategy]
        if strategy not in self._is_warm and len(blocks) == 1:
            self._is_warm.add(strategy)
            blocks.clear()
        self._num_blocks += 1
        blocks.append(block._replace(number=self._num_blocks))

    def is_warm(self, strategy: str) -> bool:
        """Whether it has had a block."""
        return strategy in self._is_warm

    def standing(self, prices: Prices) -> dict[str, float]:
        """Of each strategy that ran, the seconds that a cycle's worth of progress took."""
        return {strategy: _score(blocks, prices) for strategy, blocks in self._blocks.items() if blocks}

    def next(self, prices: Prices, noise: float, *, may_try: bool = True) -> str:
        """The strategy of the next block; without `may_try` the leader.

        `noise` is the relative standard error that a block is expected to have.
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
        """How it stands, for `recall`."""
        return {
            "order": self._order,
            "warm": sorted(self._is_warm),
            "blocks": {strategy: [list(block) for block in blocks] for strategy, blocks in self._blocks.items()},
            "leader": self.leader,
            "patience": self._challenge_interval,
            "since_challenge": self._since_challenge,
        }

    def recall(self, data: Any, where: str) -> None:
        """Stand again as `to_json` told. ValueError, and nothing is changed, if it cannot have told that of these strategies."""
        check_keys(data, required=("order", "warm", "blocks", "leader", "patience", "since_challenge"), where=where)
        order, warm = listing(data["order"], f"{where}, order"), listing(data["warm"], f"{where}, warm")
        told = mapping(data["blocks"], f"{where}, blocks")
        known = set(self._order)
        if len(order) != len(known) or not all(isinstance(name, str) for name in (*order, *warm, data["leader"])):
            raise ValueError(f"{where}: the strategies {shown(order)} are not those of now, {sorted(known)}")
        if set(order) != known or set(told) != known or not set(warm) <= known or data["leader"] not in known:
            raise ValueError(f"{where}: the strategies {shown(order)} are not those of now, {sorted(known)}")
        blocks = {strategy: [_block(entry, where) for entry in listing(told[strategy], f"{where}, blocks")] for strategy in order}
        challenge_interval = whole(data, "patience", where, least=1, most=MAX_CHALLENGE_INTERVAL)
        since = whole(data, "since_challenge", where, least=0, most=None)
        self._order, self._is_warm = list(order), set(warm)
        self._restart()
        for strategy in order:
            self._blocks[strategy].extend(blocks[strategy])
        self._num_blocks = max((block.number for each in blocks.values() for block in each), default=0)
        self.leader, self._challenge_interval, self._since_challenge = data["leader"], challenge_interval, since

    def _noise(self, prices: Prices, expected: float) -> float:
        """How much blocks of one strategy differ: `expected`, until there are enough to tell. By medians, because a block in which
        the world changed says nothing of noise.
        """
        deviations = []
        for blocks in self._blocks.values():
            scores = [_score([block], prices) for block in blocks]
            if len(scores) > 1:
                middle = statistics.median(scores)
                deviations += [abs(score / middle - 1) for score in scores]
        return _MAD * statistics.median(deviations) if len(deviations) >= FEWEST else expected

    def _margin(self, strategy: str, margin: float) -> float:
        """By what part a strategy may be behind."""
        return margin / math.sqrt(max(len(self._blocks[strategy]), 1)) if strategy in self._is_warm else COLD

    def _challenger(self, scores: dict[str, float], others: list[str]) -> str | None:
        """The best of the others, when its time has come."""
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
        """A block far worse than a later one of its strategy is from another world, and with it all that came before it."""
        last = 0
        for blocks in self._blocks.values():
            if len(blocks) > 1:
                most = _score([blocks[-1]], prices) * (1 + margin)
                last = max([last, *(block.number for block in blocks if _score([block], prices) > most)])
        for blocks in self._blocks.values():
            while blocks and blocks[0].number <= last:
                blocks.popleft()

    def _has_changed(self, prices: Prices, margin: float) -> bool:
        """Whether the leader is no longer what it was."""
        blocks = list(self._blocks[self.leader])
        if len(blocks) < REMEMBERED - 2:
            return False
        before, now = _score(blocks[:-2], prices), _score(blocks[-2:], prices)
        return not before / (1 + margin) <= now <= before * (1 + margin)


def _block(data: Any, where: str) -> Block:
    values = [not_negative(value, "a block's number", where, "it") for value in listing(data, where, length=4)]
    seconds, cycles, batches, place = values
    if not seconds or not cycles:
        raise ValueError(f"{where}: a block of no time, or of no cycles: {shown(data)}")
    return Block(seconds, int(cycles), batches, int(place))


def _score(blocks: Collection[Block], prices: Prices) -> float:
    worth = sum(block.worth(prices) for block in blocks)
    return sum(block.seconds for block in blocks) / worth if worth > 0 else math.inf
