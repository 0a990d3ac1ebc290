"""`calibrate`: counted tasks, the resulting profile, and the whole program on a tiny model."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import read_until, run, student_command, teacher
from warm_start import start

from edge_student.calibrate import table
from edge_student.calibrate.device_profile import make_profile
from edge_student.calibrate.visits import ModeUnderTest, Visit, measure, modes_under_test
from edge_student.settings.student import CalibrateConfig
from edgekd.errors import WorldError
from scheduler.live.threads import allowed_cores
from scheduler.model.cost import CostModel
from scheduler.model.scenario import Profile
from scheduler.model.state import COMPUTE_FIRST, Task

TWO_CORES = pytest.mark.skipif(len(allowed_cores()) < 2, reason="needs two cores to split them")
TINY = [
    "--private",
    "digits:private",
    "--private-samples",
    "64",
    "--model",
    "cnn:width=4",
    "--batch-size",
    "8",
    "--public-batch",
    "16",
]


def names(modes: tuple[ModeUnderTest, ...]) -> list[str]:
    return [mode.name for mode in modes]


def mode(name: str, num_cores: int = 2) -> ModeUnderTest:
    return next(mode for mode in modes_under_test(num_cores) if mode.name == name)


def a_visit(name: str, *, share_s: float = 10.0, limit_s: float = 20.0, **before: Any) -> Visit:
    visit = Visit(mode(name), share_s=share_s, limit_s=limit_s, **before)
    visit.begin(100.0)
    return visit


class Clock:
    """A clock that advances only when the test advances it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class ScriptedDevice:
    """Each side takes a scripted number of seconds for a task in each mode; a Forward is 0.4 of a cycle. The sides are independent.

    `stored` batches arrive a hundred times faster after a mode in which comm was held. With `drift`, everything becomes slower by
    that fraction per second. Comm is busy for the fraction `busy` of its time.
    """

    def __init__(
        self,
        clock: Clock,
        comm_s: dict[str, float],
        comp_s: dict[str, float],
        *,
        stored: int = 0,
        drift: float = 0.0,
        busy: float = 0.1,
    ) -> None:
        self.clock, self.comm_s, self.comp_s, self.stored, self.drift = clock, comm_s, comp_s, stored, drift
        self.visited: list[str] = []
        self.num_in_store, self.busy = 0, busy

    def stay(self, visit: Visit) -> None:
        name = visit.mode.name
        if not visit.mode.has_comm:
            self.num_in_store = self.stored
        self.visited.append(name)
        visit.begin(self.clock.now)
        for side, task, at in self._events(visit):
            self.clock.now = at
            if side == "comm":
                visit.batch(at, self.busy * self.comm_s[name])
            else:
                visit.task_boundary(task, at)
            if (task is Task.FORWARD or not visit.mode.has_comp) and visit.is_over(at):
                return

    def _events(self, visit: Visit) -> Iterator[tuple[str, Task, float]]:
        name = visit.mode.name
        comm_s, comp_s = self.comm_s.get(name, math.inf), self.comp_s.get(name, math.inf)
        comm_at = self.clock.now + 0.3 * comm_s if visit.mode.has_comm else math.inf
        comp_at, task = (self.clock.now if visit.mode.has_comp else math.inf), Task.FORWARD
        while True:
            slower = 1 + self.drift * min(comm_at, comp_at)
            if comm_at < comp_at:
                yield "comm", Task.COMM, comm_at
                comm_at += comm_s * slower / (100 if self.num_in_store else 1)
                self.num_in_store = max(self.num_in_store - 1, 0)
            else:
                yield "comp", task, comp_at
                comp_at += comp_s * slower * (0.4 if task is Task.FORWARD else 0.6)
                task = Task.BACKWARD if task is Task.FORWARD else Task.FORWARD


COMM_S = {"comm-only": 0.1, "split:1": 0.125, COMPUTE_FIRST: 0.4}
COMP_S = {"comp-only": 0.05, "split:1": 0.08, COMPUTE_FIRST: 0.0625}


def measured(seconds: float = 60.0, *, num_cores: int = 2, window: int = 64, **device: Any) -> tuple[ScriptedDevice, list[Visit]]:
    clock = Clock()
    scripted = ScriptedDevice(clock, **({"comm_s": COMM_S, "comp_s": COMP_S} | device))
    return scripted, measure(scripted, modes_under_test(num_cores), seconds=seconds, window=window, clock=clock)


def test_every_use_of_the_cores_is_a_mode() -> None:
    assert names(modes_under_test(2)) == ["comp-only", "comm-only", "split:1", "compute-first"]
    assert [(mode.allocation.comm, mode.allocation.comp) for mode in modes_under_test(2)] == [(0, 2), (2, 0), (1, 1), (2, 2)]
    assert names(modes_under_test(4))[2:-1] == ["split:1", "split:2", "split:3"]


@pytest.mark.parametrize(("num_cores", "num_splits"), [(9, 8), (10, 8), (64, 8), (128, 8)])
def test_of_many_splits_eight_are_measured_with_the_outermost(num_cores: int, num_splits: int) -> None:
    splits = [mode.allocation.comm for mode in modes_under_test(num_cores)[2:-1]]
    assert len(splits) == num_splits
    assert (splits[0], splits[-1]) == (1, num_cores - 1)
    steps = {later - earlier for earlier, later in pairwise(splits)}
    assert max(steps) - min(steps) <= 1


def test_one_core_leaves_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="this run has 1 core; use 2 or more, see --cores"):
        modes_under_test(1)


def test_the_first_task_of_each_side_does_not_count() -> None:
    visit = a_visit("split:1")
    visit.batch(99.0, 9.0)  # was complete before the mode was there
    for task, at in [(Task.FORWARD, 100), (Task.BACKWARD, 107), (Task.FORWARD, 110), (Task.BACKWARD, 111), (Task.FORWARD, 113)]:
        visit.task_boundary(task, at)
    assert (visit.num_comp, visit.comp_s, visit.forward_s) == (1, 3.0, 1.0)
    visit.batch(104.0, 9.0)
    assert visit.num_comm == 0
    visit.batch(106.0, 0.5)
    visit.batch(109.0, 0.25)
    assert (visit.num_comm, visit.comm_s, visit.comm_cpu_s) == (2, 5.0, 0.75)
    visit.task_boundary(Task.BACKWARD, 115)
    assert (visit.num_comp, visit.comp_s, visit.forward_s) == (1, 3.0, 1.0), "a cycle that has not ended is none"


def test_a_batch_during_which_the_link_failed_does_not_count() -> None:
    visit = a_visit("comm-only")
    for at in (101.0, 102.0):
        visit.batch(at, 0.1)
    visit.trouble()
    for at in (162.0, 163.5):
        visit.batch(at, 0.1)
    assert (visit.num_comm, visit.comm_s) == (2, 2.5)


def test_a_visit_ends_with_enough_tasks_and_its_share_of_time() -> None:
    visit = a_visit("comm-only")
    for at in (101.0, 102.0, 103.0, 104.0):
        visit.batch(at, 0.1)
    assert not visit.is_over(109.9)
    assert visit.is_over(110.0)


def test_a_visit_with_slow_tasks_ends_at_its_limit_with_one_of_each() -> None:
    visit = a_visit("split:1")
    visit.batch(105.0, 0.1)
    visit.batch(119.0, 0.1)
    assert not visit.is_over(121.0), "training has not been seen yet"
    for at in (100.0, 110.0, 122.0):
        visit.task_boundary(Task.FORWARD, at)
        visit.task_boundary(Task.BACKWARD, at + 1)
    assert visit.is_over(122.0)


def test_training_may_starve_a_comm_with_idle_priority() -> None:
    visit = a_visit(COMPUTE_FIRST)
    for at in (100.0, 107.0, 114.0, 121.0):
        visit.task_boundary(Task.FORWARD, at)
        visit.task_boundary(Task.BACKWARD, at + 1)
    assert visit.is_over(121.0)
    assert (visit.num_comm, visit.comm_s) == (0, pytest.approx(21.0))


@pytest.mark.parametrize(
    ("arrivals", "num_comm", "comm_s"),
    [
        ((105.0,), 1, 21.0),
        ((101.0, 102.0), 1, 20.0),
        ((101.0, 111.0, 120.0), 2, 19.0),
    ],
    ids=["one batch", "starved after two", "the next one is under way"],
)
def test_time_in_which_a_starving_comm_gets_nothing_done_counts(arrivals: tuple[float, ...], num_comm: int, comm_s: float) -> None:
    visit = a_visit(COMPUTE_FIRST)
    for at in arrivals:
        visit.batch(at, 0.1)
    for at in (100.0, 107.0, 114.0, 121.0):
        visit.task_boundary(Task.FORWARD, at)
        visit.task_boundary(Task.BACKWARD, at + 1)
    assert (visit.num_comm, visit.comm_s) == (num_comm, pytest.approx(comm_s))


def test_a_comm_that_gets_a_batch_in_few_visits_has_the_rate_of_all_of_them() -> None:
    visits = measured()[1]
    starved = [visit for visit in visits if visit.mode.name == COMPUTE_FIRST]
    empty = []
    for number in range(len(starved)):
        visit = a_visit(COMPUTE_FIRST)
        if number == 0:
            visit.batch(101.0, 0.1)
        for at in (100.0, 101.0, 102.0, 103.0):
            visit.task_boundary(Task.FORWARD, at)
            visit.task_boundary(Task.BACKWARD, at + 0.5)
        empty.append(visit)
    profile = make_profile([visit for visit in visits if visit not in starved] + empty, 2)
    row = profile["modes"][-1]
    assert row["name"] == COMPUTE_FIRST
    assert row["comm_rate"] == pytest.approx(0.1 / (3 * len(starved)))


def test_a_side_with_cores_that_does_nothing_is_an_error() -> None:
    visit = a_visit("comm-only", limit_s=1.0)
    visit.batch(101.0, 0.1)
    assert not visit.is_over(110.0)
    with pytest.raises(WorldError, match="no complete batch in mode comm-only within 50 s; increase --seconds"):
        visit.is_over(150.0)


def stored_then_steady(visit: Visit, num_stored: int, *, cpu_s: float, until: float = 130.0) -> None:
    at = 100.0
    for _ in range(num_stored):
        at += 0.1
        visit.batch(at, min(cpu_s, 0.1))
    while at + 2.0 <= until:
        at += 2.0
        visit.batch(at, cpu_s)


def test_batches_buffered_by_the_link_do_not_count() -> None:
    visit = a_visit("comm-only", starved_s=20.0, num_stored=64)
    stored_then_steady(visit, 10, cpu_s=0.1)
    assert visit.comm_s / visit.num_comm == pytest.approx(2.0)
    assert visit.num_comm == 13, "the first batch that waited ends the store, and is the last not to count"


def test_a_store_is_over_after_a_window_or_after_as_long_as_it_was_filled() -> None:
    busy = a_visit("comm-only", starved_s=20.0, num_stored=3)
    for number in range(6):
        busy.batch(101.0 + number, 1.0)
    assert busy.num_comm == 3
    busy = a_visit("comm-only", starved_s=2.5, num_stored=64)
    for number in range(6):
        busy.batch(101.0 + number, 1.0)
    assert busy.num_comm == 3


def test_modes_take_turns_and_every_other_round_is_reversed() -> None:
    device, visits = measured()
    forth = names(modes_under_test(2))
    assert device.visited == (forth + forth[::-1]) * 4
    assert len(visits) == 32
    assert 60 <= device.clock.now < 63


def test_rates_are_those_of_the_device_whatever_straddles_a_switch() -> None:
    profile = make_profile(measured()[1], 2)
    assert profile["comm"] == pytest.approx(0.1)
    assert (profile["forward"], profile["backward"]) == (pytest.approx(0.02), pytest.approx(0.03))
    rates = Profile.from_json(profile).rates
    assert rates.comm == pytest.approx((0.0, 0.8, 1.0))
    assert rates.comp == pytest.approx((1.0, 0.625, 0.0))
    assert [(mode.name, mode.comm_rate, mode.comp_rate) for mode in rates.shared] == [
        (COMPUTE_FIRST, pytest.approx(0.25), pytest.approx(0.8))
    ]
    for row in profile["modes"]:
        for side in ("comm", "comp"):
            rate = row[f"{side}_rate"]
            assert row[f"{side}_interval"] == (pytest.approx([rate, rate]) if rate else None)
    assert profile["modes"][1]["comm_cpu_share"] == pytest.approx(0.1)


def test_a_steady_drift_treats_all_modes_alike() -> None:
    """The device is three times slower at the end. The ratios nearly equal those of a device with constant speed."""
    rates = Profile.from_json(make_profile(measured(drift=2 / 60)[1], 2)).rates
    assert rates.comm == pytest.approx((0.0, 0.8, 1.0), rel=0.05)
    assert rates.comp == pytest.approx((1.0, 0.625, 0.0), rel=0.05)


def test_a_filled_buffer_does_not_make_a_slow_link_look_fast() -> None:
    profile = make_profile(measured(stored=40)[1], 2)
    assert profile["comm"] == pytest.approx(0.1)
    assert Profile.from_json(profile).rates.comm == pytest.approx((0.0, 0.8, 1.0))


@pytest.mark.parametrize("cycle_s", [1.0, 2.0])
def test_a_slow_student_is_measured_in_time_with_fewer_visits(cycle_s: float) -> None:
    comp_s = {"comp-only": cycle_s, "split:1": 2 * cycle_s, COMPUTE_FIRST: 1.1 * cycle_s}
    device, visits = measured(comp_s=comp_s)
    assert device.clock.now < 90
    assert len(visits) >= 8
    assert Profile.from_json(make_profile(visits, 2)).rates.comp == pytest.approx((1.0, 0.5, 0.0))


def test_slow_steps_and_a_slow_busy_comm_are_measured_in_time() -> None:
    comp_s = {"comp-only": 2.0, "split:1": 4.0, COMPUTE_FIRST: 2.2}
    device, visits = measured(comp_s=comp_s, comm_s={"comm-only": 0.6, "split:1": 1.0, COMPUTE_FIRST: 3.0}, busy=1.0)
    assert device.clock.now < 90
    assert Profile.from_json(make_profile(visits, 2)).rates.comm == pytest.approx((0.0, 0.6, 1.0))


def test_a_slow_link_is_measured_even_if_it_takes_longer_than_planned() -> None:
    device, visits = measured(comm_s={"comm-only": 5.0, "split:1": 5.0, COMPUTE_FIRST: 5.0})
    assert device.clock.now < 120
    assert all(visit.num_comm for visit in visits if visit.mode.has_own_comm_cores)


def times_of(model: CostModel, num_cores: int) -> dict[str, Any]:
    splits = {f"split:{c}": c for c in range(1, num_cores)}
    comm_s = {name: model.comm_time(0.1, c) for name, c in (splits | {"comm-only": num_cores, COMPUTE_FIRST: num_cores}).items()}
    comp_s = {name: model.comp_time(0.1, c) for name, c in (splits | {"comp-only": 0, COMPUTE_FIRST: 0}).items()}
    return {"comm_s": comm_s, "comp_s": comp_s}


def test_splits_between_have_the_rates_of_the_fit_and_are_marked() -> None:
    model = CostModel(a1=1.0, a2=0.05, b1=0.12, b2=0.2, b3=2.7)
    profile = make_profile(measured(num_cores=16, **times_of(model, 16))[1], 16)
    assert profile["fit"]["comm"]["identified"]
    rates = Profile.from_json(profile).rates
    expected = model.rates(16)
    assert rates.comm == pytest.approx([rate / expected.comm[16] for rate in expected.comm], rel=1e-6)
    assert rates.comp == pytest.approx([rate / expected.comp[0] for rate in expected.comp], rel=1e-6)
    between = [row for row in profile["modes"] if not row["num_comm"] and not row["num_comp"]]
    assert len(between) == 15 - 8
    assert {table.remark(row) for row in between} == {"not measured, interpolated"}
    assert [row["name"] for row in profile["modes"]] == [
        "comp-only",
        *(f"split:{c}" for c in range(1, 16)),
        "comm-only",
        COMPUTE_FIRST,
    ]


def test_without_a_fit_splits_between_lie_on_the_line_of_their_neighbours() -> None:
    """Receiving that a second core stops does not fit the g of the paper."""
    times = times_of(CostModel(a1=1.0, a2=0.05, b1=0.1, b2=0.0, b3=1.0), 11)
    times["comm_s"] |= {"split:1": 1e-10, "split:2": 10.0}
    assert {f"split:{c}" for c in range(1, 11)} - set(names(modes_under_test(11))) == {"split:3", "split:8"}
    profile = make_profile(visits_with(times, 11), 11)
    assert not profile["fit"]["comm"]["identified"]
    rates = Profile.from_json(profile).rates
    for c in (3, 8):
        assert rates.comm[c] == pytest.approx((rates.comm[c - 1] + rates.comm[c + 1]) / 2)


def visits_with(times: dict[str, Any], num_cores: int) -> list[Visit]:
    """Return one visit of ten tasks of each side in each mode."""
    visits = []
    for mode in modes_under_test(num_cores):
        visit = Visit(mode, share_s=1.0, limit_s=1.0)
        visit.begin(0.0)
        for number in range(12):
            if mode.has_comm:
                visit.batch(number * times["comm_s"][mode.name], 0.0)
            if mode.has_comp:
                visit.task_boundary(Task.FORWARD, number * times["comp_s"][mode.name])
                visit.task_boundary(Task.BACKWARD, (number + 0.4) * times["comp_s"][mode.name])
        visits.append(visit)
    return visits


def shown(profile: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    options = {"fingerprint": {"cpu": "a CPU"}, "settings": {"model": "cnn", "private": "digits:private"}, "seconds": 60.0}
    table.print_calibration(profile | options)
    return capsys.readouterr().out


def test_the_table_shows_tasks_per_second_with_intervals_and_waits(capsys: pytest.CaptureFixture[str]) -> None:
    profile = make_profile(measured()[1], 2)
    table = shown(profile, capsys)
    rows = {
        line.split()[1]: [cell.strip() for cell in line.split("\u2502")[1:-1]] for line in table.splitlines() if "\u2502" in line
    }
    assert list(rows) == ["comp-only", "split:1", "comm-only", "compute-first"]
    comm, comp = (str(profile["modes"][1][key]) for key in ("num_comm", "num_comp"))
    assert rows["split:1"] == [
        "split:1",
        "8",
        "8 .. 8",
        comm,
        "0.10",
        "12.5",
        "12.5 .. 12.5",
        comp,
        "comm waits for teacher or link",
    ]
    assert rows["comp-only"][1:5] == ["-", "-", "0", "-"]
    assert rows["compute-first"][-1] == "", "behind training comm waits for training"
    assert "Alone on all cores, a cycle takes 50 ms (20 ms Forward, 30 ms Backward) and a batch 100 ms" in " ".join(table.split())


def test_a_busy_comm_does_not_wait_and_a_starved_one_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    profile = make_profile(measured()[1], 2)
    profile["modes"][1]["comm_cpu_share"] = 0.7
    profile["modes"][3] |= {"comm_rate": 0.0, "comm_interval": [0.0, 0.0], "num_comm": 0, "comm_cpu_share": None}
    assert [table.remark(row) for row in profile["modes"]] == [
        "",
        "",
        "comm waits for teacher or link",
        "training leaves no time for comm",
    ]
    assert "training leaves no time for comm" in shown(profile, capsys)


def test_the_fit_is_printed_as_sentences() -> None:
    lines = [*table.describe_findings(make_profile(measured()[1], 2))]
    assert lines[0].startswith("Training: each core given to comm changes its rate by -37.5% +- 0.0% of the rate")
    assert lines[1].startswith("Receiving: 2 cores have one split, too few points for the paper's g")
    assert lines[-1].startswith("Comm waited for the teacher or the link in split:1, comm-only")
    model = CostModel(a1=1.0, a2=0.1, b1=0.1, b2=0.2, b3=3.0)
    lines = [*table.describe_findings(make_profile(measured(num_cores=6, **times_of(model, 6))[1], 6))]
    assert lines[0].startswith("Training: each core given to comm changes its rate by -10.0% +- ")
    assert lines[1].startswith("Receiving: with c cores its rate is ")


def test_a_disturbed_calibration_is_reported() -> None:
    profile = make_profile(measured()[1], 2)
    assert not any(line.startswith("Wide") for line in table.describe_findings(profile))
    profile["modes"][1]["comp_interval"] = [0.5, 0.8]
    assert [*table.describe_findings(profile)][-1].startswith("Wide intervals in split:1: other programs used")


def test_the_plot_shows_the_samples_with_the_intervals_of_the_rates(tmp_path: Path) -> None:
    from scheduler.figures import draw_files, draw_fitted_costs

    options = {"fingerprint": {"cpu": "a CPU"}, "settings": {"model": "cnn", "private": "digits:private"}}
    data = table.profile_figure(make_profile(measured()[1], 2) | options)
    assert [[bar["comm_cores"] for bar in side["bars"]] for side in data["sides"]] == [[0, 1], [1, 2]]
    assert data["sides"][0]["bars"][1] == pytest.approx({"comm_cores": 1, "seconds": 1.6, "low": 1.6, "high": 1.6})
    assert data["caption"].startswith("Measured: cnn on digits:private, 2 cores of a CPU.")
    paths = draw_files(tmp_path / "my.profile", data, draw_fitted_costs)
    assert [path.name for path in paths] == ["my.profile.png", "my.profile.svg"]
    assert all(path.stat().st_size > 10_000 for path in paths)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"seconds": 0.0}, "--seconds is 0.0, must be above 0"),
        ({"seconds": math.inf}, "--seconds is inf, must be above 0 and finite"),
        ({"profile": Path("old.json")}, "--profile is old.json, but calibrate writes a profile"),
        ({"out": Path("profile")}, "--out is profile, must end in .json"),
        ({"teacher": "nowhere"}, "--teacher"),
        ({"teacher": "127.0.0.1:1", "rate_limit": "1mbit"}, "--rate-limit is 1mbit, but applies to the local teacher only"),
    ],
)
def test_settings_that_cannot_be_are_a_mistake(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CalibrateConfig(**{"private": "digits:private", "out": Path("profile.json")} | flags)


def calibrate_command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "edge_student", "calibrate", "--out", str(out), *TINY, *flags]


@TWO_CORES
@pytest.mark.slow
def test_a_device_is_measured_and_its_profile_is_used(tmp_path: Path) -> None:
    path = tmp_path / "made" / "profile.json"
    cores = ",".join(map(str, sorted(allowed_cores())[:2]))
    with teacher(tmp_path / "store") as serving:
        finished = run(calibrate_command(path, "--teacher", serving.address, "--seconds", "4", "--cores", cores))
        assert finished.returncode == 0, finished.stderr
        data = json.loads(path.read_text())
        profile = Profile.from_json(data)
        assert [mode.name for mode in profile.rates.modes()] == ["comp-only", "split:1", "comm-only", "compute-first"]
        assert (profile.rates.comm[2], profile.rates.comp[0]) == (pytest.approx(1), pytest.approx(1))
        assert all(row["num_comp"] >= 2 for row in data["modes"] if row["comp_rate"])
        assert data["fingerprint"]["cores"] == sorted(allowed_cores())[:2]
        assert data["fingerprint"]["openmp"]
        assert data["settings"]["teacher"] == serving.address
        assert "calibrate" in data["command"]
        assert 3 < data["seconds"] < 60
        for output in ("comp-only", "split:1", "comm-only", "compute-first", "Receiving: 2 cores have one split", str(path)):
            assert output in finished.stdout
        assert sorted(file.name for file in path.parent.iterdir()) == ["profile.json", "profile.png", "profile.svg"]
        for policy in ("adaptive", "dynamic"):
            flags = ["--policy", policy, "--profile", str(path), "--cycles", "10", "--cores", cores, "--shards", "2"]
            trained = run(student_command(serving.address, tmp_path / policy, *flags))
            assert trained.returncode == 0, trained.stderr
    fitted = run([sys.executable, "-m", "scheduler", "fit", str(path)])
    assert fitted.returncode == 0, fitted.stderr
    assert "a2 = " in fitted.stdout


@TWO_CORES
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_calibration_that_is_broken_off_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with teacher(tmp_path / "store") as serving:
        command = calibrate_command(path, "--teacher", serving.address, "--seconds", "30")
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as student:
            output = read_until(student, "seconds of measuring")
            student.send_signal(number)
            began = time.monotonic()
            assert student.stderr is not None
            output += student.stderr.read()
        took = time.monotonic() - began
    assert student.returncode == 130, output
    assert "Traceback" not in output
    assert took < 10, "seconds, with much room for a busy machine; measuring would have gone on for 25"
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]


@TWO_CORES
@pytest.mark.slow
def test_a_comm_worker_that_dies_ends_the_calibration(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with teacher(tmp_path / "store") as serving:
        command = calibrate_command(path, "--teacher", serving.address, "--seconds", "30")
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as student:
            output = read_until(student, "measuring ")
            (worker,) = (
                child for child in psutil.Process(student.pid).children() if "edge_student.receive.worker" in child.cmdline()
            )
            worker.kill()
            assert student.stderr is not None
            output += student.stderr.read()
    assert student.returncode == 1, output
    assert "ended early: killed by signal 9" in output.splitlines()[-1]
    assert not path.exists()


def test_one_core_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    core = str(min(os.sched_getaffinity(0)))
    finished = run(calibrate_command(tmp_path / "profile.json", "--teacher", "127.0.0.1:1", "--cores", core))
    assert finished.returncode == 2
    assert "this run has 1 core; use 2 or more, see --cores" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_batches_that_end_after_comm_was_held_are_none_of_that_mode() -> None:
    mode = next(mode for mode in modes_under_test(2) if mode.name == "comp-only")
    visit = Visit(mode, share_s=1.0, limit_s=2.0)
    visit.begin(10.0)
    for ended in (10.01, 10.02, 10.03):  # the chunks that several streams were at
        visit.batch(ended, 0.01)
    assert (visit.num_comm, visit.comm_s) == (0, 0.0)
