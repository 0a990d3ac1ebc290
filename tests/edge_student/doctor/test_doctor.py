"""The command `doctor`: output, exit status, settings files, and the checks of this machine."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_student.doctor import disk, doctor
from edge_student.doctor.disk import check_disk, try_disk
from edge_student.doctor.finding import Finding, Status, note, ok, problem, warning
from edge_student.doctor.software import (
    TorchCheck,
    check_environment,
    check_openmp,
    parse_version_file,
    read_torch,
    run_torch_check,
)
from edge_student.doctor.system import (
    Clock,
    Permissions,
    check_clock,
    check_permissions,
    read_clock,
    try_permissions,
)
from edge_student.host.environment import choose_cores
from edge_student.settings.doctor import DoctorConfig
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores

AREAS = ["cores", "power", "machine", "disk", "kernel", "software", "link"]


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_student", *argv]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_this_machine_is_checked_from_end_to_end(tmp_path: Path) -> None:
    ended = run("doctor", "--json", "--out", str(tmp_path / "not" / "yet"), "--log-level", "error", OMP_PLACES="cores")
    report = json.loads(ended.stdout)
    found = {finding["check"]: finding for finding in report["findings"]}
    assert list(dict.fromkeys(finding["check"].partition(".")[0] for finding in report["findings"])) == AREAS
    assert not [check for check in found if check.endswith(".doctor")], "no check failed"
    assert (found["software.environment"]["status"], found["software.environment"]["remedy"]) == (
        "problem",
        "run `unset OMP_PLACES`",
    )
    assert (report["status"], ended.returncode, ended.stderr) == ("problem", 1, "")
    assert found["software.torch"]["details"]["trial"]["peak_mib"] > 50
    assert found["disk.out"]["details"]["tried"] == str(tmp_path)
    assert list(tmp_path.iterdir()) == [], "no file is left"
    assert report["host"]["cores_used"] == sorted(allowed_cores())


def test_the_exit_status_follows_the_printed_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "run_torch_check", lambda: TorchCheck(output={"peak_mib": 1, "openmp": ["libgomp.so.1"]}))
    monkeypatch.setattr(doctor, "check_torch", lambda *_: ok("software.torch", "not under test"))
    status = doctor.check_device(DoctorConfig(out=tmp_path, cache=tmp_path))
    page = capsys.readouterr().out
    assert status == (1 if "\n  problem " in page else 0)
    assert [line for line in page.splitlines() if not line.startswith(" ")][:-1] == AREAS
    status = doctor.check_device(DoctorConfig(out=tmp_path, cache=tmp_path, cores="0-4095"))
    assert (status, "core 4095 does not exist" in capsys.readouterr().out) == (1, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cores", "3-1"], "is descending"),
        (["--teacher", "vm"], "must be HOST:PORT"),
        (["--teacher", "vm:1"], "the connection would be plaintext"),
        (["--ring-mib", "0"], "must be in 1 .."),
        (["--public-batch", "0"], "must be in 1 .."),
        (["--core", "1"], "did you mean --cores"),
    ],
)
def test_wrong_usage_is_an_error_without_output(argv: list[str], message: str) -> None:
    ended = run("doctor", *argv)
    assert (ended.returncode, message in ended.stderr, ended.stdout) == (2, True, "")


SHARED = 'teacher = "127.0.0.1:50051"\nprivate = "digits:private"\nmodel = "cnn"\nring-mib = 64\nseconds = 9\n'


def parsed(path: Path, content: str) -> DoctorConfig:
    path.write_text(content)
    return parse(DoctorConfig, ["--config", str(path)], prog="edge-student doctor", description="")


def test_a_file_that_was_written_for_other_commands_is_read(tmp_path: Path) -> None:
    config = parsed(tmp_path / "pi.toml", SHARED)
    assert (config.teacher, config.ring_mib) == ("127.0.0.1:50051", 64)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('modle = "cnn"', r"unknown key 'modle' \(did you mean model\?\)"),
        ('listen = "0.0.0.0:1"', "unknown key 'listen'"),  # a teacher's
        ("model = true", "model is true, must be text"),
    ],
)
def test_a_key_that_no_command_of_the_edge_has_is_rejected(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(tmp_path / "pi.toml", SHARED.replace('model = "cnn"', line))


def test_doctor_itself_never_loads_torch() -> None:
    script = "import sys, edge_student.doctor.doctor, edge_student.__main__; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"


def test_findings_are_printed_by_area_with_the_worst_last_and_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        problem("cores.a", "bad [red]x[/red]", "fix it"),
        ok("cores.b", "good"),
        note("link.c", "so so", "read on"),
        warning("cores.d", "hm", "look"),
        note("link.e", "too", "read on"),
    ]
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    plain = io.StringIO()
    doctor.show(findings, plain)
    assert plain.getvalue() == (
        "cores\n"
        "  ok      cores.b  good\n"
        "  warning cores.d  hm\n"
        "                   -> look\n"
        "  problem cores.a  bad [red]x[/red]\n"
        "                   -> fix it\n"
        "link\n"
        "  note    link.c   so so\n"
        "                   -> read on\n"
        "  note    link.e   too\n"
        "                   -> read on\n"
        "1 problem, 1 warning, 2 notes, 1 ok: fix the problems first\n"
    )
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    doctor.show(findings, terminal)
    assert "\x1b[" in terminal.getvalue()


def test_a_check_that_fails_is_unknown_and_hides_no_other() -> None:
    def break_down() -> list[Finding]:
        raise KeyError("new kernel")

    (found,) = doctor._guarded("power", break_down)
    assert (found.check, found.status) == ("power.doctor", Status.UNKNOWN)
    assert "KeyError: 'new kernel'" in found.summary


def test_a_crash_of_torch_does_not_end_doctor() -> None:
    crash = f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})"
    torch_check = run_torch_check([sys.executable, "-c", crash])
    assert (torch_check.output, torch_check.is_illegal_instruction) == (None, True)
    assert torch_check.cause.startswith("the process was killed by SIGILL (Illegal instruction")
    assert (
        run_torch_check([sys.executable, "-c", "import no_such_module"]).cause
        == "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert (
        run_torch_check([sys.executable, "-c", "print('hello')"]).cause == "the process exited with status 0 but printed no result"
    )
    assert "cannot be started" in run_torch_check(["/no/such/python"]).cause


def test_the_build_of_torch_is_read_and_not_loaded() -> None:
    import importlib.metadata

    assert parse_version_file("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n") == (
        "2.11.0+cu130",
        "13.0",
    )
    assert parse_version_file("__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None\nhip = '6'\n") == ("2.11.0+cpu", "")
    assert parse_version_file("") == ("", "")
    assert read_torch().version.startswith(importlib.metadata.version("torch"))


def openmp(*files: tuple[str, str]) -> Finding:
    pools = [{"kind": kind, "file": file, "num_threads": 4} for kind, file in files]
    return check_openmp(TorchCheck(output={"openmp": [file for _, file in files], "openmp_files": pools}))


def test_several_openmp_runtimes_are_named() -> None:
    assert openmp(("libgomp", "libgomp-1.so")).status is Status.OK
    assert openmp(("libgomp", "libgomp-1.so"), ("libgomp", "libgomp.so.1")).status is Status.NOTE
    mixed = openmp(("libgomp", "libgomp-1.so"), ("libiomp", "libiomp5.so"))
    assert (mixed.status, "2 kinds of OpenMP runtime (libgomp-1.so, libiomp5.so)" in mixed.summary) == (Status.WARNING, True)
    assert openmp().status is Status.NOTE
    unseen = check_openmp(TorchCheck(output={"openmp": ["libgomp-1.so", "libiomp5.so"], "openmp_files": []}))
    assert unseen.status is Status.WARNING, "runtimes that only /proc/self/maps shows count too"
    assert check_openmp(TorchCheck(output=None, cause="SIGILL")).status is Status.UNKNOWN


@pytest.mark.parametrize(
    ("environ", "status", "remedy"),
    [
        ({"HOME": "/root"}, Status.OK, ""),
        ({"KMP_AFFINITY": "compact", "OMP_PROC_BIND": "true"}, Status.PROBLEM, "run `unset OMP_PROC_BIND KMP_AFFINITY`"),
        ({"OMP_NUM_THREADS": "2"}, Status.NOTE, "run `unset OMP_NUM_THREADS`, unless you want to measure this setting"),
    ],
)
def test_variables_that_conflict_or_change_a_measurement(environ: dict[str, str], status: Status, remedy: str) -> None:
    (found,) = check_environment(environ)
    assert (found.status, found.remedy) == (status, remedy)


def test_the_clock_is_read_and_checked() -> None:
    assert read_clock().is_synchronised in (True, False)
    now = 1.8e9
    assert check_clock(Clock(now=now, is_synchronised=True)).status is Status.OK
    assert check_clock(Clock(now=now, is_synchronised=False)).status is Status.WARNING
    assert check_clock(Clock(now=now, is_synchronised=None)).status is Status.UNKNOWN
    early = check_clock(Clock(now=12.0, is_synchronised=True))
    assert (early.status, "the clock shows 1970-01-01 00:00 UTC" in early.summary) == (Status.PROBLEM, True)


def test_the_test_of_permissions_changes_nothing_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    tried = try_permissions(allowed_cores())
    assert (tried.affinity_error, os.sched_getaffinity(0)) == ("", before)
    findings = list(check_permissions(Permissions(affinity_error="Operation not permitted", may_leave_idle_priority=False)))
    assert [(finding.check, finding.status) for finding in findings] == [
        ("kernel.affinity", Status.PROBLEM),
        ("kernel.idle-priority", Status.NOTE),
    ]


def test_the_disk_test_leaves_no_file(tmp_path: Path) -> None:
    disk = try_disk(tmp_path / "runs" / "a", mounts=f"/dev/root / ext4 rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n")
    assert (disk.tried, disk.kind, len(disk.sync_s), min(disk.sync_s) > 0) == (tmp_path, "tmpfs", 9, True)
    assert list(tmp_path.iterdir()) == []
    assert check_disk("disk.out", disk, flag="--out", worst=Status.PROBLEM).status is Status.NOTE
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        found = try_disk(path)
        assert (found.tried, found.write_error, found.sync_s) == (tmp_path / "file", "Not a directory", ())


def disk_with(**changes: Any) -> Finding:
    fields = {"folder": Path("/runs"), "tried": Path("/"), "free_mib": 9000, "kind": "ext4", "sync_s": (0.004, 0.005, 0.3)}
    return check_disk("disk.out", disk.Disk(**(fields | changes)), flag="--out", worst=Status.PROBLEM)


def test_the_status_of_a_disk() -> None:
    good = disk_with()
    assert (good.status, good.summary) == (
        Status.OK,
        "--out /runs: 9000 MiB free, a synced write takes 5.0 ms (maximum of 3: 300.0 ms)",
    )
    assert disk_with(sync_s=(0.2, 0.2)).status is Status.WARNING
    assert disk_with(free_mib=500).status is Status.WARNING
    assert disk_with(free_mib=5).status is Status.PROBLEM
    full = disk_with(write_error="No space left on device", sync_s=())
    assert (full.status, "writing to / fails with No space left on device" in full.summary) == (Status.PROBLEM, True)
    assert disk_with(read_error="Permission denied", sync_s=()).status is Status.UNKNOWN


def test_a_folder_that_is_not_writable_has_a_write_error() -> None:
    disk = try_disk(Path("/proc/sys/runs"))
    assert (disk.tried, disk.write_error != "", disk.sync_s) == (Path("/proc/sys"), True, ())


COMMANDS = {
    "train": ("--teacher", "{address}", "--policy", "static:1"),
    "compare": ("--teacher", "{address}", "--policies", "static:1"),
    "calibrate": ("--teacher", "{address}"),
}


@pytest.mark.promise(number=22)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_core_that_may_not_be_used_ends_a_command_before_anything_starts(command: str, tmp_path: Path) -> None:
    first, *others = sorted(allowed_cores())
    missing = others[0] if others else first + 1
    out = tmp_path / ("profile.json" if command == "calibrate" else "run")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        flags = [flag.format(address=address) for flag in COMMANDS[command]]
        argv = ["edge_student", command, *flags, "--private", "digits:private", "--out", str(out), "--cores", f"{first},{missing}"]
        ended = subprocess.run(
            [sys.executable, "-m", *argv],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, {first}),
        )
        with pytest.raises(BlockingIOError):
            server.accept()  # no connection was made
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: --cores {first},{missing}: core {missing} is offline or not allowed to this process, which may use [{first}]\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(number=22)
def test_a_core_that_is_offline_is_named_with_those_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """sched_getaffinity(2) omits offline cores. It is simulated here, because a real offline core would affect other programs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 3})
    with pytest.raises(ValueError) as raised:
        choose_cores("0-3")
    assert str(raised.value) == "--cores 0-3: core 2 is offline or not allowed to this process, which may use [0, 1, 3]"
