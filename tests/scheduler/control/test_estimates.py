"""Rates estimated from tasks on constant and on changing cores, and the resulting table."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.control.estimates import Estimates
from scheduler.model.cost import Workload
from scheduler.model.state import Allocation, Task
from scheduler.policies.view import warm_up_splits


def taught(*lessons: tuple[Task, dict[int, float]], workload: Workload | None = None) -> Estimates:
    """Return estimates after these tasks, each given as seconds by number of pinned cores."""
    estimates = Estimates(workload)
    for task, seconds in lessons:
        estimates.finish(task, seconds)
        estimates.refresh()
    return estimates


def test_a_whole_task_tells_its_rate_at_once() -> None:
    estimates = taught((Task.COMM, {2: 4.0}), workload=Workload(forward=1.0, backward=2.0, comm=6.0))
    assert estimates.comm.rates == {2: 1.5}


def test_a_rate_follows_the_newest_tasks() -> None:
    old, new = [(Task.COMM, {1: 1.0})] * 16, [(Task.COMM, {1: 2.0})]
    rates = [taught(*old, *new * count).comm.rates[1] for count in (0, 1, 4, 16)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1.0)
    assert rates[1] > 0.7  # one outlier is no new truth
    assert rates[2] < 0.7
    assert rates[3] == pytest.approx(0.5, rel=0.01)


def test_forward_and_backward_share_a_cycle_by_their_durations() -> None:
    estimates = taught(*[(Task.FORWARD, {2: 1.0}), (Task.BACKWARD, {2: 3.0})] * 4)
    assert estimates.workload.forward == pytest.approx(0.25, rel=1e-3)
    assert estimates.workload.forward + estimates.workload.backward == pytest.approx(1.0)
    assert estimates.comp.rates[2] == pytest.approx(0.25, rel=1e-3)


def test_durations_on_different_cores_are_compared_by_their_rates() -> None:
    """Forward always has 1 core and Backward 4, except in one cycle, which shows that four cores are twice as fast as one."""
    usual = [(Task.FORWARD, {1: 2.0}), (Task.BACKWARD, {4: 1.0})]
    estimates = taught(*usual, (Task.FORWARD, {4: 1.0}), *usual[1:], *usual * 3)
    assert estimates.workload.forward == pytest.approx(0.5, rel=0.02)


def test_rates_come_out_of_tasks_that_never_kept_a_split() -> None:
    """Comm has rate 1.0 with one core and 3.0 with four. Every task ran on both."""
    lessons = [(Task.COMM, {1: t, 4: (1 - t) / 3}) for t in (0.2, 0.8, 0.5, 0.3, 0.7) * 6]
    rates = taught(*lessons).comm.rates
    assert rates[1] == pytest.approx(1.0, rel=0.02)
    assert rates[4] == pytest.approx(3.0, rel=0.02)


def test_a_known_workload_is_not_learnt() -> None:
    workload = Workload(forward=1.0, backward=2.0, comm=6.0)
    assert taught(*[(Task.FORWARD, {2: 1.0}), (Task.BACKWARD, {2: 1.0})] * 4, workload=workload).workload == workload


def test_a_task_too_short_for_the_clock_tells_nothing() -> None:
    assert taught((Task.COMM, {1: 0.0}), (Task.COMM, {}), (Task.COMM, {1: 1e-12})).comm.rates == {}


def cycle(comm_cores: int, num_cores: int) -> list[tuple[Task, dict[int, float]]]:
    """Return a cycle under one split of a device whose cores have rate 1 each. The works are 0.25, 0.75 and 1."""
    comp_cores = num_cores - comm_cores
    return [
        (Task.COMM, {comm_cores: 1.0 / comm_cores}),
        (Task.FORWARD, {comp_cores: 0.25 / comp_cores}),
        (Task.BACKWARD, {comp_cores: 0.75 / comp_cores}),
    ]


def test_splits_are_tried_one_after_another_until_all_are_measured() -> None:
    estimates = taught()
    for split in (4, 1, 7):
        assert estimates.untried(warm_up_splits(8), 1) == Allocation.split(split, 8)
        for task, seconds in cycle(split, 8):
            estimates.finish(task, seconds)
    assert estimates.untried(warm_up_splits(8), 1) is None
    assert estimates.table(8) is not None


def test_a_split_is_left_after_three_tasks_even_if_none_kept_it() -> None:
    partial = [(Task.COMM, {1: 0.01, 3: 1.0}), (Task.FORWARD, {2: 0.01, 3: 0.2}), (Task.BACKWARD, {2: 0.01, 3: 0.2})]
    assert taught(*partial * 2).untried(warm_up_splits(3), 1) == Allocation.split(1, 3)
    assert taught(*partial * 3).untried(warm_up_splits(3), 1) == Allocation.split(2, 3)


def test_the_table_is_linear_between_and_beyond_measured_cores() -> None:
    table = taught(*(cycle(4, 8) + cycle(1, 8) + cycle(7, 8)) * 6).table(8)
    assert table is not None
    assert table.comm == pytest.approx([float(c) for c in range(9)], rel=1e-3)
    assert table.comp == pytest.approx([float(8 - c) for c in range(9)], rel=1e-3)


def test_cores_that_were_forced_once_are_measured_too() -> None:
    lessons = cycle(1, 3) + cycle(2, 3) + [(Task.COMM, {3: 0.4}), (Task.FORWARD, {3: 0.05}), (Task.BACKWARD, {3: 0.15})]
    table = taught(*lessons * 4).table(3)
    assert table is not None
    assert table.comm[3] == pytest.approx(2.5, rel=1e-3)
    assert table.comp[0] == pytest.approx(5.0, rel=1e-2)


def test_noise_never_makes_more_cores_slower() -> None:
    """If one core is measured faster than two, both get their mean."""
    table = taught(*cycle(1, 3), *cycle(2, 3), *[(Task.COMM, {1: 0.25}), (Task.COMM, {2: 0.5})] * 8).table(3)
    assert table is not None
    assert table.comm[1] == table.comm[2] == table.comm[3]
    assert 2.0 < table.comm[1] < 4.0


@given(
    lessons=st.lists(
        st.tuples(
            st.sampled_from(list(Task)),
            st.dictionaries(st.integers(1, 6), st.floats(0.0, 1e3) | st.floats(1e-9, 1e-3), max_size=3),
        ),
        max_size=40,
    ),
    num_cores=st.integers(3, 6),
)
@settings(max_examples=100, deadline=None)
def test_whatever_the_times_the_rates_stay_rates(lessons: list[tuple[Task, dict[int, float]]], num_cores: int) -> None:
    table = taught(*lessons).table(num_cores)  # a RateTable refuses what is not positive and finite
    if table is not None:
        assert list(table.comm) == sorted(table.comm)
        assert list(table.comp) == sorted(table.comp, reverse=True)


def test_a_rate_of_zero_in_the_profile_is_replaced_after_the_first_task() -> None:
    """`calibrate` writes a rate of 0 if training left comm no time in all visits."""
    estimates = Estimates(Workload(forward=1.0, backward=2.0, comm=6.0))
    estimates.comm.rates = {2: 0.0, 1: 2.0}
    for seconds in ({2: 4.0}, {2: 4.0}, {1: 1.0, 2: 1.0}):
        estimates.finish(Task.COMM, seconds)
        estimates.refresh()
    assert estimates.comm.rates[2] > 1.0
