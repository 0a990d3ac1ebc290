"""The cores that a run still has: a cpuset or a power mode may take cores away or give them back during the run.

The kernel is queried twice a second, and after a mask was not granted. The live loop reacts to the changes.
"""

from collections.abc import Callable, Iterable

from scheduler.live.threads import CoresGoneError

EVERY_S = 0.5


class CoreCount:
    """The cores of a run that are usable `now`. `usable` returns the subset of some cores that the kernel grants."""

    def __init__(
        self, cores: Iterable[int], usable: Callable[[frozenset[int]], frozenset[int]], clock: Callable[[], float]
    ) -> None:
        self._all = frozenset(cores)
        self.now = tuple(cores)
        self._usable = usable
        self._clock = clock
        self._next = 0.0
        self.suspicion: CoresGoneError | None = None
        """A refused mask within the cores of `now` since the last `count`: cores may be gone."""
        self.changes: list[str] = []
        """A text for every change so far."""

    @property
    def is_due(self) -> bool:
        """Whether a `count` is due."""
        return self.suspicion is not None or self._clock() >= self._next

    def suspect(self, error: CoresGoneError, requested: Iterable[int]) -> None:
        """Note that the kernel did not grant the mask `requested`. A mask from before the last change is ignored."""
        if frozenset(requested) <= frozenset(self.now):
            self.suspicion = error

    def count(self) -> tuple[int, ...] | None:
        """Return the usable cores if they have changed, else None. Call it in a thread whose own mask may change."""
        self._next = self._clock() + EVERY_S
        usable = self._usable(self._all)
        return tuple(sorted(usable)) if usable != frozenset(self.now) else None

    def change(self, cores: tuple[int, ...], num_cycles: int) -> None:
        """Use `cores` from now on, `num_cycles` cycles into the run."""
        self.changes.append(f"from cores {sorted(self.now)} to {list(cores)} after {num_cycles} cycles")
        self.now = cores
