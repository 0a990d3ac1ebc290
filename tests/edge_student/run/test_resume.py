"""A resumed run: the same weights as without an interruption, and each batch trained once (promises 14 and 24)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import events, read_until, run, student_command, teacher, train, weights
from small_training import PRIVATE, PUBLIC, RECIPE, Boundaries, Logits, student
from warm_start import start

from edge_student.events.buffer import EventBuffer
from edge_student.events.log_file import EventFile
from edge_student.run import checkpoint_file, checkpoint_writer
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_file import NEWEST, PREVIOUS
from edge_student.run.checkpoint_writer import CheckpointWriter
from edge_student.run.resume import ResumeState
from edge_student.run.signals import SignalHandler, Terminated
from edge_student.settings.student import TrainConfig
from edge_student.training.team_trainer import TeamTrainer
from edgekd.files import claim_folder

CYCLES = 400
EXACT = ("--torch-threads", "1", "--cycles", str(CYCLES), "--prefetch", "4", "--window", "8")
OFTEN = ("--checkpoint-every", "0.05")


class Noisy(torch.nn.Module):
    """A student whose Forward changes batch-normalisation means, random numbers (dropout), and a buffer by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.normal = torch.nn.BatchNorm2d(1)
        self.drop = torch.nn.Dropout(0.3)
        self.last = torch.nn.Linear(64, 10)
        self.tied = self.last.weight
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.last(self.drop(self.normal(images)).flatten(1)) * (1 + self.calls / 100)


def noisy_trainer() -> TeamTrainer:
    torch.manual_seed(11)
    trainer = TeamTrainer(student=Noisy(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    trainer.enable_snapshots()
    return trainer


def state(trainer: TeamTrainer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in trainer.snapshot().items()}


class Stop(Exception):
    """Interrupts a run."""


class StopsIn(Boundaries):
    """A schedule that raises Stop before the n-th task."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def task(self, task: Any) -> Any:
        if len(self.tasks) == self._number:
            raise Stop
        return super().task(task)


@pytest.mark.promise(number=14)
@pytest.mark.parametrize("number", [0, 1, 4, 5, 9])
def test_a_snapshot_taken_anywhere_is_that_of_the_last_whole_cycle(number: int) -> None:
    """Interrupted before the n-th task: before a Forward if n is even, between Forward and Backward if odd."""
    torch.set_num_threads(1)
    whole = noisy_trainer()
    whole.train(5, Boundaries(), Logits(), lambda done: None)

    broken = noisy_trainer()
    with pytest.raises(Stop):
        broken.train(5, StopsIn(number), Logits(), lambda done: None)
    assert broken.num_cycles == number // 2
    snapshot = broken.snapshot()

    torch.manual_seed(999)
    other = noisy_trainer()
    other.train(2, Boundaries(), Logits(), lambda done: None)  # state that restore must replace completely
    other.restore(snapshot, number // 2)
    assert other.num_cycles == number // 2
    other.enable_snapshots()
    other.train(5, Boundaries(), Logits(), lambda done: None, start=number // 2)
    assert state(other) == state(whole)


def test_a_snapshot_does_not_change_when_training_goes_on() -> None:
    trainer = noisy_trainer()
    trainer.train(2, Boundaries(), Logits(), lambda done: None)
    snapshot = trainer.snapshot()
    before = {name: tensor.numpy().tobytes() for name, tensor in snapshot.items()}
    trainer.train(4, Boundaries(), Logits(), lambda done: None, start=2)
    assert {name: tensor.numpy().tobytes() for name, tensor in snapshot.items()} == before
    assert state(trainer) != before


@pytest.mark.promise(number=16)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"student.last.weight": torch.zeros(3)}, r"'last.weight' is \[3\]"),
        ({"student.last.weight": torch.zeros(10, 64, dtype=torch.float64)}, "float64"),
        ({"student.nonsense": torch.zeros(1)}, "'nonsense' is not a tensor of this student"),
        ({"momentum.77": torch.zeros(1)}, "'77' is not a tensor of this student"),
        ({"momentum.0": torch.zeros(9)}, r"'0' is \[9\]"),
        ({"random.cpu": torch.zeros(3, dtype=torch.uint8)}, "random generator state of cpu is invalid"),
        ({"random.cpu": torch.zeros(5056)}, "random generator state of cpu is invalid"),
        ({"other": torch.zeros(1)}, "'other' is not part of a snapshot"),
    ],
)
def test_a_snapshot_of_another_student_is_refused_and_changes_nothing(change: dict[str, torch.Tensor], complaint: str) -> None:
    trainer = noisy_trainer()
    snapshot = trainer.snapshot() | change
    with pytest.raises(ValueError, match=complaint):
        trainer.restore(snapshot, 3)
    assert {name: value for name, value in state(trainer).items() if not name.startswith("random")} == {
        name: value for name, value in state(noisy_trainer()).items() if not name.startswith("random")
    }


def test_a_snapshot_without_a_weight_or_a_random_state_is_refused() -> None:
    trainer = noisy_trainer()
    for name in ("student.last.weight", "random.cpu"):
        snapshot = trainer.snapshot()
        del snapshot[name]
        with pytest.raises(ValueError, match="missing"):
            trainer.restore(snapshot, 3)


def test_a_signal_in_a_step_is_raised_after_it_was_counted() -> None:
    signals = SignalHandler()
    trainer = TeamTrainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE, defer_signals=signals.deferred)
    trainer.enable_snapshots()
    step = trainer._optimizer.step
    seen: list[int] = []

    def torn_step(**settings: Any) -> None:
        seen.append(trainer.num_cycles)
        signals.handle(signal.SIGTERM, None)
        step(**settings)

    trainer._optimizer.step = torn_step  # type: ignore[method-assign]
    with pytest.raises(Terminated):
        trainer.train(5, Boundaries(), Logits(), lambda done: None)
    assert (seen, trainer.num_cycles) == ([0], 1)

    untorn = TeamTrainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    untorn.train(1, Boundaries(), Logits(), lambda done: None)
    assert {k: v.tolist() for k, v in trainer.student.state_dict().items()} == {
        k: v.tolist() for k, v in untorn.student.state_dict().items()
    }


def test_a_second_signal_at_once_is_the_same_request() -> None:
    signals = SignalHandler()
    with pytest.raises(KeyboardInterrupt):
        signals.handle(signal.SIGINT, None)
    signals.handle(signal.SIGINT, None)  # it raises nothing while the first exception saves the results
    signals._last_raised -= 2.0
    with pytest.raises(Terminated):
        signals.handle(signal.SIGTERM, None)


def test_a_signal_that_python_swallows_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed: list[object] = []
    signals = SignalHandler()
    signals.raise_lost()

    class Destroyed:
        def __del__(self) -> None:
            signals.handle(signal.SIGTERM, None)

    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    Destroyed()
    assert len(swallowed) == 1
    with pytest.raises(Terminated):
        signals.raise_lost()


def test_signals_are_deferred_let_through_and_deferred_again() -> None:
    signals = SignalHandler()
    output = []

    def work() -> None:
        with signals.deferred():
            signals.handle(signal.SIGINT, None)
            output.append("first")
            with pytest.raises(KeyboardInterrupt), signals.allowed():
                output.append("never")
            output.append("through")
            signals.handle(signal.SIGINT, None)
            output.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert output == ["first", "through", "second"]
    with pytest.raises(Terminated):
        signals.handle(signal.SIGTERM, None)


@pytest.fixture(scope="module")
def whole(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run without checkpoints."""
    out = tmp_path_factory.mktemp("whole")
    train(address, out, "--policy", "os-default", *EXACT, "--checkpoint-every", "0")
    assert not list(out.glob("checkpoint*"))
    return out


def begin_and_end(command: list[str], at: str, number: signal.Signals, within_s: float = 60) -> tuple[int, str]:
    """Start a run, send a signal when it logs `at`, and return its status and log. It must end within `within_s` seconds."""
    process = start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        output = read_until(process, at)
        process.send_signal(number)
        output += process.communicate(timeout=within_s)[1]
    finally:
        process.kill()
        process.wait()
    return process.returncode, output


def trained_once(out: Path) -> bool:
    return [record["index"] for record in events(out) if record.get("task") == "backward"] == list(range(CYCLES))


@pytest.mark.slow
@pytest.mark.promise(number=14)
@pytest.mark.parametrize("policy", ["os-default", "adaptive"])
def test_an_edge_that_is_killed_goes_on_with_the_same_result(policy: str, address: str, whole: Path, tmp_path: Path) -> None:
    command = student_command(address, tmp_path, "--policy", policy, *EXACT, *OFTEN)
    status, output = begin_and_end(command, f"160 of {CYCLES}", signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    status, output = begin_and_end([*command, "--resume"], f"280 of {CYCLES}", signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    assert "resuming after " in output
    finished = run([*command, "--resume"])
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path) == weights(whole)
    assert trained_once(tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["cycles"] == CYCLES
    assert result["valid"]
    assert len(result["resumed_at"]) == 2
    assert 0 < result["resumed_at"][0] < result["resumed_at"][1] < CYCLES
    assert any(note.startswith("resumed from a checkpoint at cycle") for note in result["notes"])
    assert result["num_checkpoints"] >= 2
    log = events(tmp_path)
    last = max(record.get("ended", record.get("time", 0.0)) for record in log)
    assert result["wall_clock_s"] == pytest.approx(last, abs=1.0)
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == [PREVIOUS, NEWEST]


@pytest.mark.slow
@pytest.mark.promise(number=24)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_edge_resumes_after_sigterm(number: signal.Signals, status: int, address: str, whole: Path, tmp_path: Path) -> None:
    command = student_command(address, tmp_path, "--policy", "static:1", *EXACT)
    found, output = begin_and_end(command, f"160 of {CYCLES}", number, within_s=5)
    assert found == status, output
    assert "Traceback" not in output
    kept = checkpoint_file.load(tmp_path)
    assert kept is not None
    assert kept.facts["num_cycles"] == json.loads((tmp_path / "result.json").read_text())["cycles"]
    finished = run([*command, "--resume"])
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path) == weights(whole)
    assert trained_once(tmp_path)


@pytest.mark.slow
@pytest.mark.promise(number=24)
def test_a_failure_at_the_end_of_a_run_does_not_prevent_other_files(address: str, whole: Path, tmp_path: Path) -> None:
    command = student_command(address, tmp_path, "--policy", "os-default", *EXACT)
    blind = [*command[:2], "blind_student", *command[3:]]
    found, output = begin_and_end(blind, f"160 of {CYCLES}", signal.SIGTERM)
    assert found == 0, output
    assert "cleanup also failed: RuntimeError: the machine is not to be looked at" in output
    finished = run([*blind, "--resume"])
    assert finished.returncode == 1
    assert "the machine is not to be looked at" in finished.stderr
    assert weights(tmp_path) == weights(whole)
    finished = run([*command, "--resume"])
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path) == weights(whole)
    assert trained_once(tmp_path)


@pytest.mark.slow
def test_a_run_that_was_whole_trains_on_with_more_cycles_and_not_at_all_with_as_many(
    address: str, whole: Path, tmp_path: Path
) -> None:
    short = student_command(address, tmp_path, *EXACT, "--cycles", "150")
    assert run(short).returncode == 0
    modified = (tmp_path / "student.safetensors").stat().st_mtime_ns
    again = run([*short, "--resume"])
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert (tmp_path / "student.safetensors").stat().st_mtime_ns == modified
    longer = run(student_command(address, tmp_path, *EXACT, "--resume", "--logits", "online"))
    assert longer.returncode == 0, longer.stderr
    assert weights(tmp_path) == weights(whole)
    fewer = run([*short, "--resume"])
    assert fewer.returncode == 2
    assert f"--cycles is 150, must be at least {CYCLES}" in fewer.stderr


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_is_refused_by_name(address: str, tmp_path: Path) -> None:
    command = student_command(address, tmp_path, *EXACT, "--cycles", "20")
    assert run(command).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused = run([*command, "--cycles", "30", "--resume", "--private-samples", "65"])
    assert refused.returncode == 2
    assert "--private-samples is 65, must be 64 as in the checkpoint" in refused.stderr
    for flags, complaint in (
        (["--lr", "0.01"], "--lr is 0.01, must be 0.05 as in the checkpoint"),
        (["--encoding", "int8"], "--encoding is 'int8'"),
    ):
        for more in (["--cycles", "30"], []):  # also if no cycles are left
            refused = run([*command, *more, "--resume", *flags])
            assert refused.returncode == 2, refused.stderr
            assert complaint in refused.stderr
            assert "Traceback" not in refused.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
@pytest.mark.promise(number=17)
def test_a_checkpoint_of_another_teacher_is_refused(address: str, tmp_path: Path) -> None:
    command = student_command(address, tmp_path / "out", *EXACT, "--cycles", "20")
    assert run(command).returncode == 0
    with teacher(tmp_path / "store", "--seed", "9") as other:
        refused = run(student_command(other.address, tmp_path / "out", *EXACT, "--cycles", "30", "--resume"))
    assert refused.returncode == 2, refused.stderr
    assert "logits of two teachers are never mixed" in refused.stderr


@pytest.mark.slow
@pytest.mark.promise(number=15)
def test_a_damaged_checkpoint_is_left_for_the_one_before_it_with_the_same_result(address: str, whole: Path, tmp_path: Path) -> None:
    command = student_command(address, tmp_path, "--policy", "os-default", *EXACT, *OFTEN)
    status, output = begin_and_end(command, f"240 of {CYCLES}", signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    data = (tmp_path / NEWEST).read_bytes()
    (tmp_path / NEWEST).write_bytes(data[: len(data) // 2])
    finished = run([*command, "--resume"])
    assert finished.returncode == 0, finished.stderr
    assert "resuming from the previous checkpoint" in finished.stderr
    assert weights(tmp_path) == weights(whole)
    assert trained_once(tmp_path)


@pytest.mark.slow
@pytest.mark.promise(number=24)
def test_a_run_that_is_ended_before_its_first_cycle_leaves_the_checkpoint_that_it_went_on_from(
    address: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives after loading and before the first cycle."""
    from edge_student.run.run import Run
    from edgekd.cli.command import parse
    from scheduler.live.threads import allowed_cores

    command = student_command(address, tmp_path, "--policy", "os-default", *EXACT)
    assert run([*command, "--cycles", "100"]).returncode == 0
    signals = SignalHandler()
    config = parse(TrainConfig, [*command[4:], "--resume"], prog="", description="")
    with Run(config, tuple(sorted(allowed_cores())), signals) as running:
        read_counters = running._sampler.before

        def read_and_terminate() -> None:
            read_counters()
            signals.handle(signal.SIGTERM, None)

        monkeypatch.setattr(running._sampler, "before", read_and_terminate)
        with pytest.raises(Terminated):
            running.execute()
    kept = checkpoint_file.load(tmp_path)
    assert kept is not None
    assert kept.facts["num_cycles"] == 100
    finished = run([*command, "--resume"])
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path) == weights(whole)
    assert trained_once(tmp_path)


@pytest.mark.slow
def test_divergence_is_reported(address: str, tmp_path: Path) -> None:
    finished = run(student_command(address, tmp_path, *EXACT, "--cycles", "4", "--lr", "1e30"))
    assert finished.returncode == 0, finished.stderr
    assert "WARNING the loss is " in finished.stderr
    assert "training diverged; try a smaller --lr" in finished.stderr
    assert json.loads((tmp_path / "result.json").read_text())["valid"] is False


def test_marks_of_a_run_outlive_its_process() -> None:
    before = Caveats(notes=("cores were taken",), is_ranked=False, num_reconnects=2, num_refused_chunks=None)
    now = Caveats(notes=("the link failed", "cores were taken"), num_reconnects=1)
    saved = json.loads(json.dumps(asdict(before)))
    both = now.after(Caveats.from_json(saved, "here"))
    assert both == Caveats(
        notes=("cores were taken", "the link failed"), is_ranked=False, num_reconnects=3, num_refused_chunks=None
    )
    del saved["num_duplicate_chunks"]
    assert Caveats.from_json(saved, "here").num_duplicate_chunks is None, "a checkpoint of an earlier version"
    for wrong in (None, {}, {"notes": [1]}, asdict(before) | {"is_ranked": 1}, asdict(before) | {"num_reconnects": -1}):
        with pytest.raises(ValueError, match="here"):
            Caveats.from_json(wrong, "here")


class FullDisk:
    """A `CheckpointWriter` with minimal stand-ins for the parts of a run."""

    def __init__(self, out: Path, every: float) -> None:
        self.buffer, self.log = EventBuffer(), EventFile(out / "events.jsonl")
        self.config = SimpleNamespace(out=out, checkpoint_every=every, optimizer="sgd")
        trainer = SimpleNamespace(num_private_steps=0, num_cycles=7, last_loss=0.5, snapshot=dict, student=torch.nn.Linear(1, 1))
        self.checkpoints = CheckpointWriter(
            config=self.config,  # type: ignore[arg-type]
            identity={},
            trainer=trainer,  # type: ignore[arg-type]
            controller=SimpleNamespace(to_json=dict),  # type: ignore[arg-type]
            buffer=self.buffer,
            log=self.log,
            resumed=ResumeState(),
            caveats=Caveats,
            accuracies=[],
        )


def test_a_full_disk_is_retried_and_logged_once(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, every=3600.0)
    (tmp_path / "checkpoint.new").mkdir()  # cannot be opened as a file
    disk.checkpoints.begin(time.monotonic())
    for _ in range(checkpoint_writer.MAX_BUFFERED_RECORDS + 50):
        disk.buffer.record({"event": "decision", "time": 0.0})
    for _ in range(20):
        disk.checkpoints.on_cycle()
        for _ in range(checkpoint_writer.MAX_BUFFERED_RECORDS):
            disk.buffer.record({"event": "decision", "time": 0.0})
    (note,) = disk.checkpoints.notes
    assert note.startswith("1 writes of a checkpoint or of events.jsonl failed, the first at cycle 7, ")
    assert disk.log.totals.num_checkpoints == 0


@pytest.mark.promise(number=15)
def test_on_a_small_disk_the_log_leaves_room_for_two_checkpoints_a_fresh_one_and_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(tmp_path, every=3600.0)
    student = 8  # bytes of one weight and one bias
    free = 2 * student * 3 + student
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_blocks=1000, f_bavail=free, f_frsize=1))
    disk.buffer.record({"event": "decision", "time": 0.0})
    disk.checkpoints.begin(0.0)
    disk.checkpoints.end(1.0)
    assert (tmp_path / "events.jsonl").read_bytes() == b""
    assert len(disk.buffer.records) == 1
    size = (tmp_path / NEWEST).stat().st_size
    assert "events.jsonl: No space left" in disk.checkpoints.notes[0]
    free = size + size + student  # one checkpoint exists, the previous and the temporary one do not
    disk.checkpoints.end(2.0)
    assert (tmp_path / "events.jsonl").read_bytes() == b""
    assert (tmp_path / PREVIOUS).exists()
    free = size + student + 100
    disk.checkpoints.end(3.0)
    assert [record["event"] for record in events(tmp_path)] == ["decision"]


@pytest.mark.slow
def test_a_run_that_cannot_begin_leaves_the_earlier_one_as_it_is(address: str, tmp_path: Path) -> None:
    assert run(student_command(address, tmp_path, *EXACT, "--cycles", "20")).returncode == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for flags, status in (
        (("--private", "imagefolder:/nowhere"), 2),
        (("--teacher", "127.0.0.1:1", "--max-wait", "0.3"), 1),
        (("--public", "digits:private"), 2),
    ):
        failed = run(student_command(address, tmp_path, *EXACT, *flags))
        assert failed.returncode == status, failed.stderr
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    again = run(student_command(address, tmp_path, *EXACT, "--cycles", "10"))
    assert again.returncode == 0
    assert "removing the checkpoint of an earlier run" in again.stderr
    assert json.loads((tmp_path / "result.json").read_text())["cycles"] == 10


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    claim = claim_folder(tmp_path)
    with pytest.raises(ValueError, match="another run uses it"):
        claim_folder(tmp_path)
    os.close(claim)
    os.close(claim_folder(tmp_path))


def test_a_run_unlocks_its_folder_when_its_constructor_fails_or_its_context_ends(tmp_path: Path) -> None:
    from edge_student.run.run import Run

    config = TrainConfig(teacher="127.0.0.1:1", private="digits:private", out=tmp_path)
    for wrong in (replace(config, model="nonsense"), replace(config, policy="nonsense")):
        with pytest.raises(ValueError, match="nonsense"):
            Run(wrong, (0, 1))
    for _ in range(2):
        with Run(config, (0, 1)), pytest.raises(ValueError, match="another run"):
            Run(config, (0, 1))


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """Mount a disk of this size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.needs("root")
def test_a_disk_without_space_for_the_student_is_refused_before_the_training(address: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 140_000) as disk:
        finished = run(student_command(address, disk, *EXACT))
        assert finished.returncode == 1
        assert "the student and its checkpoints need" in finished.stderr
        assert "or train with --checkpoint-every 0" in finished.stderr
        assert not (disk / "result.json").exists()


@pytest.mark.slow
@pytest.mark.needs("root")
def test_a_disk_without_space_for_the_event_log_costs_the_log_alone(address: str, whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 320_000) as disk:
        finished = run(student_command(address, disk, *EXACT))
        assert finished.returncode == 0, finished.stderr
        assert weights(disk) == weights(whole)
        result = json.loads((disk / "result.json").read_text())
        assert (result["cycles"], result["accuracy"] > 0) == (CYCLES, True)
        assert any("the disk has no space for" in note for note in result["notes"])
        assert result["forward_s"] > 0, "tasks that are not logged are counted"


def test_a_log_that_finds_no_room_keeps_no_checkpoint_from_being_written(tmp_path: Path) -> None:
    disk = FullDisk(tmp_path, every=0.001)
    (tmp_path / "events.jsonl").unlink()  # the log file is missing, so opening it fails
    disk.checkpoints.begin(time.monotonic() - 1)
    disk.buffer.record({"event": "decision", "time": 0.0})
    disk.checkpoints.on_cycle()
    found = checkpoint_file.load(tmp_path)
    assert found is not None
    assert (found.facts["num_cycles"], found.facts["events_bytes"]) == (7, 0)
    assert len(disk.buffer.records) == 1, "what could not be written is still there"
    assert len(disk.checkpoints.notes) == 1
