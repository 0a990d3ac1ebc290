"""The race of strategies: which strategies are tried or dropped, which one leads, and when the race restarts."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from scheduler.policies.race import FIRST_CHALLENGE_INTERVAL, Block, Race

PRICES = (1.0, 0.0)


def follow(race: Race, cost: dict[str, float], *, blocks: int, noise: float = 0.0) -> list[str]:
    """Return the strategies that ran, if a cycle under each strategy costs the seconds of `cost`."""
    rng, ran, strategy = random.Random(1), [], race.leader
    for _ in range(blocks):
        ran.append(strategy)
        race.take_in(strategy, Block(8 * cost[strategy] * rng.lognormvariate(0, noise), 8, 8.0))
        strategy = race.next(PRICES, noise)
    return ran


def test_the_best_leads_and_the_others_are_tried_less_and_less_often() -> None:
    race = Race(["a", "b", "c"])
    ran = follow(race, {"a": 1.1, "b": 1.0, "c": 1.5}, blocks=100)
    assert race.leader == "b"
    assert set(ran[:3]) == {"a", "b", "c"}
    assert Counter(ran[-60:])["b"] >= 56


@pytest.mark.parametrize("noise", [0.05, 0.15])
def test_noise_does_not_hide_a_large_difference(noise: float) -> None:
    ran = follow(Race(["a", "b", "c", "d"]), {"a": 1.5, "b": 1.4, "c": 1.0, "d": 1.6}, blocks=80, noise=noise)
    assert Counter(ran[-40:])["c"] > 30


def test_the_first_block_of_a_strategy_is_dropped_when_there_is_another() -> None:
    race = Race(["a"])
    race.take_in("a", Block(80.0, 8, 8.0))
    assert race.standing(PRICES) == {"a": 10.0}
    race.take_in("a", Block(8.0, 8, 8.0))
    assert race.standing(PRICES) == {"a": 1.0}


def test_without_may_try_the_leader_continues() -> None:
    race = Race(["a", "b"])
    race.take_in("a", Block(8.0, 8, 8.0))
    assert race.next(PRICES, 0.0, may_try=False) == "a"
    assert race.next(PRICES, 0.0) == "b"


def test_batches_that_were_received_ahead_are_worth_their_price() -> None:
    race = Race(["a"])
    race.take_in("a", Block(10.0, 4, 12.0))
    assert race.standing((1.0, 0.5)) == {"a": 1.0}


def test_blocks_far_slower_than_a_later_block_are_dropped() -> None:
    race = Race(["a", "b"])
    for seconds in (8.0, 8.0, 8.0, 40.0):
        race.take_in("a", Block(seconds, 8, 8.0))
    race.next(PRICES, 0.05)
    assert race.standing(PRICES)["a"] > 1.5  # the machine may have become slower permanently
    race.take_in("a", Block(8.0, 8, 8.0))
    race.next(PRICES, 0.05)
    assert race.standing(PRICES) == {"a": 1.0}


def test_all_blocks_before_a_dropped_block_are_dropped_too() -> None:
    race = Race(["a", "b", "c"])
    for strategy, seconds in (("b", 16.0), ("b", 16.0), ("a", 8.0), ("a", 40.0), ("c", 24.0), ("a", 8.0)):
        race.take_in(strategy, Block(seconds, 8, 8.0))
    race.next(PRICES, 0.05)
    assert race.standing(PRICES) == {"a": 1.0, "c": 3.0}


def test_a_strategy_that_is_far_behind_does_not_challenge_again() -> None:
    ran = follow(Race(["a", "b"]), {"a": 1.0, "b": 3.0}, blocks=100, noise=0.02)
    assert Counter(ran)["b"] <= 3  # the warm-up block, one counted block, and at most one challenge


def test_when_the_leader_gets_slower_the_others_are_measured_again() -> None:
    race = Race(["a", "b"])
    follow(race, {"a": 1.0, "b": 1.4}, blocks=20)
    assert race.leader == "a"
    ran = follow(race, {"a": 3.0, "b": 1.4}, blocks=20)
    assert "b" in ran[:FIRST_CHALLENGE_INTERVAL]
    assert race.leader == "b"
