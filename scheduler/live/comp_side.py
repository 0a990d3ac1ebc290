"""The compute half of the live loop: applies decisions to the calling compute worker and to the kernel.

It remembers the cores that compute was last bound to. The loop decides when compute waits. All methods but `bind` are called under
the loop's lock.
"""

from collections.abc import Callable

from scheduler.live.binding import TeamBinding, WorkersBinding
from scheduler.live.records import Record, of_bound
from scheduler.live.threads import ThreadMasks
from scheduler.model.placement import Placement
from scheduler.model.state import Decision


class CompSide:
    """One compute worker: the cores it is bound to, the cores its task uses now, and whether it has to move."""

    def __init__(self, binding: TeamBinding | WorkersBinding, record: Callable[[Record], None], clock: Callable[[], float]) -> None:
        self._binding = binding
        self._record = record
        self._clock = clock
        self._cores: tuple[int, ...] = ()  # the cores of the last `bind`; empty while compute waits
        self._is_pinned = False
        self._may_pin = True
        self.in_use: frozenset[int] = frozenset()
        """Cores that the running task keeps until its end. Comm must get none of them."""
        self.masks: ThreadMasks = {}
        """Core masks of compute's threads, as read back from the kernel."""
        self.moves_at_once = binding.moves_at_once
        """Whether compute takes new cores in the middle of a task, from any thread."""
        self.is_held = False

    def apply_at_once(self, placement: Placement, decision: Decision) -> None:
        """Give compute its cores of `placement` now, or hold it if there are none. For compute that `moves_at_once`.

        Raises BindingRefusedError.
        """
        if placement.comp:
            self.bind(placement, decision, "any")
            self.release()
            return
        self._binding.hold()  # again at every decision, because a worker may have been replaced since
        if not self.is_held:
            self.is_held = True
            self.record_cores((), decision, "any")

    def release(self) -> None:
        """Let compute run on if it is held."""
        if self.is_held:
            self._binding.release()
            self.is_held = False

    def occupy(self, cores: tuple[int, ...]) -> None:
        """Note that a task begins on these cores. Comm gets none of them before its end, unless compute moves at once."""
        self.in_use = frozenset() if self.moves_at_once else frozenset(cores)

    def bind(self, placement: Placement, decision: Decision, where: str) -> None:
        """Bind the team of the calling thread, and record a change of cores with the `decision` that first requested it.

        An unpinned placement restores all masks. Raises BindingRefusedError.
        """
        is_pinned = placement.is_pinned and self._may_pin
        if not (is_pinned or self._is_pinned):
            return
        masks = self._binding.apply(placement.comp, placement.num_idle_workers) if is_pinned else self._binding.restore()
        self._is_pinned = is_pinned
        if masks:
            self.masks = masks
        if placement.comp != self._cores or not is_pinned:
            self.record_cores(placement.comp, decision, where)

    def record_cores(self, cores: tuple[int, ...], decision: Decision, where: str) -> None:
        """Record that compute has `cores` from now on; empty if it waits."""
        self._cores = cores
        self._record(of_bound(self._clock(), decision, cores, where, self.masks))

    def record_wait(self, placement: Placement, decision: Decision) -> None:
        """Record that compute waits at a task boundary without cores, if it had some until now."""
        if self._cores and not placement.comp:
            self.record_cores((), decision, "task")

    def leave_alone(self, tid: int) -> None:
        """Exclude one thread of this process from the team."""
        self._binding.leave_alone(tid)

    def forget(self) -> None:
        """Forget the masks, because the kernel may have changed them: the next `bind` sets them again."""
        self._binding.forget()

    def stop_pinning(self) -> None:
        """Never pin compute again. The next `bind` restores its masks."""
        self._may_pin = False

    def restore(self) -> None:
        """Restore every mask and the thread count to their values before the first `bind`."""
        self.release()
        self._binding.restore()
