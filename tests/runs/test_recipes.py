"""Whole runs with other optimizers, schedules, augmentation, losses, start weights and frozen parts."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
from processes import events, notes_of, read_until, run, student_command, teacher, train, weights
from warm_start import start

pytestmark = pytest.mark.slow
OWN = "tests.support.own_recipe"
CYCLES = 24
RICH = [
    "--optimizer",
    "adamw",
    "--lr",
    "0.003",
    "--weight-decay",
    "0.02",
    "--schedule",
    "cosine",
    "--warmup",
    "4",
    "--clip-grad",
    "0.5",
]
RICH += ["--augment", "crop-flip", "--loss", f"{OWN}:loss", "--freeze", "0", "--cycles", str(CYCLES)]


@pytest.fixture(scope="module", params=["team", "workers"])
def shards(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return the flags of one team, of one thread, so that its results do not depend on the cores, or of two workers."""
    return ("--shards", "1", "--torch-threads", "1") if request.param == "team" else ("--shards", "2")


@pytest.fixture(scope="module")
def rich(address: str, shards: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rich")
    result = train(address, out, *RICH, *shards, "--policy", "os-workers")
    assert (result["cycles"], result["shards"], result["valid"], notes_of(result)) == (CYCLES, int(shards[1]), True, [])
    return out


@pytest.mark.parametrize("policy", ["os-default", "adaptive"])
def test_a_policy_does_not_change_the_weights_of_a_recipe(
    policy: str, address: str, shards: tuple[str, ...], rich: Path, tmp_path: Path
) -> None:
    train(address, tmp_path, *RICH, *shards, "--policy", policy)
    assert weights(tmp_path) == weights(rich)


def test_a_killed_run_resumes_with_the_same_weights(address: str, shards: tuple[str, ...], rich: Path, tmp_path: Path) -> None:
    flags = (*RICH, *shards, "--policy", "os-workers", "--checkpoint-every", "0.01")
    process = start(student_command(address, tmp_path, *flags), stderr=subprocess.PIPE)
    try:
        read_until(process, f"10 of {CYCLES}")
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "result.json").exists()
    finished = run(student_command(address, tmp_path, *flags, "--resume"))
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path) == weights(rich)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--optimizer", "adam"), "--optimizer is 'adam', must be 'adamw' as in the checkpoint"),
        (("--clip-grad", "0.25"), "--clip-grad is 0.25, must be 0.5 as in the checkpoint"),
        (("--cycles", "30"), "--cycles is 30, must be 24 as in the checkpoint"),
        (("--freeze", "1"), "--freeze is '1', must be '0' as in the checkpoint"),
    ],
)
def test_another_recipe_is_refused_when_a_run_resumes(
    changed: tuple[str, str], message: str, address: str, shards: tuple[str, ...], rich: Path
) -> None:
    flags = list(RICH)
    flags[flags.index(changed[0]) + 1] = changed[1]
    refused = run(student_command(address, rich, *flags, *shards, "--policy", "os-workers", "--resume"))
    assert refused.returncode == 2
    assert message in refused.stderr


def test_frozen_weights_keep_every_bit(address: str, rich: Path, shards: tuple[str, ...], tmp_path: Path) -> None:
    train(address, tmp_path, *shards, "--freeze", "0,1", "--init", str(rich / "student.safetensors"), "--cycles", "5")
    before, after = (safetensors.torch.load_file(out / "student.safetensors") for out in (rich, tmp_path))
    same = {name for name in before if before[name].equal(after[name])}
    assert {name for name in before if name.startswith(("0.", "1."))} <= same
    assert len(same) < len(before) / 2


def test_own_code_of_the_user(address: str, shards: tuple[str, ...], tmp_path: Path) -> None:
    flags = ("--augment", f"{OWN}:noise", "--schedule", f"{OWN}:halves", "--cycles", "10", *shards)
    train(address, tmp_path / "a", *flags)
    train(address, tmp_path / "b", *flags)
    train(address, tmp_path / "c", "--cycles", "10", *shards)
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--loss", f"{OWN}:broken"), "--loss returned a float, must be a scalar tensor"),
        (("--loss", f"{OWN}:none"), f"--loss {OWN}:none cannot be imported"),
        (("--loss", f"{OWN}:contrast", "--shards", "2"), "needs --shards 1: --loss is not a mean over the rows of a batch"),
        (("--loss", f"{OWN}:loss", "--shards", "3"), "needs --shards 1: --loss with 3 shards needs a multiple of 3 rows"),
        (("--schedule", "cosin"), "--schedule is 'cosin', must be constant, cosine, step or package.module:callable"),
        (("--early-stop", "2"), "--early-stop is 2, but the accuracy is measured once: name --eval-every CYCLES"),
        (("--init", "none.safetensors"), "--init: none.safetensors: No such file"),
        (("--init-except", "head"), "--init-except is head, but there is no --init"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_explained(flags: tuple[str, ...], message: str, address: str, tmp_path: Path) -> None:
    refused = run(student_command(address, tmp_path, *flags))
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_weights_of_another_training_need_their_normalization(address: str, rich: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(rich / "student.safetensors"), plain)
    refused = run(student_command(address, tmp_path / "out", "--init", str(plain)))
    assert refused.returncode == 2
    assert "the normalization of --init" in refused.stderr
    train(address, tmp_path / "out", "--init", str(plain), "--normalize", "signed", "--cycles", "2")


def test_evaluations_change_no_weights_and_are_recorded(address: str, shards: tuple[str, ...], tmp_path: Path) -> None:
    flags = ("--cycles", "20", *shards)
    train(address, tmp_path / "plain", *flags)
    result = train(address, tmp_path / "watched", *flags, "--eval-every", "5")
    assert weights(tmp_path / "plain") == weights(tmp_path / "watched")
    assert [cycle for cycle, _ in result["accuracies"]] == [5, 10, 15, 20]
    assert result["accuracies"][-1][1] == result["accuracy"]
    assert [record["index"] for record in events(tmp_path / "watched") if record["event"] == "evaluation"] == [5, 10, 15, 20]


def test_a_training_that_no_longer_improves_stops_with_a_note(address: str, shards: tuple[str, ...], tmp_path: Path) -> None:
    flags = ("--cycles", "400", "--eval-every", "2", "--early-stop", "2", "--lr", "1e-30", *shards)
    result = train(address, tmp_path, *flags)
    assert result["cycles"] < 40
    assert any(
        note.startswith(f"stopped early at cycle {result['cycles']} of 400: the accuracy has not risen") for note in result["notes"]
    )
    assert result["valid"]
    finished = run(student_command(address, tmp_path, *flags, "--resume"))
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "result.json").read_text())["cycles"] == result["cycles"]


def test_private_steps_fill_the_time_without_logits(tmp_path: Path) -> None:
    with teacher(tmp_path / "store", "--rate-limit", "20kbit") as slow:
        result = train(slow.address, tmp_path / "out", "--cycles", "12", "--while-starved", "private", "--prefetch", "1")
        assert result["private_steps"] > 0
        assert result["cycles"] == 12
        assert any(note.startswith(f"{result['private_steps']} steps on private data alone") for note in result["notes"])
        more = train(slow.address, tmp_path / "out", "--cycles", "14", "--while-starved", "private", "--prefetch", "1", "--resume")
        assert more["private_steps"] > result["private_steps"]
        assert train(slow.address, tmp_path / "wait", "--cycles", "3")["private_steps"] == 0


def test_dropout_depends_on_the_seed_only(address: str, shards: tuple[str, ...], tmp_path: Path) -> None:
    flags = ("--model", "tests.support.noisy_student:make", "--cycles", "6", *shards)
    for name in "ab":
        train(address, tmp_path / name, *flags)
    train(address, tmp_path / "c", *flags[:3], "3", *shards)
    train(address, tmp_path / "c", *flags, "--resume")
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(tmp_path / "c")


@pytest.mark.parametrize("policy", ["os-default", "static:1", "random", "comp-priority", "elastic", "dynamic"])
@pytest.mark.parametrize("inputs", ["local", "stream"])
def test_private_steps_hold_no_logits_back_under_any_policy(policy: str, inputs: str, tmp_path: Path) -> None:
    with teacher(tmp_path / "store", "--rate-limit", "40kbit") as slow:
        flags = ("--policy", policy, "--public-inputs", inputs, "--cycles", "3", "--while-starved", "private", "--prefetch", "1")
        result = train(slow.address, tmp_path / "out", *flags)
    assert result["cycles"] == 3
    assert result["private_steps"] > 0


def test_epochs_are_passes_over_the_private_data(address: str, tmp_path: Path) -> None:
    assert train(address, tmp_path, "--epochs", "2.5")["cycles"] == 20  # 64 samples, 8 in a batch
