"""Which of a run's cores there still are: a cpuset or a power mode takes some away, or gives them back, while it runs.

It asks the kernel, from time to time or when a mask was not given, and remembers the answer. What follows from it is for others.
"""

from collections.abc import Callable, Iterable

from scheduler.live.threads import CoresGoneError

EVERY_S = 0.5


class CoreCount:
    """The cores `now`, of those that the run began with. `usable` says which of some the kernel gives."""

    def __init__(
        self, cores: Iterable[int], usable: Callable[[frozenset[int]], frozenset[int]], clock: Callable[[], float]
    ) -> None:
        self._all = frozenset(cores)
        self.now = tuple(cores)
        self._usable = usable
        self._clock = clock
        self._next = 0.0
        self.suspicion: CoresGoneError | None = None
        """A mask within the cores of `now` that was not given since the last `count`: have cores gone?"""
        self.changes: list[str] = []
        """In words, every change so far."""

    @property
    def is_due(self) -> bool:
        """Whether it is time for a `count`."""
        return self.suspicion is not None or self._clock() >= self._next

    def suspect(self, error: CoresGoneError, wanted: Iterable[int]) -> None:
        """The mask `wanted` was not given. No wonder if it is from before the last change."""
        if frozenset(wanted) <= frozenset(self.now):
            self.suspicion = error

    def count(self) -> tuple[int, ...] | None:
        """Ask the kernel: the cores of now, perhaps none, if they have changed, else None. In a thread that may have any mask."""
        self._next = self._clock() + EVERY_S
        usable = self._usable(self._all)
        return tuple(sorted(usable)) if usable != frozenset(self.now) else None

    def change(self, cores: tuple[int, ...], num_cycles: int) -> None:
        """These are the cores of now, `num_cycles` into the run."""
        self.changes.append(f"from cores {sorted(self.now)} to {list(cores)} after {num_cycles} cycles")
        self.now = cores
