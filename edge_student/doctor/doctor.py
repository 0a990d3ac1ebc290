"""`doctor`: check an edge device before a measurement or a deployment, and print findings with remedies.

It changes no setting of the machine. Each module of this folder checks one subject; this module calls them and prints their
findings. Torch is never loaded in this process.
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

from edge_student.doctor.cores import check_cores, read_cores
from edge_student.doctor.disk import check_disk, try_disk
from edge_student.doctor.finding import Finding, Status, unknown, worst
from edge_student.doctor.interrupts import check_interrupts, read_nic
from edge_student.doctor.link import check_link
from edge_student.doctor.power import check_power, read_power
from edge_student.doctor.software import check_environment, check_openmp, check_torch, read_board, read_torch, run_torch_check
from edge_student.doctor.system import (
    check_clock,
    check_memory,
    check_page_size,
    check_permissions,
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


def check_device(config: DoctorConfig) -> int:
    """Run all checks, print the findings, and return the exit status: 1 if there is a problem, else 0."""
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
    """Yield all findings, ordered by area. Takes the time to load torch, plus a few seconds with a teacher."""
    machine = machine or Machine()
    cores = read_cores(machine, allowed_cores(), config.cores)
    yield from _guarded("cores", lambda: check_cores(cores))
    yield from _guarded("cores", lambda: [check_interrupts(read_nic(machine), cores.chosen)])
    yield from _guarded("power", lambda: check_power(read_power(machine, cores.chosen), cores.present))
    logger.info("loading torch in a subprocess and training one small step")
    torch_check = run_torch_check()
    torch_mib = None if torch_check.output is None else torch_check.output["peak_mib"]
    clock = read_clock()
    yield from _guarded("machine", lambda: [check_page_size(page_size()), check_clock(clock)])
    yield from _guarded("machine", lambda: [check_memory(read_memory(machine), config.ring_mib, torch_mib)])
    yield from _guarded("disk", lambda: _disks(config, machine.text("proc/self/mounts")))
    yield from _guarded("kernel", lambda: check_permissions(try_permissions(cores.allowed)))
    yield from _guarded("software", lambda: [check_torch(read_torch(), read_board(machine, platform.machine()), torch_check)])
    yield from _guarded("software", lambda: [check_openmp(torch_check), *check_environment(os.environ)])
    yield from _guarded("link", lambda: check_link(config, clock.now))


def _disks(config: DoctorConfig, mounts: str | None) -> Iterator[Finding]:
    yield check_disk("disk.out", try_disk(config.out, mounts=mounts), flag="--out", worst=Status.PROBLEM)
    # Only `fetch` and runs with --logits hybrid write to the cache.
    yield check_disk("disk.cache", try_disk(config.cache, mounts=mounts), flag="--cache", worst=Status.WARNING)


def _guarded(area: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of `check`. An exception becomes an unknown finding, so that the other checks still run."""
    try:
        yield from check()
    except Exception as error:
        logger.debug("a check of %s failed", area, exc_info=True)
        text = f"the check failed because of a bug in doctor: {type(error).__name__}: {error}"
        yield unknown(f"{area}.doctor", text, "report the bug, with the output of --log-level debug")


def show(findings: Sequence[Finding], file: IO[str]) -> None:
    """Print the findings by area, the worst of each area last, then a summary line. Colours are used only on a terminal."""
    console = Console(file=file, highlight=False, soft_wrap=True)  # no hard line breaks, so that commands can be copied
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
    shown_counts = ", ".join(f"{count} {_plural(status, count)}" for status, count in counts.items() if count)
    console.print(Text(f"{shown_counts}: {_verdict(worst(findings))}", style=_STYLES[worst(findings)]))


def _of(area: str, findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.area == area]


def _plural(status: Status, count: int) -> str:
    has_plural = status in (Status.NOTE, Status.WARNING, Status.PROBLEM)
    return f"{status}s" if has_plural and count > 1 else str(status)


def _verdict(status: Status) -> str:
    return {
        Status.PROBLEM: "fix the problems first",
        Status.WARNING: "runs will work; fix the warnings before you measure",
        Status.UNKNOWN: "no defect was found, but some checks could not run",
        Status.NOTE: "ready",
        Status.OK: "ready",
    }[status]
