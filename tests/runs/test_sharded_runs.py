"""Whole runs with compute workers: the weights depend on the number of shards, whatever happens to cores and processes."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from processes import events, notes_of, read_until, run, student_command, train, weights
from warm_start import start

from scheduler.live.threads import allowed_cores

pytestmark = pytest.mark.slow
TWO_CORES = pytest.mark.skipif(len(allowed_cores()) < 2, reason="needs two cores to split them")
TWO_SHARDS = ("--shards", "2", "--cycles", "30")
FOUR_SHARDS = ("--shards", "4", "--cycles", "4")
RANDOM_NETS = ["torchvision:mobilenet_v3_small", "tests.support.noisy_student:make"]


@pytest.fixture(scope="module")
def undisturbed(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    result = train(address, out, "--policy", "os-default", *TWO_SHARDS)
    assert (result["cycles"], result["shards"], result["valid"], notes_of(result)) == (30, 2, True, [])
    return out


def compute_workers_of(pid: int) -> list[psutil.Process]:
    """Return the compute workers of a run: what its fork server has started."""
    running = [child for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    servers = [child for child in running if "forkserver" in " ".join(child.cmdline())]
    return [child for server in servers for child in server.children()]


@pytest.mark.parametrize(
    "policy", ["os-workers", "static:1", "random", "comm-priority", "compute-first", "elastic", "dynamic", "adaptive"]
)
@TWO_CORES
def test_a_policy_moves_workers_never_results(policy: str, address: str, undisturbed: Path, tmp_path: Path) -> None:
    result = train(address, tmp_path, "--policy", policy, *TWO_SHARDS)
    assert weights(tmp_path) == weights(undisturbed)
    assert (result["policy"], result["shards"]) == (policy, 2)
    log = events(tmp_path)
    for task in ("comm", "forward", "backward"):
        assert [record["index"] for record in log if record.get("task") == task] == list(range(30))
    assert [record["index"] for record in log if record["event"] == "shards"] == list(range(30))


@pytest.fixture(scope="module")
def random_nets(address: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Weights of nets with dropout, batch normalisation and stochastic depth, trained with four workers that nothing disturbs."""
    found = {}
    for model in RANDOM_NETS:
        out = tmp_path_factory.mktemp("random-net")
        train(address, out, "--policy", "os-workers", "--model", model, *FOUR_SHARDS)
        found[model] = weights(out)
    return found


@pytest.mark.promise(number=34)
@pytest.mark.parametrize("model", RANDOM_NETS)
@pytest.mark.parametrize("policy", ["os-default", "static:1", "elastic", "dynamic", "adaptive"])
@TWO_CORES
def test_four_workers_of_a_random_net_give_equal_weights_on_two_cores(
    policy: str, model: str, address: str, random_nets: dict[str, bytes], tmp_path: Path
) -> None:
    cores = ",".join(map(str, sorted(allowed_cores())[:2]))
    train(address, tmp_path, "--policy", policy, "--model", model, "--cores", cores, *FOUR_SHARDS)
    assert weights(tmp_path) == random_nets[model]


@pytest.mark.promise(number=34)
@pytest.mark.parametrize("policy", ["os-workers", "adaptive"])
def test_one_core_gives_the_weights_of_two(policy: str, address: str, undisturbed: Path, tmp_path: Path) -> None:
    train(address, tmp_path, "--policy", policy, "--cores", str(min(allowed_cores())), *TWO_SHARDS)
    assert weights(tmp_path) == weights(undisturbed)


def test_a_run_without_flags_has_a_shard_for_each_core_and_plain_torch_has_one(address: str, tmp_path: Path) -> None:
    def shards(*flags: str) -> int:
        command = student_command(address, tmp_path, "--cycles", "2", *flags)
        where = command.index("--shards")
        assert run(command[:where] + command[where + 2 :]).returncode == 0
        return int(json.loads((tmp_path / "result.json").read_text())["shards"])

    assert shards("--policy", "os-workers") == min(len(allowed_cores()), 3)  # 24 rows, at least 8 in a shard
    assert shards("--policy", "os-default") == 1
    assert shards("--policy", "os-workers", "--torch-threads", "2") == 1


@TWO_CORES
def test_a_model_of_many_weights_has_one_team_unless_shards_are_asked_for(address: str, tmp_path: Path) -> None:
    def shards(name: str, *flags: str) -> int:
        model = ("--model", "tests.support.wide_student:make")
        command = student_command(address, tmp_path / name, "--policy", "static:1", *model, *flags)
        where = command.index("--shards")
        command = command[:where] + command[where + 2 :] if "--shards" not in flags else command
        finished = run(command)
        assert finished.returncode == 0, finished.stderr
        assert ("one team of threads trains model" in finished.stderr) == ("--shards" not in flags and "--resume" not in flags)
        return int(json.loads((tmp_path / name / "result.json").read_text())["shards"])

    assert shards("team", "--cycles", "2") == 1
    assert shards("workers", "--cycles", "2", "--shards", "2") == 2
    assert shards("workers", "--cycles", "4", "--resume") == 2, "a run keeps its shards"


@pytest.mark.promise(number=29)
@TWO_CORES
@pytest.mark.parametrize("with_server", [False, True])
def test_a_killed_compute_worker_is_replaced(with_server: bool, address: str, undisturbed: Path, tmp_path: Path) -> None:
    """The kernel kills all workers with the process that forked them."""
    process = start(student_command(address, tmp_path, "--policy", "static:1", *TWO_SHARDS), stderr=subprocess.PIPE)
    try:
        output = read_until(process, "3 of 30")
        victim = compute_workers_of(process.pid)[0]
        os.kill(victim.ppid() if with_server else victim.pid, signal.SIGKILL)
        output += process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert "another one takes its place" in output
    assert weights(tmp_path) == weights(undisturbed)
    notes = notes_of(json.loads((tmp_path / "result.json").read_text()))
    assert sum("was replaced" in note for note in notes) >= (2 if with_server else 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_resumes_with_other_cores_and_the_same_weights(
    number: signal.Signals, address: str, undisturbed: Path, tmp_path: Path
) -> None:
    flags = ("--policy", "os-workers", "--checkpoint-every", "0.01", *TWO_SHARDS)
    process = start(student_command(address, tmp_path, *flags), stderr=subprocess.PIPE)
    try:
        output = read_until(process, "9 of 30")
        workers = compute_workers_of(process.pid)
        process.send_signal(number)
        output += process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL), output
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []  # no worker outlives the run
    command = student_command(address, tmp_path, *flags, "--resume", "--cores", str(min(allowed_cores())))
    where = command.index("--shards")
    finished = run(command[:where] + command[where + 2 :])  # the checkpoint says how many shards
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path) == weights(undisturbed)
    assert [record["index"] for record in events(tmp_path) if record.get("task") == "backward"] == list(range(30))


def test_another_number_of_shards_is_refused_when_a_run_resumes(address: str, tmp_path: Path) -> None:
    train(address, tmp_path, "--policy", "os-workers", "--shards", "2", "--cycles", "3")
    refused = run(student_command(address, tmp_path, "--policy", "os-workers", "--shards", "3", "--cycles", "4", "--resume"))
    assert refused.returncode == 2
    assert "--shards is 3, must be 2 as in the checkpoint" in refused.stderr


@pytest.mark.promise(number=28)
@pytest.mark.parametrize("side", ["comm", "compute"])
@TWO_CORES
def test_a_stopped_worker_is_named_and_continued_within_the_silence_limit(
    side: str, address: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cycles = ("--shards", "2", "--cycles", "400")  # the run has not ended when the signal is sent
    expected_out = tmp_path_factory.mktemp("not-stopped")
    train(address, expected_out, "--policy", "os-workers", *cycles)
    # Nothing is held under os-workers. Under a policy that holds compute, the end of a hold continues a stopped worker.
    flags = ("--policy", "os-workers", "--max-silence", "1", "--prefetch", "1", *cycles)
    process = start(student_command(address, tmp_path, *flags), stderr=subprocess.PIPE)
    try:
        output = read_until(process, "40 of 400")
        comm = [child for child in psutil.Process(process.pid).children() if "receive.worker" in " ".join(child.cmdline())]
        victim = comm[0] if side == "comm" else compute_workers_of(process.pid)[1]
        victim.suspend()
        output += process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert weights(tmp_path) == weights(expected_out)
    name = "the comm worker" if side == "comm" else "the worker of shard 1"
    message = f"{name} (process {victim.pid}) was stopped by a signal or a debugger for 1 s; it got SIGCONT"
    assert message in output
    assert message in notes_of(json.loads((tmp_path / "result.json").read_text()))
