"""Whole runs over real sockets: policies change core allocations but never the weights."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from processes import comm_worker_of, events, notes_of, read_until, run, student_command, teacher, train, weights
from warm_start import start

from scheduler.live.threads import allowed_cores, read_masks, threads_of

pytestmark = pytest.mark.slow
TWO_CORES = pytest.mark.skipif(len(allowed_cores()) < 2, reason="needs two cores to split them")
SMALL_RING = ("--prefetch", "2", "--window", "3")
ONE_THREAD = ("--torch-threads", "1")


@pytest.fixture(scope="module")
def undisturbed(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    result = train(address, out, "--policy", "os-default", "--cycles", "20", *ONE_THREAD)
    assert (result["cycles"], result["valid"], notes_of(result)) == (20, True, [])
    return out


@pytest.mark.parametrize("policy", ["os-default", "static:1", "random", "comm-priority", "comp-priority", "dynamic", "adaptive"])
@TWO_CORES
def test_a_policy_moves_cores_never_results(policy: str, address: str, undisturbed: Path, tmp_path: Path) -> None:
    result = train(address, tmp_path, "--policy", policy, "--cycles", "20", *ONE_THREAD)
    assert weights(tmp_path) == weights(undisturbed)
    assert result["policy"] == policy
    log = events(tmp_path)
    for task in ("comm", "forward", "backward"):
        assert [record["index"] for record in log if record.get("task") == task] == list(range(20))
    decided = {record["sequence"]: record["time"] for record in log if record["event"] == "decision"}
    bound = [record for record in log if record["event"] == "comp-bound"]
    if policy != "adaptive":  # it may choose the kernel's scheduling
        assert bool(bound) == (policy != "os-default")
    assert all(record["decided"] == decided[record["decision"]] <= record["time"] for record in bound)


@TWO_CORES
def test_adaptive_follows_the_level_of_a_small_buffer(address: str, undisturbed: Path, tmp_path: Path) -> None:
    train(address, tmp_path, "--policy", "adaptive", "--cycles", "20", *SMALL_RING, *ONE_THREAD)
    assert weights(tmp_path) == weights(undisturbed)
    log = events(tmp_path)
    assert any(record["event"] == "comp-bound" for record in log)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--streams", "3"),
        ("--public-inputs", "stream"),
        ("--public-inputs", "stream", "--streams", "2", "--encoding", "float32"),
    ],
    ids=["one stream", "three streams", "inputs", "two streams of inputs"],
)
def test_a_small_prefetch_changes_no_result(flags: tuple[str, ...], address: str, undisturbed: Path, tmp_path: Path) -> None:
    result = train(address, tmp_path, "--policy", "comm-priority", "--cycles", "20", *SMALL_RING, *flags, *ONE_THREAD)
    assert weights(tmp_path) == weights(undisturbed)
    assert result["prefetch"] == 2


def test_another_seed_gives_other_weights(address: str, undisturbed: Path, tmp_path: Path) -> None:
    train(address, tmp_path, "--policy", "os-default", "--cycles", "20", "--seed", "6", *ONE_THREAD)
    assert weights(tmp_path) != weights(undisturbed)


@pytest.mark.parametrize(
    ("policy", "flags"),
    [("static:1", ()), ("dynamic", ()), ("dynamic", ("--streams", "3", "--public-inputs", "stream", "--prefetch", "4"))],
    ids=["static:1", "dynamic", "three streams of inputs"],
)
@TWO_CORES
@pytest.mark.promise(number=1)
def test_a_teacher_that_is_killed_and_started_again_costs_time_but_no_result(
    policy: str, flags: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    with teacher(tmp_path / "store", "--rate-limit", "160kbit" if flags else "80kbit") as first:
        command = student_command(first.address, tmp_path / "run", "--policy", policy, "--cycles", "20", *flags, *ONE_THREAD)
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
            read_until(student, "6 of 20")
            first.kill()
            output = read_until(student, "trying again")
            with teacher(tmp_path / "store", port=first.port):
                assert student.stderr is not None
                output += student.stderr.read()
    assert student.returncode == 0, output
    assert weights(tmp_path / "run") == weights(undisturbed)
    log = events(tmp_path / "run")
    for task in ("comm", "forward", "backward"):
        assert [record["index"] for record in log if record.get("task") == task] == list(range(20)), "each batch exactly once"
    assert any(record["event"] == "comm-trouble" for record in log)


@pytest.mark.promise(number=24)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_an_interrupted_run_saves_its_weights(number: signal.Signals, status: int, tmp_path: Path) -> None:
    with teacher(tmp_path / "store", "--rate-limit", "80kbit") as serving:
        command = student_command(serving.address, tmp_path / "run", "--policy", "comp-priority", "--cycles", "50")
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
            worker = comm_worker_of(student)
            output = read_until(student, "5 of 50")
            student.send_signal(number)
            assert student.stderr is not None
            output += student.stderr.read()
    assert student.returncode == status, output
    assert "Traceback" not in output
    assert not psutil.pid_exists(worker)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 5 <= result["cycles"] < 50
    assert not result["valid"]
    assert (tmp_path / "run" / "student.safetensors").exists()
    assert [record["index"] for record in events(tmp_path / "run") if record.get("task") == "backward"] == list(
        range(result["cycles"])
    )


@pytest.mark.parametrize("policy", ["static:1", "dynamic", "comm-priority", "comp-priority"])
@TWO_CORES
def test_every_native_thread_has_the_logged_mask(policy: str, tmp_path: Path) -> None:
    """Sample the masks of all threads in /proc during a run and compare them with the decisions in force."""
    flags = ["--policy", policy, "--cycles", "12", "--public-batch", "256", "--batch-size", "256", "--model", "cnn:width=16"]
    with teacher(tmp_path / "store", "--rate-limit", "4mbit") as serving:
        command = student_command(serving.address, tmp_path / "run", *flags)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as student:
            worker = comm_worker_of(student)
            samples = []
            while student.poll() is None:
                time.sleep(0.002)  # reading takes a core, which the run needs
                before = time.monotonic()
                comm, comp = read_masks(threads_of(worker)), named_masks(student.pid)
                samples.append((before, time.monotonic(), comm, comp))
    assert student.returncode == 0
    check_samples(events(tmp_path / "run"), samples)


def named_masks(pid: int) -> dict[int, tuple[int, ...]]:
    """Return the masks of the trainer's threads, without the scheduler's thread."""
    masks = read_masks(threads_of(pid))
    for tid in list(masks):
        try:
            name = Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip()
        except OSError:
            name = "edgekd-sched"
        if name == "edgekd-sched":
            del masks[tid]
    return masks


def check_samples(log: list, samples: list) -> None:
    """Check that each sample within one decision and one comp task shows the masks of that decision."""
    start = next(record["clock_monotonic_s"] for record in log if record["event"] == "start")
    decisions = [record for record in log if record["event"] == "decision"]
    tasks = [record for record in log if record.get("task") in ("forward", "backward")]
    cores = tuple(sorted(allowed_cores()))
    num_split = num_alone = 0
    for before, after, comm, comp in samples:
        began, ended = before - start, after - start
        inside = [d for d, following in pairwise(decisions) if d["time"] < began - 0.003 and ended < following["time"]]
        running = [t for t in tasks if t["started"] < began and ended < t["ended"]]
        # Compute applies a decision at its next boundary, so its task must have started under this decision.
        if not inside or not running or running[0]["started"] < inside[0]["time"] or not comp:
            continue
        requested = inside[0]["requested"]
        assert all(set(mask) <= set(requested["comp"]) for mask in comp.values()), (requested, comp)
        if requested["comm"] and comm:
            assert set(comm.values()) == {tuple(requested["comm"])}, (requested, comm)
            num_split += 1
        if tuple(requested["comp"]) == cores:
            assert set(comp.values()) == {cores}, comp
            num_alone += 1
    assert num_split + num_alone > 0, "no sample fell inside a task: nothing was checked"


@pytest.mark.parametrize(
    ("flags", "named", "status"),
    [
        (["--private", "nonsense:private"], "nonsense", 2),
        (["--private", "digits:nowhere"], "nowhere", 2),
        (["--model", "nonsense"], "nonsense", 2),
        (["--policy", "nonsense"], "nonsense", 2),
        (["--policy", "static:99"], "static:99", 2),
        (["--cores", "4000"], "4000", 2),
        (["--cycles", "0"], "--cycles", 2),
        (["--batch-size", "99999999999"], "--batch-size is 99999999999, must be at most 65536", 2),
        (["--ring-mib", "99999999999"], "--ring-mib is 99999999999, must be in 1 ..", 2),
        (["--out", "/proc/nowhere"], "--out: /proc/nowhere: No such file", 2),
        (["--logits", "hybrid", "--cache", "/proc/nowhere"], "--cache: /proc/nowhere", 2),
        (["--teacher", "127.0.0.1:1", "--model", "torchvision:nonsense"], "torchvision:nonsense", 2),
        (["--teacher", "127.0.0.1:1", "--model", "cnn:width=99999999"], "width=99999999", 2),
        (["--teacher", "127.0.0.1:1", "--model", "no.such.module:model"], "no.such.module", 2),
        (["--tls-cert", "/etc/hostname", "--tls-key", "/etc/hostname"], "--tls-ca is missing", 2),
        (["--max-silence", "1e11"], "--max-silence is 100000000000.0", 2),
        (["--alpha", "1.5"], "--alpha", 2),
        (["--private-samples", "999999"], "--private-samples", 2),
        (["--teacher", "nowhere"], "HOST:PORT", 2),
        (["--teacher", "127.0.0.1:1", "--max-wait", "0.5"], "127.0.0.1:1", 1),
        (["--public", "digits:private"], "digest", 2),
        (["--public", "digits:public", "--public-inputs", "stream"], "--public-inputs stream", 2),
        (["--public-inputs", "stored"], "cannot send inputs as stored", 2),
        (["--public-inputs", "stream", "--private", "synthetic:classes=10,size=16,samples=64:private"], "shapes must be equal", 2),
        (["--public-inputs", "nowhere"], "--public-inputs", 2),
        (["--streams", "0"], "--streams is 0", 2),
        (["--streams", "65"], "--streams is 65", 2),
        (["--private", "synthetic:classes=10,size=16,samples=64:private", "--public", "digits:public"], "shape", 2),
        (["--device", "cuda"], "cuda", 2),
        (["--profile", "/nonexistent.json"], "/nonexistent.json", 2),
        (["--nonsense", "1"], "--nonsense", 2),
    ],
)
def test_a_mistake_ends_in_one_line_that_names_it(flags: list[str], named: str, status: int, address: str, tmp_path: Path) -> None:
    if flags[-1] == "cuda" and Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU, so asking for it is no mistake")
    finished = run(student_command(address, tmp_path / "run", "--cycles", "5", "--log-level", "error", *flags))
    assert finished.returncode == status, finished.stderr
    assert "Traceback" not in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1
    assert named in finished.stderr


@pytest.mark.parametrize("name", ["GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "KMP_AFFINITY"])
def test_a_variable_that_lets_openmp_pin_by_itself_is_refused(name: str, address: str, tmp_path: Path) -> None:
    finished = run(student_command(address, tmp_path / "run", "--cycles", "5"), **{name: "0"})
    assert finished.returncode == 2
    assert f"unset {name}" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


@pytest.mark.timeout(600)  # on a busy machine, disturbed runs are repeated
@TWO_CORES
def test_compare_reports_every_run_and_where_it_came_from(tmp_path: Path) -> None:
    """With a logit cache, every run fills one of its own: with a shared one, later runs would receive nothing."""
    flags = [
        "--private",
        "synthetic:classes=5,size=8,samples=64:private",
        "--model",
        "cnn:width=2",
        "--teacher-model",
        "cnn:width=2",
    ]
    flags += ["--cycles", "4", "--repeats", "1", "--policies", "static:1", "--out", str(tmp_path / "out"), "--log-level", "error"]
    flags += ["--logits", "hybrid", "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "edge_student", "compare", *flags]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(tmp_path)})
    assert finished.returncode == 0, finished.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    runs = [r for r in report["runs"] if r["attempt"] == 1]  # on a busy machine there are repetitions too
    assert [(r["policy"], r["repeat"]) for r in runs] == [("os-default", 0), ("static:1", 0)]
    assert all(r["cycles"] == 4 and r["wall_clock_s"] > 0 and r["disturbance"]["core_s"] > 0 for r in report["runs"])
    assert sum(r["valid"] for r in report["runs"]) == 2, "the attempts that count"
    assert report["is_complete"]
    assert all(r["disturbance"]["teacher_cpu_s"] >= 0 and r["disturbance"]["own_cpu_s"] > 0 for r in runs)
    assert len({r["accuracy"] for r in report["runs"]}) == 1
    received = {json.loads(path.read_text())["comm_num_bytes"] for path in (tmp_path / "out" / "runs").glob("*/result.json")}
    assert len(received) == 1
    assert min(received) > 0
    assert not (tmp_path / "cache").exists()
    assert [row["policy"] for row in report["summary"]] == ["os-default", "static:1"]
    assert report["summary"][1]["verdict"].startswith("too few runs")
    assert {"host", "software", "config", "command"} <= report.keys()
    assert "os-default" in finished.stdout
    assert str(tmp_path / "out" / "report.html") in finished.stdout
    assert "static:1" in (tmp_path / "out" / "report.html").read_text()
    trace = json.loads((tmp_path / "out" / "runs" / "static-1-0" / "trace.json").read_text())
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 2} == {"comm", "comp"}
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


def test_compare_names_the_failed_run(tmp_path: Path) -> None:
    flags = [
        "--private",
        "digits:private",
        "--teacher",
        "127.0.0.1:1",
        "--max-wait",
        "0.3",
        "--policies",
        "os-default",
        "--repeats",
        "1",
    ]
    finished = run([sys.executable, "-m", "edge_student", "compare", *flags, "--out", str(tmp_path), "--log-level", "error"])
    assert finished.returncode == 1
    assert finished.stderr.strip().splitlines()[-1].startswith("error: the first run failed")
    assert "127.0.0.1:1" in finished.stderr
