"""`doctor`: looks at an edge box before anybody measures or deploys on it, and says what each thing means and what to do.

It changes nothing. Each room of `doctor_*` looks at one thing and knows nothing of the others; here they are called, and shown.
Torch is never loaded here.
"""

import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from rich.console import Console
from rich.text import Text

from edge_student.doctor.cores import find_cores, read_cores
from edge_student.doctor.disk import find_disk, try_disk
from edge_student.doctor.finding import Finding, Status, unknown, worst
from edge_student.doctor.interrupts import find_interrupts, read_nic
from edge_student.doctor.link import look_at_link
from edge_student.doctor.power import find_power, read_power
from edge_student.doctor.software import find_environment, find_openmp, find_torch, read_board, read_torch, run_torch_check
from edge_student.doctor.system import (
    find_clock,
    find_memory,
    find_page_size,
    find_permissions,
    page_size,
    read_clock,
    read_memory,
    try_permissions,
)
from edge_student.host.counters import Machine
from edge_student.host.provenance import describe_host
from edge_student.settings.doctor import DoctorConfig
from scheduler.live.threads import allowed_cores

logger = logging.getLogger(__name__)

_STYLES = {Status.OK: "green", Status.NOTE: "cyan", Status.UNKNOWN: "magenta", Status.WARNING: "yellow", Status.PROBLEM: "bold red"}


def look(config: DoctorConfig) -> int:
    """Look at everything, print what was found, and return the exit status: 1 if there is a problem, else 0."""
    findings = list(examine(config))
    cores = tuple(sorted(allowed_cores()))
    if config.json:
        host = describe_host(cores)
        print(
            json.dumps({"findings": [finding.as_json() for finding in findings], "host": host, "status": worst(findings)}, indent=2)
        )
    else:
        show(findings, sys.stdout)
    return 1 if worst(findings) is Status.PROBLEM else 0


def examine(config: DoctorConfig, machine: Machine | None = None) -> Iterator[Finding]:
    """All findings, in the order of their areas. Takes as long as loading torch, and with a teacher a few seconds more."""
    machine = machine or Machine()
    cores = read_cores(machine, allowed_cores(), config.cores)
    yield from _guarded("cores", lambda: find_cores(cores))
    yield from _guarded("cores", lambda: [find_interrupts(read_nic(machine), cores.chosen)])
    yield from _guarded("power", lambda: find_power(read_power(machine, cores.chosen), cores.present))
    logger.info("loading torch in a process of its own, and training one small step")
    torch_check = run_torch_check()
    torch_mib = None if torch_check.said is None else torch_check.said["peak_mib"]
    clock = read_clock()
    yield from _guarded("machine", lambda: [find_page_size(page_size()), find_clock(clock)])
    yield from _guarded("machine", lambda: [find_memory(read_memory(machine), config.ring_mib, torch_mib)])
    yield from _guarded("disk", lambda: _disks(config, machine.text("proc/self/mounts")))
    yield from _guarded("kernel", lambda: find_permissions(try_permissions(cores.allowed)))
    yield from _guarded("software", lambda: [find_torch(read_torch(), read_board(machine, platform.machine()), torch_check)])
    yield from _guarded("software", lambda: [find_openmp(torch_check), *find_environment(os.environ)])
    yield from _guarded("link", lambda: look_at_link(config, clock.now))


def _disks(config: DoctorConfig, mounts: str | None) -> Iterator[Finding]:
    yield find_disk("disk.out", try_disk(config.out, mounts=mounts), flag="--out", worst=Status.PROBLEM)
    # Only `fetch` and runs with --logits hybrid write there.
    yield find_disk("disk.cache", try_disk(config.cache, mounts=mounts), flag="--cache", worst=Status.WARNING)


def _guarded(area: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `look` finds. A machine that no room has foreseen must not keep the others from being told: what breaks is unknown."""
    try:
        yield from look()
    except Exception as error:
        logger.debug("a check of %s broke", area, exc_info=True)
        text = f"this could not be looked at, by a mistake of doctor's own: {type(error).__name__}: {error}"
        yield unknown(f"{area}.doctor", text, "please report it, with what --log-level debug says")


def show(findings: Sequence[Finding], file: IO[str]) -> None:
    """The findings by area, the worst of each last, and a line that counts them; colours only where `file` is a terminal."""
    console = Console(file=file, highlight=False, soft_wrap=True)  # the terminal breaks lines, so that commands can be copied
    width = max((len(finding.check) for finding in findings), default=0)
    for area in dict.fromkeys(finding.area for finding in findings):
        console.print(Text(area, style="bold"))
        for finding in sorted(_of(area, findings), key=lambda finding: finding.status.severity):
            line = Text.assemble(
                (f"  {finding.status:<8}", _STYLES[finding.status]), f"{finding.check:<{width}}  {finding.summary}"
            )
            console.print(line)
            if finding.remedy:
                console.print(Text(f"{'':{width + 10}}  -> {finding.remedy}", style="dim" if finding.status is Status.NOTE else ""))
    counts = {status: sum(finding.status is status for finding in findings) for status in reversed(Status)}
    told = ", ".join(f"{count} {_plural(status, count)}" for status, count in counts.items() if count)
    console.print(Text(f"{told}: {_verdict(worst(findings))}", style=_STYLES[worst(findings)]))


def _of(area: str, findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.area == area]


def _plural(status: Status, count: int) -> str:
    has_plural = status in (Status.NOTE, Status.WARNING, Status.PROBLEM)
    return f"{status}s" if has_plural and count > 1 else str(status)


def _verdict(status: Status) -> str:
    return {
        Status.PROBLEM: "mend the problems first",
        Status.WARNING: "it will run; mend the warnings before you measure",
        Status.UNKNOWN: "nothing wrong was seen, and not everything could be looked at",
        Status.NOTE: "ready",
        Status.OK: "ready",
    }[status]
