"""The disturbance of a run: counters from files of a simulated machine, and the findings derived from them."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from edge_student.host.counters import Machine
from edge_student.host.disturbance import CoreTicks, ProcessTime, findings, firmware_states, own_cpu_s, severity
from edge_student.host.sampler import DisturbanceSampler

US, WORKER, TEACHER, OTHER = 100, 101, 50, 7
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def process(pid: int, cpu_s: float, *, parent: int = 1, name: str = "", core: int = 0, reaped_s: float = 0.0) -> ProcessTime:
    return ProcessTime(pid=pid, parent=parent, created=1.0, name=name, core=core, cpu_s=cpu_s, reaped_s=reaped_s)


class Rig:
    """A simulated machine of two cores. A test sets its CPU seconds and writes its counter files."""

    def __init__(self, root: Path) -> None:
        self.root, self.time, self.own_s, self.table, self.firmware = root, 0.0, 0.0, (), None
        self.write("proc/stat", stat())
        self.machine = Machine(
            root=root,
            clock=lambda: self.time,
            own_cpu_s=lambda: self.own_s,
            processes=lambda: self.table,
            ask_firmware=lambda: self.firmware,
            listening_at=lambda address: {TEACHER} if address == "here:1" else set(),
            own_pid=US,
        )
        self.sampler = DisturbanceSampler((0, 1), teacher="here:1", machine=self.machine)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")


def stat(*cores: CoreTicks) -> str:
    return "".join(f"cpu{core} {' '.join(map(str, ticks))}\n" for core, ticks in enumerate(cores or (CoreTicks(), CoreTicks())))


def ticks(seconds: float) -> int:
    return round(seconds / TICK_S)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_other_work_is_all_work_except_the_run_and_its_teacher(rig: Rig) -> None:
    rig.table = (process(OTHER, 100.0, name="make"), process(WORKER, 1.0, parent=US), process(TEACHER, 5.0, name="teacher"))
    rig.own_s = 3.0
    rig.sampler.before()
    # 10 s on two cores: 18 s of programs, 12 of the run, 2 of its comm worker, 1 of the teacher, so 3 of others.
    rig.time, rig.own_s = 10.0, 15.0
    rig.write("proc/stat", stat(CoreTicks(user=ticks(9), nice=ticks(1)), CoreTicks(user=ticks(6), system=ticks(2), idle=ticks(2))))
    rig.table = (process(OTHER, 102.5, name="make"), process(WORKER, 3.0, parent=US), process(TEACHER, 6.0, name="teacher"))
    seen = rig.sampler.after()
    assert seen["core_s"] == 20.0
    assert seen["own_cpu_s"] == pytest.approx(14.0)
    assert seen["teacher_cpu_s"] == pytest.approx(1.0)
    assert seen["others_cpu_s"] == pytest.approx(3.0)
    assert seen["others_fraction"] == pytest.approx(0.15)
    assert seen["busiest_others"] == [{"name": "make", "pid": OTHER, "cpu_s": 2.5}]
    assert findings(seen) == ["other processes used 15.0% of the run's cores (make 2.50 s)"]


def test_a_worker_that_ends_during_the_run_is_counted_once_waited_for_or_not(rig: Rig) -> None:
    rig.table, rig.own_s = (process(WORKER, 1.0, parent=US), process(102, 0.5, parent=WORKER)), 3.0
    reading = rig.sampler
    reading.before()
    assert reading._before is not None
    assert own_cpu_s(reading._before) == 4.5  # grandchildren count too
    rig.time = 1.0
    rig.table = (process(WORKER, 2.0, parent=US, reaped_s=0.75),)  # it has waited for its child and is a zombie now
    assert rig.sampler.after()["own_cpu_s"] == pytest.approx(1.25)
    rig.table, rig.own_s = (), 3.0 + 2.75  # and now the run has waited for it
    assert rig.sampler.after()["own_cpu_s"] == pytest.approx(1.25)


def test_a_process_id_that_is_used_again_is_another_process(rig: Rig) -> None:
    rig.table = (process(OTHER, 100.0, name="old"),)
    rig.sampler.before()
    rig.time = 1.0
    rig.table = (dataclasses.replace(process(OTHER, 0.25, name="new"), created=2.0),)
    assert rig.sampler.after()["busiest_others"] == [{"name": "new", "pid": OTHER, "cpu_s": 0.25}]


def test_only_processes_seen_on_the_run_s_cores_are_named(rig: Rig) -> None:
    rig.sampler.before()
    rig.time = 1.0
    rig.table = tuple(process(pid, pid / 10, name=f"p{pid}", core=pid % 4) for pid in range(1, 10))
    assert [entry["name"] for entry in rig.sampler.after()["busiest_others"]] == ["p9", "p8", "p5"]


def test_interrupts_are_not_a_disturbance(rig: Rig) -> None:
    """Interrupts deliver the run's own logits, as does the kernel thread that handles them under load."""
    rig.sampler.before()
    rig.time = 10.0
    rig.write(
        "proc/stat", stat(CoreTicks(irq=ticks(2), softirq=ticks(2), system=ticks(1), idle=ticks(5)), CoreTicks(idle=ticks(10)))
    )
    rig.table = (process(8, 1.0, parent=2, name="ksoftirqd/0"),)
    seen = rig.sampler.after()
    assert seen["interrupts_cpu_s"] == pytest.approx(5.0)
    assert seen["others_cpu_s"] == pytest.approx(0.0)
    assert seen["busiest_others"] == findings(seen) == []


def test_below_its_resolution_nothing_is_called_a_disturbance(rig: Rig) -> None:
    rig.sampler.before()
    # 5 of 10 ticks of one core were spent in another program: half a core, or chance.
    rig.time = 10 * TICK_S
    rig.write("proc/stat", stat(CoreTicks(user=5, idle=5), CoreTicks(idle=10)))
    seen = rig.sampler.after()
    assert seen["others_fraction"] == pytest.approx(5 / 20)
    assert seen["others_resolution"] == pytest.approx((1 + 2 * (10 * 0.25) ** 0.5) / 20)  # 1 counter moved; a binomial sample
    assert seen["steal_resolution"] == pytest.approx(2 / 20)
    assert seen["others_resolution"] < seen["others_fraction"]
    assert findings({**seen, "others_fraction": seen["others_resolution"]}) == []


QUIET: dict[str, Any] = {
    "others_fraction": 0.05,
    "others_resolution": 0.001,
    "steal_fraction": 0.05,
    "steal_resolution": 0.001,
    "throttled": [],
    "busiest_others": [],
}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"others_fraction": None, "others_resolution": None, "steal_fraction": None, "throttled": None}, []),
        ({"others_fraction": 0.0501}, ["other processes used 5.0% of the run's cores"]),
        ({"others_fraction": 0.07, "others_resolution": 0.08}, []),
        ({"steal_fraction": 0.3}, ["other virtual machines used 30.0% of the run's cores (steal time)"]),
        ({"steal_fraction": 0.3, "steal_resolution": 0.3}, []),
        ({"throttled": ["throttled"]}, ["the processor was throttled: throttled"]),
    ],
)
def test_the_rule(changes: dict[str, Any], found: list[str]) -> None:
    assert findings({**QUIET, **changes}) == found


def test_a_run_without_counters_is_not_called_disturbed() -> None:
    assert findings(None) == []


def test_throttling_is_worse_than_any_guest() -> None:
    loud, hot = {**QUIET, "others_fraction": 0.9}, {**QUIET, "throttled": ["throttled"]}
    assert sorted([hot, loud, QUIET], key=severity) == [QUIET, loud, hot]


@pytest.mark.parametrize(
    ("before", "after", "states"),
    [
        (0x0, 0x0, []),
        (0x50000, 0x50000, []),  # since boot, but not during this run
        (0x0, 0x50000, ["under-voltage", "throttled"]),
        (0x50000, 0x50005, ["under-voltage", "throttled"]),
        (0x4, 0x40000, ["throttled"]),
        (0x0, 0x80008, ["temperature limit"]),
    ],
)
def test_the_firmware_tells_whether_it_throttled_during_the_run(before: int, after: int, states: list[str], rig: Rig) -> None:
    rig.firmware = f"throttled={before:#x}\n"
    rig.sampler.before()
    rig.time, rig.firmware = 1.0, f"throttled={after:#x}\n"
    assert rig.sampler.after()["throttled"] == states


def test_without_vcgencmd_sysfs_tells_of_the_firmware(rig: Rig) -> None:
    rig.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    assert firmware_states(rig.machine.firmware() or 0) == ["under-voltage", "throttled"]


def test_a_core_that_grew_too_hot_is_named(rig: Rig) -> None:
    for core, count in enumerate((3, 3)):
        rig.write(f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", f"{count}\n")
    rig.sampler.before()
    rig.time = 1.0
    assert rig.sampler.after()["throttled"] == []
    rig.write("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4\n")
    assert rig.sampler.after()["throttled"] == ["core 1 too hot"]


def test_temperature_clock_and_load_of_a_board_are_recorded(rig: Rig) -> None:
    folder = "sys/devices/system/cpu/cpu0/cpufreq"
    for name, text in (("governor", "ondemand"), ("cur_freq", "1500000"), ("min_freq", "600000"), ("max_freq", "1800000")):
        rig.write(f"{folder}/scaling_{name}", f"{text}\n")
    rig.write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    rig.write("sys/class/thermal/thermal_zone0/temp", "61345\n")
    rig.write("sys/class/net/eth0/device/name", "")
    rig.write("sys/class/net/lo/address", "")
    rig.write("proc/interrupts", "     CPU0 CPU1\n30: 100 5 GICv2 189 Level eth0\n")
    rig.write("proc/loadavg", "0.50 0.25 0.00 1/72 999\n")
    rig.write("proc/pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=1000000\n")
    rig.sampler.before()
    rig.time = 1.0
    rig.write("proc/interrupts", "     CPU0 CPU1\n30: 175 5 GICv2 189 Level eth0\n")
    rig.write("proc/pressure/cpu", "some avg10=0 avg60=0 avg300=0 total=1500000\n")
    seen = rig.sampler.after()
    assert seen["frequency"] == {"0": {"governor": "ondemand", "current_mhz": 1500, "min_mhz": 600, "max_mhz": 1800}}
    assert seen["temperature_c"] == {"thermal_zone0 cpu-thermal": [61.345, 61.345]}
    assert seen["interrupts"] == seen["nic_interrupts"] == {"0": 75, "1": 0}
    assert seen["load_average_before"] == [0.5, 0.25, 0.0]
    assert seen["pressure_s"] == 0.5


def test_values_that_a_machine_lacks_are_absent(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "proc/stat").unlink()
    rig.sampler.before()
    rig.time = 1.0
    seen = rig.sampler.after()
    unknown = ("others_cpu_s", "others_fraction", "others_resolution", "steal_fraction", "interrupts_cpu_s", "interrupts")
    assert all(seen[name] is None for name in (*unknown, "nic_interrupts", "softirqs", "pressure_s", "throttled"))
    assert (seen["frequency"], seen["temperature_c"], seen["load_average_before"]) == ({}, {}, [])
    assert findings(seen) == []
