"""What a process holds of the machine: memory of its own, descriptors, threads. Read from /proc, so Linux and nothing else."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """What one process holds at one moment."""

    private_kib: int
    """Memory that goes with it when it dies: neither libraries, which others map too, nor the ring, which is shared."""
    descriptors: int
    threads: int


def read_holding(pid: int) -> Holding:
    """What process `pid` holds now. OSError if it is gone."""
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
