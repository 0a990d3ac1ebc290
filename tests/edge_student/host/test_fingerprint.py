"""Which device a profile is of: what is read, what is compared, and that each refusal names the value, the rule and the remedy."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edge_student.host.fingerprint import fingerprint, openmp_runtimes
from edge_student.run.profile_match import check_profile, settings_of
from edge_student.settings.student import StudentConfig

HERE: dict[str, Any] = {
    "cpu": "Cortex-A72",
    "architecture": "aarch64",
    "cores": [0, 1, 2, 3],
    "governor": "performance",
    "power_mode": None,
    "min_khz": "600000",
    "max_khz": "1500000",
    "torch": "2.11.0",
    "openmp": ["libgomp.so.1"],
    "spinning": {},
}
WORK = settings_of(StudentConfig(private="digits:private"), device="cpu", input_shape=(1, 8, 8), num_classes=10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of four cores, of which two are clocked otherwise."""
    for core in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("performance\n")
        (folder / "scaling_min_freq").write_text("600000\n")
        (folder / "scaling_max_freq").write_text("1500000\n" if core < 2 else "2400000\n")
    return tmp_path


def test_what_cores_agree_on_is_told_once(root: Path) -> None:
    found = fingerprint((0, 1), {"GOMP_SPINCOUNT": "30000", "HOME": "/root"}, root=root)
    assert (found["governor"], found["min_khz"], found["max_khz"]) == ("performance", "600000", "1500000")
    assert found["cores"] == [0, 1]
    assert found["spinning"] == {"GOMP_SPINCOUNT": "30000"}
    assert fingerprint((1, 2), {}, root=root)["max_khz"] == ["1500000", "2400000"]
    assert set(found) == set(HERE)


def test_a_machine_that_says_nothing_has_a_fingerprint_too(tmp_path: Path) -> None:
    found = fingerprint((0,), {}, root=tmp_path)
    assert (found["governor"], found["max_khz"], found["power_mode"], found["openmp"]) == (None, None, None, [])
    assert found["torch"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 15W_2CORE\n2\n", "15W_2CORE"),
        ("no\n", None),
    ],
)
def test_a_jetson_is_asked_for_its_power_mode(
    answer: str, mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text("")
    program = tmp_path / "bin" / "nvpmodel"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntest "$*" = -q && printf "{answer}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert fingerprint((0,), {}, root=tmp_path)["power_mode"] == mode


def test_loaded_openmp_runtimes_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = [
        "7f00 r-xp /site-packages/torch/lib/libgomp-e985bcbb.so.1.0.0",
        "7f01 r--p /site-packages/torch/lib/libgomp-e985bcbb.so.1.0.0",
    ]
    (tmp_path / "proc/self/maps").write_text("\n".join([*lines, "7f02 r-xp /usr/lib/libiomp5.so", "7f03 r-xp /usr/lib/libc.so.6"]))
    assert openmp_runtimes(tmp_path) == ["libgomp-e985bcbb.so.1.0.0", "libiomp5.so"]


def test_the_same_device_and_work_are_accepted() -> None:
    data = json.loads(json.dumps({"fingerprint": HERE, "settings": WORK}))
    check_profile(data, fingerprint=HERE, settings=WORK)


@pytest.mark.parametrize("data", [{}, [], None, {"fingerprint": None, "settings": 3}, {"fingerprint": {}, "settings": {}}])
def test_what_a_profile_does_not_say_is_not_held_against_it(data: Any) -> None:
    check_profile(data, fingerprint=HERE, settings=WORK)


@pytest.mark.parametrize("harmless", [{"min_khz": "1"}, {"openmp": ["other"]}, {"spinning": {"GOMP_SPINCOUNT": "1"}}])
def test_what_does_not_make_another_device_is_only_recorded(harmless: dict[str, Any]) -> None:
    check_profile({"fingerprint": HERE | harmless}, fingerprint=HERE, settings=WORK)


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:
        check_profile(data, fingerprint=HERE, settings=WORK)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("cpu", "Cortex-A76", "measured with cpu Cortex-A76, and here it is Cortex-A72: another processor has other rates, or run"),
        ("architecture", "x86_64", "architecture x86_64, and here it is aarch64: another processor"),
        (
            "cores",
            [2, 3],
            "cores 2, 3, and here it is 0, 1, 2, 3: other cores may have other rates; name these with --cores, or run calibrate",
        ),
        ("governor", "powersave", "governor powersave, and here it is performance: rates change with the clock; set it back, or"),
        ("power_mode", "15W", "power mode 15W, and here it is unset: rates change"),
        ("torch", "2.12.0", "torch 2.12.0, and here it is 2.11.0: its kernels may be others"),
    ],
)
def test_another_device_is_refused(key: str, value: Any, words: str) -> None:
    said = refusal({"fingerprint": HERE | {key: value}})
    assert words in said
    assert said.endswith("run calibrate again")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "model",
            "cnn:width=8",
            "measured for model cnn:width=8, and this run has cnn: other work takes other times; use the same, or",
        ),
        ("batch_size", 64, "batch size 64, and this run has 32"),
        ("public_batch", 64, "public batch 64, and this run has 128"),
        ("encoding", "float16", "encoding float16, and this run has float32"),
        ("input_shape", [3, 32, 32], "input shape 3, 32, 32, and this run has 1, 8, 8"),
        ("num_classes", 100, "num classes 100, and this run has 10"),
        ("device", "cuda", "device cuda, and this run has cpu"),
        ("torch_threads", 1, "torch threads 1, and this run has unset"),
    ],
)
def test_other_work_is_refused(key: str, value: Any, words: str) -> None:
    said = refusal({"settings": WORK | {key: value}})
    assert words in said
    assert said.endswith("run calibrate again")


def test_another_data_set_of_the_same_shape_is_the_same_work() -> None:
    check_profile({"settings": WORK | {"private": "x:private", "public": "x:public"}}, fingerprint=HERE, settings=WORK)


def test_a_shape_that_is_not_known_yet_is_not_compared() -> None:
    early = settings_of(StudentConfig(private="digits:private"), device="cpu")
    check_profile({"settings": WORK}, fingerprint=HERE, settings=early)
