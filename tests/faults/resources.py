"""Resources that a process holds: private memory, descriptors, threads. Read from /proc, so Linux only."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """Resources of one process at one time."""

    private_kib: int
    """Memory that goes with it when it dies: neither libraries, which others map too, nor the ring, which is shared."""
    descriptors: int
    threads: int


def read_holding(pid: int) -> Holding:
    """Return the resources of process `pid`. Raises OSError if it has exited."""
    folder = Path("/proc") / str(pid)
    private_kib = 0
    for line in (folder / "smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Private_Dirty", "Swap"):
            private_kib += int(value.split()[0])
    return Holding(
        private_kib=private_kib,
        descriptors=sum(1 for _ in (folder / "fd").iterdir()),
        threads=sum(1 for _ in (folder / "task").iterdir()),
    )
