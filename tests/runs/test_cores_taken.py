"""Cores removed from and returned to a run by a cpuset: the run replans, gets the same weights and a note (promise 23)."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import CPUSETS
from processes import events, read_rest, read_until, student_command, train, weights

from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))[:2]
CYCLES = 1200
FLAGS = ("--policy", "static:1", "--cycles", str(CYCLES), "--torch-threads", "1", "--prefetch", "4")


class Cpuset:
    """A cpuset for the test, below the machine's root cpuset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "cpuset.mems").write_text((CPUSETS / "cpuset.mems").read_text())
        self.allow(CORES)

    def allow(self, cores: tuple[int, ...]) -> None:
        (self.folder / "cpuset.cpus").write_text(",".join(map(str, cores)))

    def take_in(self, pid: int) -> None:
        (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError, OSError):
                (CPUSETS / "cgroup.procs").write_text(pid)
        self.folder.rmdir()


@pytest.fixture
def cpuset() -> Iterator[Cpuset]:
    made = Cpuset(CPUSETS / f"edgekd-test-{os.getpid()}")
    yield made
    made.close()


@contextlib.contextmanager
def student_in(cpuset: Cpuset, address: str, out: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Start a run on CORES in the cpuset and end it with the block."""
    command = student_command(address, out, *flags, "--cores", f"{CORES[0]},{CORES[1]}")
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as student:
        try:
            cpuset.take_in(student.pid)
            yield student
        finally:
            student.kill()


@pytest.mark.slow
@pytest.mark.needs("cpuset")
@pytest.mark.promise(number=23)
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores, to take one away")
def test_a_core_that_goes_when_all_has_been_received_is_missed_as_well(cpuset: Cpuset, address: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with student_in(cpuset, address, out, *FLAGS, "--prefetch", str(CYCLES)) as student:
        read_until(student, f"600 of {CYCLES}")
        cpuset.allow(CORES[1:])
        output = read_rest(student)
    assert student.returncode == 0, output
    log = events(out)
    (change,) = [record for record in log if record["event"] == "cores-changed"]
    assert (change["before"], change["cores"]) == (list(CORES), list(CORES[1:]))
    received = [record["ended"] for record in log if record.get("task") == "comm"]
    assert len(received) == CYCLES
    assert max(received) < change["time"], "it was still receiving"
    result = json.loads((out / "result.json").read_text())
    assert not result["valid"]
    assert sum(note.startswith("the allowed cores changed") for note in result["notes"]) == 1


@pytest.mark.slow
@pytest.mark.needs("cpuset")
@pytest.mark.promise(number=23)
@pytest.mark.skipif(len(CORES) < 2, reason="needs two cores, to take one away")
def test_a_run_goes_on_with_the_cores_that_are_left(cpuset: Cpuset, address: str, tmp_path: Path) -> None:
    train(address, tmp_path / "whole", *FLAGS)
    with student_in(cpuset, address, tmp_path / "out", *FLAGS) as student:
        read_until(student, f"240 of {CYCLES}")
        cpuset.allow(CORES[1:])
        read_until(student, f"840 of {CYCLES}")
        cpuset.allow(CORES)
        output = read_rest(student)
    assert student.returncode == 0, output
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    log = events(tmp_path / "out")
    changes = [record for record in log if record["event"] == "cores-changed"]
    all_cores, rest = list(CORES), list(CORES[1:])
    assert [(change["before"], change["cores"]) for change in changes] == [(all_cores, rest), (rest, all_cores)]
    lost, back = (change["time"] for change in changes)
    between = [r for r in log if r["event"] == "decision" and lost < r["time"] < back]
    assert between
    assert all(CORES[0] not in r["requested"]["comm"] + r["requested"]["comp"] for r in between)
    after = [r for r in log if r["event"] == "decision" and r["time"] > back and r["reason"] == "policy"]
    assert any(r["requested"] == {"comm": [CORES[0]], "comp": [CORES[1]]} for r in after)
    assert not [record for record in log if record["event"] == "binding-refused"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert not result["valid"]
    assert sum(note.startswith("the allowed cores changed") for note in result["notes"]) == 2
