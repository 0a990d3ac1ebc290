"""Samples the machine's counters before and after one run and computes the disturbance."""

import os
from collections.abc import Sequence
from typing import Any

from edge_student.host.counters import Machine, parse_load, parse_pressure, parse_stat
from edge_student.host.disturbance import Reading, describe


class DisturbanceSampler:
    """Measures the disturbance of one run on `cores` with a teacher at HOST:PORT: call `before()`, run, then call `after()`."""

    def __init__(self, cores: Sequence[int], *, teacher: str | None = None, machine: Machine | None = None) -> None:
        self._cores = tuple(cores)
        self._address = teacher
        self._machine = machine or Machine()
        self._before: Reading | None = None
        self._last: Reading | None = None
        self._teacher: frozenset[int] = frozenset()

    def before(self) -> None:
        """Take the first reading."""
        if self._address is not None:
            self._teacher = frozenset(self._machine.listening_at(self._address))
        slow = self._read_slow()
        self._before = self._last = Reading(**slow, **self._read_fast())

    def since_last(self) -> dict[str, Any]:
        """Take a reading in between; return the disturbance since the reading before it."""
        assert self._last is not None, "call before() first"
        former, self._last = self._last, Reading(**self._read_fast(), **self._read_slow())
        return describe(former, self._last, self._cores, self._teacher)

    def after(self) -> dict[str, Any]:
        """Take the second reading; return the disturbance between both, in the format of `disturbance.describe`."""
        assert self._before is not None, "call before() first"
        fast = self._read_fast()
        return describe(self._before, Reading(**fast, **self._read_slow()), self._cores, self._teacher)

    def _read_fast(self) -> dict[str, Any]:
        """Read the counters closest to the run, so that the time for the slow counters is not part of the run."""
        machine = self._machine
        return {
            "time": machine.clock(),
            "ticks": parse_stat(machine.text("proc/stat") or ""),
            "own_cpu_s": machine.own_cpu_s(),
        }

    def _read_slow(self) -> dict[str, Any]:
        machine = self._machine
        nics = machine.nic_names()
        counts = {
            core: machine.number(f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count") for core in self._cores
        }
        frequencies = {core: machine.frequency(core) for core in self._cores}
        return {
            "tick_s": 1 / os.sysconf("SC_CLK_TCK"),
            "own_pid": os.getpid() if machine.own_pid is None else machine.own_pid,
            "processes": machine.processes(),
            "interrupts": machine.interrupts(),
            "nic_interrupts": machine.interrupts(names=nics) if nics else None,
            "softirqs": machine.interrupts("softirqs"),
            "pressure_s": parse_pressure(machine.text("proc/pressure/cpu") or ""),
            "throttle_counts": {core: count for core, count in counts.items() if count is not None},
            "firmware": machine.firmware(),
            "temperatures": machine.temperatures(),
            "frequencies": {core: found for core, found in frequencies.items() if found},
            "load_average": parse_load(machine.text("proc/loadavg") or ""),
        }
