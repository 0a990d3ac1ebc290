"""`compare`: the choice of policies, the flags of the run processes, and the predictions."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_comparison import write_comparison

from edge_student.compare.compare import choose_policies, predict_all, shared_flags
from edge_student.compare.prediction import predict
from edge_student.settings.student import CompareConfig, StudentConfig, TrainConfig, parse_policies
from edgekd.cli.command import parse
from edgekd.wire.codec import Encoding
from scheduler.model.scenario import Profile


def test_the_baseline_is_always_compared_and_comes_first() -> None:
    assert parse_policies("dynamic,os-default,static:1") == ("os-default", "dynamic", "static:1")
    assert parse_policies("dynamic") == ("os-default", "dynamic")
    for wrong in ("", "a,,b", "a,a"):
        with pytest.raises(ValueError, match="--policies"):
            CompareConfig(policies=wrong, private="digits:private", out=Path("x"))


def test_without_names_all_policies_that_the_cores_allow_are_compared(caplog: pytest.LogCaptureFixture) -> None:
    config = CompareConfig(private="digits:private", out=Path("x"))
    unsplit = ("os-default", "os-tuned", "os-workers", "comm-priority", "comp-priority", "compute-first")
    assert set(choose_policies(config, 3)) == {*unsplit, "static:1", "random", "elastic", "dynamic", "adaptive"}
    assert caplog.text == ""
    with caplog.at_level("INFO"):
        assert "random" not in choose_policies(config, 2)
    assert "with 2 cores there is one split" in caplog.text
    assert choose_policies(config, 1) == (*unsplit, "adaptive")
    assert "dynamic" in caplog.text
    with pytest.raises(ValueError, match="dynamic"):
        choose_policies(CompareConfig(private="digits:private", policies="dynamic", out=Path("x")), 1)


def test_every_shared_setting_reaches_the_run() -> None:
    config = CompareConfig(
        private="digits:private",
        public="digits:public",
        private_samples=10,
        encoding=Encoding.FLOAT16,
        alpha=0.25,
        prefetch=3,
        cores="0",
        torch_threads=1,
        profile=Path("p.json"),
        max_wait=1.5,
        insecure=True,
        out=Path("x"),
    )
    flags = [*shared_flags(config), "--teacher", "127.0.0.1:1", "--out", "y"]
    run = parse(TrainConfig, flags, prog="p", description="d")
    for field in dataclasses.fields(StudentConfig):
        assert getattr(run, field.name) == getattr(config, field.name), field.name


@pytest.mark.parametrize(
    ("private", "public", "test"),
    [
        ("digits:private", "digits:public", "digits:test"),
        ("digits", "digits:public", "digits:test"),
        ("synthetic:classes=2,size=8,samples=4:private", "synthetic:classes=2,size=8,samples=4:public", None),
        ("imagefolder:/data/x", "imagefolder:/data/x:public", None),
    ],
)
def test_the_other_splits_are_of_the_same_data_set(private: str, public: str, test: str | None) -> None:
    config = TrainConfig(private=private, teacher="127.0.0.1:1", out=Path("x"))
    assert config.public_dataset == public
    assert test in (None, config.test_dataset)


@pytest.mark.parametrize("address", ["vm", "vm:", ":1", "vm:0", "vm:65536", "vm:x"])
def test_an_address_needs_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        TrainConfig(private="digits:private", teacher=address, out=Path("x"))


@pytest.mark.parametrize("flag", ["private", "public"])
def test_nothing_is_learned_from_the_test_split(flag: str) -> None:
    settings = {"private": "digits:private", "teacher": "a:1", "out": Path("x"), flag: "digits:test"}
    with pytest.raises(ValueError, match=f"--{flag} is digits:test"):
        TrainConfig(**settings)


def test_each_policy_is_modelled_with_the_prefetch_that_its_runs_had(caplog: pytest.LogCaptureFixture) -> None:
    rates = {"comp-only": (0.0, 180.0), "split:1": (300.0, 50.0), "comm-only": (600.0, 0.0)}
    modes = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, (comm, comp) in rates.items()]
    profile = Profile.from_json({"cores": 2, "forward": 0.4, "backward": 0.6, "comm": 1.0, "modes": modes})
    slots = {"os-default": 20, "static:1": 2, "comp-priority": 20, "random": None, "static:2": 20}
    runs = [{"policy": policy, "prefetch": prefetch} for policy, prefetch in slots.items()]
    modelled = predict_all(profile, list(slots), runs, cycles=20)
    assert modelled == {
        "os-default": None,  # the kernel schedules it
        "static:1": predict(profile, "static:1", cycles=20, prefetch=2),
        "comp-priority": predict(profile, "comp-priority", cycles=20, prefetch=None),  # its ring held every batch
        "random": None,  # none of its runs finished
        "static:2": None,  # it has no core left on this device
    }
    assert "no prediction for static:2" in caplog.text
    assert predict_all(None, list(slots), runs, cycles=20) == {}


def test_a_comparison_without_a_profile_loads_neither_scipy_nor_matplotlib(tmp_path: Path) -> None:
    """Both take seconds to load on a small board."""
    write_comparison(tmp_path, repeats=1, cycles=3)
    script = (
        "import pathlib, sys, edge_student.compare.compare as compare\n"
        f"compare.write_page(pathlib.Path({str(tmp_path)!r}))\n"
        "print({'scipy', 'matplotlib'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
