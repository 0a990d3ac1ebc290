"""The link rate: separating waits for bytes from slow cores."""

from __future__ import annotations

import math

import pytest

from scheduler.control.link_rate import Link


def observed_wait(link: Link, *, seconds: float, busy_s: float) -> float:
    return link.update(work=1.0, seconds=seconds, busy_s=busy_s)


def test_a_busy_task_tells_of_no_limit() -> None:
    link = Link()
    assert observed_wait(link, seconds=2.0, busy_s=1.9) == pytest.approx(0.1)
    assert not link.is_bottleneck


def test_a_task_that_mostly_waited_tells_the_rate() -> None:
    link = Link()
    assert observed_wait(link, seconds=2.0, busy_s=0.5) == 1.5
    assert link.rate == 0.5


@pytest.mark.parametrize(("before", "after"), [(0.2, 2.0), (2.0, 0.2)])
def test_a_link_that_changes_tenfold_is_followed_within_three_tasks(before: float, after: float) -> None:
    link = Link()
    for _ in range(10):
        observed_wait(link, seconds=before, busy_s=0.01)
    for _ in range(3):
        observed_wait(link, seconds=after, busy_s=0.01)
    assert 1 / link.rate == pytest.approx(after, rel=0.7)
    assert abs(1 / link.rate - after) < abs(1 / link.rate - before)


def test_a_task_without_a_wait_disproves_the_limit() -> None:
    link = Link()
    observed_wait(link, seconds=1.0, busy_s=0.2)
    observed_wait(link, seconds=1.0, busy_s=0.95)
    assert link.rate == math.inf


def test_a_task_faster_than_the_limit_disproves_it() -> None:
    link = Link()
    observed_wait(link, seconds=1.0, busy_s=0.2)
    observed_wait(link, seconds=0.5, busy_s=0.35)
    assert link.rate == math.inf


def test_clocks_that_disagree_make_no_negative_wait() -> None:
    assert observed_wait(Link(), seconds=1.0, busy_s=1.2) == 0.0
