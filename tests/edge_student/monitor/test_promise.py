"""A run that takes far longer than its first cycles promised."""

import pytest

from edge_student.monitor.promise import Promise


def promise_of_100_cycles(first_waits_s: float = 0.0) -> Promise:
    """A run whose first 10 cycles take 1 s."""
    promise = Promise(100)
    promise.begin(50.0)
    for cycle in range(1, 101):
        promise.on_cycle(cycle, 50.0 + 0.1 * cycle, first_waits_s if cycle <= 10 else 99.0)
    return promise


@pytest.mark.promise(number=27)
@pytest.mark.parametrize(
    ("took", "waits_s", "causes", "note"),
    [
        (19.9, 0.0, ["others"], None),
        (20.0, 0.0, ["others", "a worker"], "took 2.0 times as long as its first 10 cycles promised: others; a worker"),
        (30.0, 0.0, [], "its steps took longer, and no measured cause explains it"),
        (30.0, 12.5, [], "took 3.0 times as long as its first 10 cycles promised: training waited 12.5 s for logits"),
        (30.0, 12.5, ["the link"], "training waited 12.5 s for logits; the link"),
    ],
)
def test_a_run_that_takes_twice_as_long_as_promised_says_why(
    took: float, waits_s: float, causes: list[str], note: str | None
) -> None:
    found = promise_of_100_cycles().broken(100, 50.0 + took, waits_s, causes)
    assert found == note if note is None else found is not None and found.endswith(note)


def test_waits_that_the_first_cycles_had_too_are_no_cause() -> None:
    found = promise_of_100_cycles(first_waits_s=0.9).broken(100, 80.0, 12.0, [])
    assert found is not None
    assert "waited" not in found


def test_a_run_that_ended_early_has_promised_nothing() -> None:
    assert promise_of_100_cycles().broken(19, 1000.0, 0.0, []) is None
    assert Promise(5).broken(5, 1000.0, 0.0, []) is None
