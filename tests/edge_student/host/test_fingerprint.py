"""The fingerprint of a device: kernel files, power mode, OpenMP runtimes, and missing values."""

import json
import os
from pathlib import Path

import pytest

from edge_student.host.counters import Machine
from edge_student.host.fingerprint import fingerprint, openmp_runtimes

KEYS = {"cpu", "architecture", "cores", "governor", "power_mode", "min_khz", "max_khz", "torch", "openmp", "spinning"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine of four cores, two of them with another maximum frequency."""
    for core in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("performance\n")
        (folder / "scaling_min_freq").write_text("600000\n")
        (folder / "scaling_max_freq").write_text("1500000\n" if core < 2 else "2400000\n")
    return tmp_path


def test_values_shared_by_all_cores_are_listed_once(root: Path) -> None:
    found = fingerprint((0, 1), {"GOMP_SPINCOUNT": "30000", "HOME": "/root"}, Machine(root=root))
    assert (found["governor"], found["min_khz"], found["max_khz"]) == ("performance", "600000", "1500000")
    assert found["cores"] == [0, 1]
    assert found["spinning"] == {"GOMP_SPINCOUNT": "30000"}
    assert fingerprint((1, 2), {}, Machine(root=root))["max_khz"] == ["1500000", "2400000"]
    assert set(found) == KEYS


def test_a_machine_without_kernel_files_has_a_fingerprint_too(tmp_path: Path) -> None:
    found = fingerprint((0,), {}, Machine(root=tmp_path))
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
    assert fingerprint((0,), {}, Machine(root=tmp_path))["power_mode"] == mode


def test_loaded_openmp_runtimes_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    lines = [
        "7f00 r-xp /site-packages/torch/lib/libgomp-e985bcbb.so.1.0.0",
        "7f01 r--p /site-packages/torch/lib/libgomp-e985bcbb.so.1.0.0",
    ]
    (tmp_path / "proc/self/maps").write_text("\n".join([*lines, "7f02 r-xp /usr/lib/libiomp5.so", "7f03 r-xp /usr/lib/libc.so.6"]))
    assert openmp_runtimes(Machine(root=tmp_path)) == ["libgomp-e985bcbb.so.1.0.0", "libiomp5.so"]
