"""Parsing of the kernel's counters, and the CPU time of an exited child."""

import os
import subprocess
import sys

from edge_student.host.counters import Machine, all_processes, parse_interrupts, parse_pressure, parse_stat
from edge_student.host.disturbance import CoreTicks

TICK_S = 1 / os.sysconf("SC_CLK_TCK")

STAT = "cpu  9 9 9 9\ncpu0 10 1 5 100 2 3 4 6 0 0\ncpu2 20 0 5 90 0 0 1 0 0 0\nintr 5 0 1\nctxt 7\n"

INTERRUPTS = """            CPU0       CPU2
  8:         10         20   GICv2  65 Level     fe00b880.mailbox
 30:        100          5   GICv2 189 Level     eth0
 31:          1          2   PCI-MSIX-0000:00:04.0   1-edge      virtio3-rx
 32:          4          4   PCI-MSIX-0000:00:04.0   1-edge      virtio31-rx
LOC:       1000       2000   Local timer interrupts
ERR:          3
"""


def test_stat_is_read_by_the_core_s_own_number() -> None:
    assert parse_stat(STAT) == {
        0: CoreTicks(user=10, nice=1, system=5, idle=100, iowait=2, irq=3, softirq=4, steal=6),
        2: CoreTicks(user=20, nice=0, system=5, idle=90, softirq=1),
    }
    assert parse_stat("cpu0 1 2 3 4\n") == {0: CoreTicks(user=1, nice=2, system=3, idle=4)}
    assert parse_stat("") == {}


def test_interrupts_are_summed_per_core_and_rows_without_cores_left_out() -> None:
    assert parse_interrupts(INTERRUPTS) == {0: 1115, 2: 2031}
    assert parse_interrupts(INTERRUPTS, ["eth0", "virtio3"]) == {0: 101, 2: 7}
    assert parse_interrupts(INTERRUPTS, ["wlan0"]) is None
    assert parse_interrupts("") is None


def test_pressure_is_read_in_seconds() -> None:
    assert parse_pressure("some avg10=9.17 avg60=2.83 avg300=1.54 total=1687837544\nfull total=0") == 1687.837544
    assert parse_pressure("") is None


def test_a_child_that_ended_is_seen_until_it_is_waited_for() -> None:
    """The count of a run's own CPU time relies on this behaviour of the kernel."""
    child = subprocess.Popen([sys.executable, "-c", "sum(range(4_000_000))"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child.stdout:
        child.stdout.read()  # end of file: the child has exited, but has not been waited for
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (seen,) = [process for process in all_processes() if process.pid == child.pid]
    assert (seen.parent, seen.cpu_s > 0) == (os.getpid(), True)
    before = Machine().own_cpu_s()
    child.wait()
    assert Machine().own_cpu_s() - before >= seen.cpu_s - 2 * TICK_S
