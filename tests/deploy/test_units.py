"""systemd units: valid, confined, and sufficient for the programs.

Most tests use systemd's own checks. The last tests run the real programs under the system call filters of their units.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from confined import allowed_calls, settings
from programs import DEPLOY, ROOT, accepted

from edgekd.cli.command import USER_ERROR

UNITS = {name: DEPLOY / "systemd" / f"edgekd-{name}.service" for name in ("teacher", "student")}
MOST_EXPOSURE = 2.0
CONFINED = Path(__file__).with_name("confined.py")

# What pinning, yielding, the ring, the comm worker and its death with its parent, the caches and gRPC ask of the kernel.
STUDENT_CALLS = {
    *("sched_setaffinity", "sched_getaffinity", "sched_setscheduler", "sched_getscheduler", "setpriority", "getpriority", "prctl"),
    *("memfd_create", "ftruncate", "fallocate", "mmap", "msync", "mprotect", "madvise", "mbind", "flock", "fsync", "rename"),
    *("vfork", "clone", "execve", "setsid", "wait4", "kill", "futex", "sysinfo", "prlimit64", "clock_gettime", "getrandom"),
    *("socketpair", "connect", "sendmsg", "recvmsg", "epoll_wait", "eventfd2"),
}
TEACHER_CALLS = {
    *(
        "sched_setaffinity",
        "sched_getaffinity",
        "mmap",
        "mprotect",
        "madvise",
        "mbind",
        "ftruncate",
        "pwrite64",
        "fdatasync",
        "flock",
    ),
    *(
        "rename",
        "clone",
        "futex",
        "getrandom",
        "socketpair",
        "bind",
        "listen",
        "accept4",
        "sendmsg",
        "recvmsg",
        "epoll_wait",
        "eventfd2",
    ),
}
PRIVILEGED_CALLS = {
    "mount",
    "ptrace",
    "bpf",
    "setuid",
    "setresuid",
    "chroot",
    "init_module",
    "kexec_load",
    "reboot",
    "swapon",
    "keyctl",
}

needs_systemd = pytest.mark.needs("systemd")
# It builds the filters of a unit, and gives the capabilities of root away.
needs_filters = pytest.mark.needs("systemd", "libseccomp", "root")
each_unit = pytest.mark.parametrize("name", list(UNITS))


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_systemd
@each_unit
def test_systemd_accepts_the_unit(name: str, tmp_path: Path) -> None:
    # It also looks whether the program is there, so one that surely is stands in for the installed one.
    unit = tmp_path / UNITS[name].name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNITS[name].read_text(encoding="utf-8"), flags=re.MULTILINE))
    verified = analyze("verify", unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@needs_systemd
@each_unit
def test_unit_is_confined(name: str) -> None:
    output = analyze("security", "--offline=true", "--no-pager", UNITS[name]).stdout
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", output)
    assert float(exposure) <= MOST_EXPOSURE


@needs_systemd
@pytest.mark.parametrize(("name", "needed"), [("student", STUDENT_CALLS), ("teacher", TEACHER_CALLS)])
def test_filter_allows_the_system_calls_of_edgekd(name: str, needed: set[str]) -> None:
    allowed = allowed_calls(UNITS[name])
    assert needed - allowed == set()
    assert allowed & PRIVILEGED_CALLS == set()


@each_unit
def test_unit_omits_options_that_break_training_or_scheduling(name: str) -> None:
    output = settings(UNITS[name])
    harmful = {"MemoryDenyWriteExecute", "ProcSubset", "AllowedCPUs", "CPUAffinity", "CPUQuota", "CPUSchedulingPolicy", "Nice"}
    assert output.keys() & harmful == set()


def test_student_may_leave_the_idle_class() -> None:
    assert settings(UNITS["student"])["LimitNICE"] == ["20"]


@each_unit
def test_unit_restarts_only_after_transient_failures(name: str) -> None:
    output = settings(UNITS[name])
    assert output["Restart"] == ["on-failure"]
    assert output["RestartPreventExitStatus"] == [str(USER_ERROR)]
    assert output["KillSignal"] == ["SIGTERM"]
    assert int(output["TimeoutStopSec"][0]) > 5


@each_unit
def test_command_and_settings_of_the_unit_are_accepted(name: str) -> None:
    (command,) = settings(UNITS[name])["ExecStart"]
    accepted(shlex.split(command), DEPLOY / "systemd" / f"{name}.toml")


@each_unit
def test_unit_writes_only_where_it_may(name: str) -> None:
    (state,) = settings(UNITS[name])["StateDirectory"]
    options = accepted(shlex.split(settings(UNITS[name])["ExecStart"][0]), DEPLOY / "systemd" / f"{name}.toml")
    written = [options.store] if name == "teacher" else [options.cache, options.out]
    assert all(path.is_relative_to(f"/var/lib/{state}") for path in written)
    assert settings(UNITS[name])["WorkingDirectory"] == [f"/var/lib/{state}"]


@needs_systemd
def test_users_of_the_units_are_made(tmp_path: Path) -> None:
    conf = tmp_path / "etc/sysusers.d/edgekd.conf"
    conf.parent.mkdir(parents=True)
    shutil.copy(DEPLOY / "systemd" / "edgekd.sysusers", conf)
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True, capture_output=True)
    made = [line.split(":") for line in (tmp_path / "etc/passwd").read_text(encoding="utf-8").splitlines()]
    homes = {fields[0]: fields[5] for fields in made}
    for unit in UNITS.values():
        (user,), (state,) = settings(unit)["User"], settings(unit)["StateDirectory"]
        assert homes[user] == f"/var/lib/{state}"
        assert settings(unit)["Group"] == [user]


PROBE = """
import os, socket, threading
from scheduler.live.threads import may_leave_idle_priority

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return True
    return False

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.memfd_create("ring")
socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.nice(1)
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
assert refused(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
assert refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
assert refused(os.setuid, 1)
assert refused(os.chroot, "/")
print("may stop yielding" if may_leave_idle_priority() else "may not")
"""


@needs_filters
@pytest.mark.parametrize(("name", "yielding"), [("teacher", "may not"), ("student", "may stop yielding")])
def test_the_filters_let_only_the_student_stop_yielding(name: str, yielding: str) -> None:
    tried = subprocess.run(
        confined(name, sys.executable, "-c", PROBE), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (tried.stdout.strip(), tried.stderr) == (yielding, "")


@pytest.mark.slow
@needs_filters
def test_programs_run_under_the_filters_of_their_units(tmp_path: Path) -> None:
    load = ["--dataset=synthetic:classes=10,size=8,samples=96:public", "--model=cnn:width=4", f"--store={tmp_path / 'store'}"]
    serve = confined(
        "teacher",
        sys.executable,
        "-m",
        "cloud_teacher",
        "serve",
        "--listen=127.0.0.1:0",
        f"--cores={min(os.sched_getaffinity(0))}",
        *load,
    )
    server = subprocess.Popen(serve, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().removeprefix("listening on ").strip()
        assert address, server.communicate()[1]
        weights = [train(address, tmp_path / out, wrap) for out, wrap in (("free", free), ("confined", confined))]
    finally:
        server.terminate()
        errors = server.communicate()[1]
    assert (server.returncode, "Traceback" in errors) == (0, False), errors
    assert weights[0] == weights[1]


def train(address: str, out: Path, wrap: Callable[..., list[str]]) -> bytes:
    """Return the weights of a short run of the student, with the policy that puts comm into the idle class."""
    flags = [
        "--private=synthetic:classes=10,size=8,samples=96:private",
        "--model=cnn:width=4",
        "--cycles=6",
        "--public-batch=8",
        "--batch-size=8",
    ]
    options = [*flags, f"--teacher={address}", f"--out={out}", "--policy=compute-first", "--torch-threads=1"]
    done = subprocess.run(
        wrap("student", sys.executable, "-m", "edge_student", "train", *options),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "refused" not in done.stderr + (out / "events.jsonl").read_text(encoding="utf-8")
    return (out / "student.safetensors").read_bytes()


def confined(name: str, *command: str) -> list[str]:
    return [sys.executable, str(CONFINED), str(UNITS[name]), *command]


def free(_: str, *command: str) -> list[str]:
    return list(command)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
