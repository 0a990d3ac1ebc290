"""The rate limit, on a simulated clock."""

import pytest

from cloud_teacher.service.rate_limit import CATCH_UP_S, RateLimiter
from edgekd.cli.rate import parse_rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [("800bit", 800.0), ("64kbit", 64e3), ("100mbit", 100e6), ("1.5gbit", 1.5e9), ("0.5mbit", 5e5), ("007mbit", 7e6)],
)
def test_rates_are_read_as_networks_count(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "100", "mbit", "100 mbit", "100Mbit", "100mb", "100mbps", "-1mbit", "+1mbit", "1e3mbit", "1.mbit", ".5mbit", "0mbit",
     "0.0bit", "100mbit ", "100mbit\n", "nanmbit", "infmbit", "1_0mbit"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 100mbit"):
        parse_rate(text)


def send(rate_limiter: RateLimiter, num_bytes: int, now: float, late_s: float = 0.0) -> float:
    """Wait as the rate limiter requires, plus `late_s` if it requires a wait. Returns the elapsed seconds."""
    wait = rate_limiter.wait(now)
    passed = wait + late_s if wait > 0 else 0.0
    rate_limiter.take(num_bytes, now + passed)
    return passed


def test_first_chunk_goes_at_once_and_each_later_one_when_those_before_have_had_their_time() -> None:
    rate_limiter = RateLimiter(8000)
    assert [send(rate_limiter, 100, now=0.0) for _ in range(3)] == pytest.approx([0.0, 0.1 - CATCH_UP_S, 0.2 - CATCH_UP_S])


def test_sender_that_waits_as_required_keeps_exactly_the_rate() -> None:
    rate_limiter, now = RateLimiter(8e6), 100.0
    for _ in range(1000):
        now += send(rate_limiter, 5000, now)
    assert now - 100.0 == pytest.approx(999 * 0.005 - CATCH_UP_S)


def test_sleeps_that_end_late_do_not_slow_the_stream_down() -> None:
    rate_limiter, now = RateLimiter(8e6), 0.0
    for _ in range(1000):
        now += send(rate_limiter, 500, now, late_s=0.003)  # every chunk takes 0.5 ms of the link
    assert now == pytest.approx(0.5, abs=0.014)


def test_idle_time_earns_no_burst() -> None:
    rate_limiter = RateLimiter(8000)
    send(rate_limiter, 1000, now=0.0)
    waits = [send(rate_limiter, 100, now=1000.0) for _ in range(3)]
    assert waits == pytest.approx([0.0, 0.1 - CATCH_UP_S, 0.2 - CATCH_UP_S])


def test_two_streams_share_one_rate() -> None:
    rate_limiter, sent = RateLimiter(8e6), 0
    clocks = [0.0, 0.0]
    while min(clocks) < 10.0:
        stream = clocks.index(min(clocks))
        clocks[stream] += send(rate_limiter, 10_000, clocks[stream])
        sent += 10_000
    assert sent == pytest.approx(10e6, rel=0.005)


def test_a_cancelled_wait_takes_nothing() -> None:
    rate_limiter = RateLimiter(8000)
    rate_limiter.take(1000, now=0.0)
    for _ in range(100):
        assert rate_limiter.wait(0.0) == pytest.approx(1.0 - CATCH_UP_S)


def test_the_bytes_of_a_period_are_at_least_one() -> None:
    assert RateLimiter(8e6).bytes_in(0.5) == 500_000
    assert RateLimiter(1.0).bytes_in(0.5) == 1
