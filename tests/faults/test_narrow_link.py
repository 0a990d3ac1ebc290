"""A link whose rate falls to a twentieth in the middle of a run, and recovers: the kernel's token bucket between two namespaces."""

import subprocess
from pathlib import Path
from statistics import median

import pytest
from namespaces import TwoNamespaces, needs_namespaces
from processes import comm_worker_of, events, read_rest, read_until, run, student_command, weights
from resources import read_holding
from sameness import troubles

pytestmark = [pytest.mark.slow, needs_namespaces]

DATASET = "synthetic:classes=500,size=8,samples=512"
BATCH_BYTES = 128 * 500 * 4  # 0.1 s at 20 Mbit/s, 2 s at 1 Mbit/s
CYCLES = 30
FLAGS = ("--private", f"{DATASET}:private", "--public-batch", "128", "--policy", "os-default", "--torch-threads", "1")
GROWTH_KIB = 4096  # sixteen batches; an interpreter that warms up takes up to 1.6 MiB of it


@pytest.mark.promise(number=6)
def test_a_link_that_narrows_and_recovers_makes_no_error_and_no_memory(tmp_path: Path) -> None:
    with TwoNamespaces() as pair, pair.teacher(tmp_path / "store", dataset=f"{DATASET}:public") as serving:
        pair.set_rate(20)
        flags = (*FLAGS, "--cycles", str(CYCLES), "--insecure")
        command = [*pair.edge, *student_command(serving.address, tmp_path / "run", *flags)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as student:
            worker = comm_worker_of(student)
            pids = (student.pid, worker)
            output = read_until(student, f"9 of {CYCLES}")
            before = [read_holding(pid).private_kib for pid in pids]
            pair.set_rate(1)
            output += read_until(student, f"12 of {CYCLES}")
            narrow = [read_holding(pid).private_kib for pid in pids]
            pair.set_rate(20)
            output += read_until(student, f"27 of {CYCLES}")
            after = [read_holding(pid).private_kib for pid in pids]
            pair.set_rate(1000)
            output += read_rest(student)
        assert student.returncode == 0, output
        finished = run([*pair.edge, *student_command(serving.address, tmp_path / "undisturbed", *flags)])
        assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")
    log = events(tmp_path / "run")
    assert troubles(log) == []
    check_rates(log)
    for held in zip(before, narrow, after, strict=True):
        assert max(held) - held[0] < GROWTH_KIB, f"KiB before, while narrow, and after: {held}"


def check_rates(log: list) -> None:
    """Check that the link had the required rates, without which the test would be void."""
    took_s = [record["ended"] - record["started"] for record in log if record.get("task") == "comm"]
    assert len(took_s) == CYCLES
    rates = {name: BATCH_BYTES * 8e-6 / median(part) for name, part in (("wide", took_s[2:8]), ("narrow", took_s[10:12]))}
    assert rates["wide"] > 10 > 2 > rates["narrow"], rates
    assert BATCH_BYTES * 8e-6 / median(took_s[14:26]) > 10
