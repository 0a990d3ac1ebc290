"""Findings of `doctor` for recorded machines: a Pi 4 and 5, a Jetson, a laptop, a virtual machine, a container."""

import json
from pathlib import Path

import pytest
from fake_box import BOXES, build, machine_at

from edge_student.doctor.cores import check_cores, read_cores, show_cores
from edge_student.doctor.finding import Finding, Status, worst
from edge_student.doctor.interrupts import check_interrupts, read_nic
from edge_student.doctor.power import check_power, parse_nvpmodel, read_power
from edge_student.doctor.software import Torch, TorchCheck, check_torch, read_board
from edge_student.doctor.system import check_memory, check_page_size, read_memory
from edge_student.host.counters import Machine


def look_at(machine: Machine, allowed: str | set[int], requested: str | None = None) -> dict[str, Finding]:
    """Return the findings that need files only, by check."""
    cores = read_cores(machine, frozenset(allowed if isinstance(allowed, set) else range(int(allowed))), requested)
    found = [*check_cores(cores), check_interrupts(read_nic(machine), cores.chosen)]
    found += [*check_power(read_power(machine, cores.chosen), cores.present), check_memory(read_memory(machine), 256, 500)]
    assert json.loads(json.dumps([finding.as_json() for finding in found]))
    return {finding.check: finding for finding in found}


def statuses(found: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.status.value for check, finding in found.items()}


def test_a_hot_pi_4_with_a_weak_supply(tmp_path: Path) -> None:
    found = look_at(build("pi4", tmp_path), "4")
    assert statuses(found) == {
        "cores.allowed": "ok",
        "cores.smt": "ok",
        "cores.clusters": "ok",
        "cores.interrupts": "ok",
        "power.governor": "warning",
        "power.throttling": "problem",
        "machine.memory": "note",
    }
    assert "core 0 handles the interrupts of eth0; comm gets core 0 first" in found["cores.interrupts"].summary
    assert "the governor of cores 0-3 is ondemand" in found["power.governor"].summary
    assert "is lowering the clock now: under-voltage, throttled; the hottest sensor" in found["power.throttling"].summary
    assert "power supply" in found["power.throttling"].remedy
    assert found["power.throttling"].details["firmware"] == "0x50005"
    assert "40 MiB of other programs are in swap" in found["machine.memory"].summary


def test_under_voltage_since_boot_is_a_warning(tmp_path: Path) -> None:
    machine = build("pi4", tmp_path)
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("50000")
    found = look_at(machine, "4")["power.throttling"]
    assert (found.status, "earlier since boot, but not now: under-voltage, throttled" in found.summary) == (Status.WARNING, True)
    assert "a reboot clears" in found.remedy
    (tmp_path / "sys/devices/platform/soc/soc:firmware/get_throttled").write_text("0")
    assert look_at(machine, "4")["power.throttling"].status is Status.OK


def test_a_pi_5_on_wifi_is_ok_except_for_two_unknown_findings(tmp_path: Path) -> None:
    found = look_at(build("pi5", tmp_path), "4")
    assert {check: status for check, status in statuses(found).items() if status != "ok"} == {
        "cores.interrupts": "unknown",
        "power.throttling": "unknown",
    }
    assert "the interrupts of wlan0 are not known: it has no line in /proc/interrupts" in found["cores.interrupts"].summary
    assert "vcgencmd get_throttled" in found["power.throttling"].remedy
    assert found["power.governor"].summary == "the governor of these cores is performance, at most 2400 MHz"


@pytest.mark.parametrize(("size", "status"), [(4096, Status.OK), (16384, Status.NOTE), (65536, Status.NOTE)])
def test_large_pages_are_a_note(size: int, status: Status) -> None:
    found = check_page_size(size)
    assert found.status is status
    assert f"pages of {size // 1024} KiB" in found.summary
    assert ("kernel8.img" in found.remedy) is (status is Status.NOTE)


def test_a_jetson_in_a_mode_that_takes_cores_away(tmp_path: Path) -> None:
    machine = build("xavier-nx", tmp_path)
    found = look_at(machine, "2")
    assert statuses(found) == {
        "cores.allowed": "note",
        "cores.smt": "ok",
        "cores.clusters": "ok",
        "cores.interrupts": "ok",
        "power.governor": "warning",
        "power.mode": "warning",
        "power.throttling": "ok",
        "machine.memory": "warning",
    }
    assert "cores 2-5 are offline" in found["cores.allowed"].summary
    assert found["power.mode"].summary == "the power mode MODE_15W_2CORE keeps 2 of 6 cores online; MODE_15W_6CORE keeps 6"
    assert found["power.mode"].remedy == "run `sudo nvpmodel -m 2`"
    assert "CPU-therm, 90 degrees Celsius" in found["power.throttling"].summary
    (tmp_path / "var/lib/nvpmodel/status").write_text("pmode:0002")
    assert look_at(machine, "2")["power.mode"].status is Status.OK
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    assert look_at(machine, "2")["power.mode"].status is Status.UNKNOWN
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("91000")
    assert look_at(machine, "2")["power.throttling"].status is Status.PROBLEM


def test_a_mode_without_a_list_of_cores_has_unknown_cores() -> None:
    (mode,) = parse_nvpmodel("< POWER_MODEL ID=0 NAME=MAXN >\nGPU MAX_FREQ -1\n< PM_CONFIG DEFAULT=0 >\nCPU_ONLINE CORE_0 1\n")
    assert (mode.number, mode.name, mode.cores) == (0, "MAXN", None)


def test_a_laptop_whose_cores_are_threads(tmp_path: Path) -> None:
    machine = build("laptop", tmp_path)
    found = look_at(machine, "8")
    assert statuses(found) == {
        "cores.allowed": "ok",
        "cores.smt": "warning",
        "cores.clusters": "ok",
        "cores.interrupts": "warning",
        "power.governor": "warning",
        "power.throttling": "warning",
        "machine.memory": "ok",
    }
    assert "cores 0,4 and 1,5 and 2,6 and 3,7 share a physical core each" in found["cores.smt"].summary
    assert found["cores.smt"].remedy == "use one thread of each physical core: --cores 0-3"
    assert "core 7 handles the interrupts of enp0s31f6; core 7 is used for training" in found["cores.interrupts"].summary
    assert "`echo 0 | sudo tee /proc/irq/125/smp_affinity_list`" in found["cores.interrupts"].remedy
    assert "core 2 was throttled by heat 37 times since boot" in found["power.throttling"].summary
    whole = look_at(machine, "8", "0-3")
    assert (whole["cores.smt"].status, whole["cores.interrupts"].status) == (Status.OK, Status.OK)
    assert "core 7 handles the interrupts of enp0s31f6; a run does not use it" in whole["cores.interrupts"].summary


def test_interrupts_that_comm_has_only_sometimes_are_a_note(tmp_path: Path) -> None:
    machine = build("laptop", tmp_path)
    (tmp_path / "proc/irq/125/effective_affinity_list").write_text("1")
    assert look_at(machine, "8", "0-3")["cores.interrupts"].status is Status.NOTE
    (tmp_path / "proc/irq/125/effective_affinity_list").unlink()
    assert look_at(machine, "8")["cores.interrupts"].details["interrupts"]["125"]["cores"] == [7], "the core with the highest count"
    (tmp_path / "proc/irq/125/smp_affinity_list").write_text("0")
    assert look_at(machine, "8")["cores.interrupts"].status is Status.OK, "the only allowed core"


def test_fast_and_slow_cores_are_not_mixed(tmp_path: Path) -> None:
    machine = build("pi5", tmp_path)
    for core, capacity in enumerate((446, 446, 1024, 1024)):
        (tmp_path / f"sys/devices/system/cpu/cpu{core}/cpu_capacity").write_text(str(capacity))
    found = look_at(machine, "4")["cores.clusters"]
    assert (found.status, found.remedy) == (Status.WARNING, "use cores of one kind: --cores 2-3")
    assert "cores 0-1 are slower than 2-3" in found.summary
    assert look_at(machine, "4", "2-3")["cores.clusters"].status is Status.OK


def test_clusters_of_equal_cores_are_a_note(tmp_path: Path) -> None:
    machine = build("pi5", tmp_path)
    for core in range(4):
        (tmp_path / f"sys/devices/system/cpu/cpu{core}/topology/cluster_id").write_text(str(core // 2))
    found = look_at(machine, "4")["cores.clusters"]
    assert (found.status, "2 clusters of equal speed: 0-1 | 2-3" in found.summary) == (Status.NOTE, True)


def test_a_capped_clock_is_a_warning(tmp_path: Path) -> None:
    machine = build("pi5", tmp_path)
    (tmp_path / "sys/devices/system/cpu/cpu3/cpufreq/scaling_max_freq").write_text("1500000")
    found = look_at(machine, "4")["power.governor"]
    assert (found.status, "core 3 is capped at 1500 MHz; the hardware allows 2400 MHz" in found.summary) == (Status.WARNING, True)


def test_the_topology_of_a_virtual_machine_is_a_note(tmp_path: Path) -> None:
    found = look_at(build("vm", tmp_path), "2")
    assert statuses(found) == {
        "cores.allowed": "ok",
        "cores.smt": "note",
        "cores.clusters": "ok",
        "cores.interrupts": "warning",
        "power.governor": "unknown",
        "power.throttling": "unknown",
        "machine.memory": "ok",
    }
    assert "which may be wrong" in found["cores.smt"].summary
    assert found["cores.interrupts"].remedy.startswith("run `echo 0 | sudo tee /proc/irq/38/smp_affinity_list`;"), (
        "37 has no counts"
    )


def test_a_container_with_half_the_cores(tmp_path: Path) -> None:
    machine = build("container", tmp_path)
    found = look_at(machine, {2, 3})
    assert {check: status for check, status in statuses(found).items() if status not in ("ok", "unknown")} == {
        "cores.allowed": "note",
        "cores.quota": "warning",
        "machine.memory": "problem",
    }
    assert "cores 0-1 are excluded by a cpuset" in found["cores.allowed"].summary
    assert "the CPU time of 1.5 cores" in found["cores.quota"].summary
    assert "412 MiB of memory are available, but a run needs more than 756" in found["machine.memory"].summary
    assert "the interrupts of eth0 are not known: it is a tunnel, a bridge" in found["cores.interrupts"].summary
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000")
    assert "cores.quota" not in look_at(machine, {2, 3})
    (tmp_path / "sys/fs/cgroup/cpu").mkdir()  # the files of cgroup v1
    (tmp_path / "sys/fs/cgroup/cpu.max").unlink()
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000")
    assert "the CPU time of 0.5 cores" in look_at(machine, {2, 3})["cores.quota"].summary


@pytest.mark.promise(number=22)
def test_a_requested_core_that_is_missing_is_named_with_its_reason(tmp_path: Path) -> None:
    found = look_at(build("xavier-nx", tmp_path), {0}, "0-2,7")["cores.allowed"]
    assert found.status is Status.PROBLEM
    assert found.summary.endswith("core 1 is not allowed for this process; core 2 is offline; core 7 does not exist")
    assert found.remedy == "use --cores 0 or a subset, or enable core 2: `echo 1 | sudo tee /sys/devices/system/cpu/cpu2/online`"
    assert found.details["chosen"] == [0]


def test_one_core_cannot_be_split(tmp_path: Path) -> None:
    found = look_at(build("pi5", tmp_path), {3})["cores.allowed"]
    assert found.status is Status.WARNING
    assert found.summary.startswith("a run can use 1 core: 3; cores 0-2 are excluded by a cpuset, a container")


@pytest.mark.parametrize("requested", [None, "0-1", "9"])
def test_a_machine_without_files_is_unknown_and_never_ok(requested: str | None, tmp_path: Path) -> None:
    found = look_at(machine_at(tmp_path), "2", requested)
    unread = {check: status for check, status in statuses(found).items() if check != "cores.allowed"}
    assert set(unread.values()) == {"unknown"}
    assert all(finding.remedy for finding in found.values() if finding.status is not Status.OK)


@pytest.mark.parametrize("name", sorted(path.stem for path in BOXES.glob("*.txt")))
def test_files_with_invalid_content_raise_no_error(name: str, tmp_path: Path) -> None:
    machine = build(name, tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        for invalid in (b"", b"\xff\x00 -1 9-3\n: :\n", b"== 1 2 3"):
            before = path.read_bytes()
            path.write_bytes(invalid)
            look_at(machine, "2")
            path.write_bytes(before)


@pytest.mark.parametrize(
    ("box", "architecture", "torch", "failure", "status", "text"),
    [
        (
            "pi4",
            "aarch64",
            ("2.10.0", ""),
            "SIGILL",
            "problem",
            "uses instructions that this processor does not support: the process was",
        ),
        ("pi4", "aarch64", ("2.11.0", ""), "", "ok", "torch 2.11.0 (CPU build) trained one small step"),
        (
            "pi5",
            "aarch64",
            ("2.11.0", "13.0"),
            "",
            "warning",
            "2500 MiB of disk, mostly for CUDA, but this aarch64 machine has no",
        ),
        ("xavier-nx", "aarch64", ("2.11.0", ""), "", "note", "cannot use the NVIDIA GPU"),
        ("xavier-nx", "aarch64", ("2.11.0", "13.0"), "", "ok", "torch 2.11.0 (CUDA 13.0 build) trained"),
        ("laptop", "x86_64", ("2.11.0", ""), "no module", "problem", "cannot train one small step: no module"),
        ("laptop", "x86_64", ("", ""), "no module", "problem", "torch is not installed"),
    ],
)
def test_torch_must_match_the_board(
    box: str, architecture: str, torch: tuple[str, str], failure: str, status: str, text: str, tmp_path: Path
) -> None:
    cause = "the process was killed by SIGILL" if failure == "SIGILL" else failure
    output = None if failure else {"version": torch[0]}
    tried = TorchCheck(output=output, cause=cause, is_illegal_instruction=failure == "SIGILL")
    board = read_board(build(box, tmp_path), architecture)
    found = check_torch(Torch(version=torch[0], cuda=torch[1], cuda_mib=2500 if torch[1] else 0), board, tried)
    assert (found.status.value, text in found.summary) == (status, True), found.summary


def test_only_the_pi_4_lacks_atomics(tmp_path: Path) -> None:
    boards = {box: read_board(build(box, tmp_path / box), "aarch64") for box in ("pi4", "pi5", "xavier-nx")}
    assert {box: board.has_atomics for box, board in boards.items()} == {"pi4": False, "pi5": True, "xavier-nx": True}
    assert boards["pi4"].model == "Raspberry Pi 4 Model B Rev 1.5"


def test_the_order_of_severity() -> None:
    assert [status.value for status in sorted(Status, key=lambda status: status.severity)] == [
        "ok",
        "note",
        "unknown",
        "warning",
        "problem",
    ]
    assert worst([]) is Status.OK
    assert show_cores([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
