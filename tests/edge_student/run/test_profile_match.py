"""Checks that a profile fits this device and this workload: compared keys, accepted differences, and error messages."""

import json
from typing import Any

import pytest

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
WORK = settings_of(StudentConfig(private="digits:private"), device="cpu", num_shards=2, input_shape=(1, 8, 8), num_classes=10)


def test_the_same_device_and_work_raise_nothing() -> None:
    data = json.loads(json.dumps({"fingerprint": HERE, "settings": WORK}))
    check_profile(data, fingerprint=HERE, settings=WORK)


@pytest.mark.parametrize("data", [{}, [], None, {"fingerprint": None, "settings": 3}, {"fingerprint": {}, "settings": {}}])
def test_missing_properties_raise_nothing(data: Any) -> None:
    check_profile(data, fingerprint=HERE, settings=WORK)


@pytest.mark.parametrize("harmless", [{"min_khz": "1"}, {"openmp": ["other"]}, {"spinning": {"GOMP_SPINCOUNT": "1"}}])
def test_properties_that_do_not_change_rates_raise_nothing(harmless: dict[str, Any]) -> None:
    check_profile({"fingerprint": HERE | harmless}, fingerprint=HERE, settings=WORK)


def rejection(data: dict[str, Any]) -> str:
    with pytest.raises(ValueError) as error:
        check_profile(data, fingerprint=HERE, settings=WORK)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("cpu", "Cortex-A76", "measured with cpu Cortex-A76, this device has Cortex-A72: rates depend on the processor, or run"),
        ("architecture", "x86_64", "architecture x86_64, this device has aarch64: rates depend on the processor"),
        (
            "cores",
            [2, 3],
            "cores 2, 3, this device has 0, 1, 2, 3: rates depend on the cores; set the same with --cores, or run calibrate",
        ),
        (
            "governor",
            "powersave",
            "governor powersave, this device has performance: rates depend on the clock; restore this setting, or",
        ),
        ("power_mode", "15W", "power mode 15W, this device has unset: rates depend"),
        ("torch", "2.12.0", "torch 2.12.0, this device has 2.11.0: rates depend on torch's kernels"),
    ],
)
def test_another_device_is_rejected(key: str, value: Any, words: str) -> None:
    message = rejection({"fingerprint": HERE | {key: value}})
    assert words in message
    assert message.endswith("run calibrate again")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "model",
            "cnn:width=8",
            "measured for model cnn:width=8, this run has cnn: rates depend on the workload; use the same setting, or",
        ),
        ("batch_size", 64, "batch size 64, this run has 32"),
        ("public_batch", 64, "public batch 64, this run has 128"),
        ("encoding", "float16", "encoding float16, this run has float32"),
        ("input_shape", [3, 32, 32], "input shape 3, 32, 32, this run has 1, 8, 8"),
        ("num_classes", 100, "num classes 100, this run has 10"),
        ("device", "cuda", "device cuda, this run has cpu"),
        ("torch_threads", 1, "torch threads 1, this run has unset"),
    ],
)
def test_another_workload_is_rejected(key: str, value: Any, words: str) -> None:
    message = rejection({"settings": WORK | {key: value}})
    assert words in message
    assert message.endswith("run calibrate again")


def test_another_data_set_of_the_same_shape_raises_nothing() -> None:
    check_profile({"settings": WORK | {"private": "x:private", "public": "x:public"}}, fingerprint=HERE, settings=WORK)


def test_an_unknown_shape_raises_nothing() -> None:
    early = settings_of(StudentConfig(private="digits:private"), device="cpu", num_shards=2)
    check_profile({"settings": WORK}, fingerprint=HERE, settings=early)
