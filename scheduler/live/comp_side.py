"""The compute half of the live loop: carries to the calling compute worker, and to the kernel, what a decision gives it.

It remembers which cores compute was last bound to, and says when it is to have others. What it waits for, and when it may leave a
task, is for the loop. All but `bind` comes under the loop's lock: to find the team's threads can take 20 ms.
"""

from collections.abc import Callable

from scheduler.live.binding import CompBinding
from scheduler.live.records import Record, of_bound
from scheduler.live.threads import ThreadMasks
from scheduler.model.placement import Placement
from scheduler.model.state import Decision


class CompSide:
    """One compute worker: which cores it is bound to, which of them a task uses now, and whether it has to move."""

    def __init__(self, binding: CompBinding, record: Callable[[Record], None], clock: Callable[[], float]) -> None:
        self._binding = binding
        self._record = record
        self._clock = clock
        self._cores: tuple[int, ...] = ()  # what it was last bound to; nothing once it waits
        self._is_pinned = False
        self.in_use: frozenset[int] = frozenset()
        """Cores of the task that runs now, and of those that it is on its way to: comm must get none of them."""
        self.must_move = False
        """In the middle of a task; may be read without the lock."""
        self.masks: ThreadMasks = {}
        """Masks of the team's threads, as the kernel really gave them."""

    def bind(self, placement: Placement, asked: Decision, where: str, *, may_pin: bool) -> None:
        """Bind the calling thread's team, and log it if it is somewhere else now, because of what the decision `asked` wanted.

        Without `may_pin` it gets every mask back. Raises BindingRefusedError.
        """
        is_pinned = placement.is_pinned and may_pin
        if not (is_pinned or self._is_pinned):
            return
        masks = self._binding.apply(placement.comp) if is_pinned else self._binding.restore()
        self._is_pinned = is_pinned
        if masks:
            self.masks = masks
        if placement.comp != self._cores or not is_pinned:
            self.is_on(placement.comp, asked, where)

    def is_on(self, cores: tuple[int, ...], asked: Decision, where: str) -> None:
        """Log that compute has these cores from now on, none if it waits."""
        self._cores = cores
        self._record(of_bound(self._clock(), asked, cores, where, self.masks))

    def give_up_cores(self, placement: Placement, asked: Decision) -> None:
        """Log that compute has none any more, where it waits at a boundary and gets none, if it had some until now."""
        if self._cores and not placement.comp:
            self.is_on((), asked, "task")

    def aim_at(self, placement: Placement, *, may_pin: bool) -> None:
        """This is what compute is to have: `must_move` says whether, in the middle of a task, it has something else."""
        can_move = bool(self.in_use) and placement.is_pinned and may_pin
        self.must_move = can_move and self.in_use != frozenset(placement.comp)

    @property
    def num_churned(self) -> int:
        """How often threads of the team were replaced behind our back."""
        return self._binding.num_churned

    def leave_alone(self, tid: int) -> None:
        """This thread of the process is none of the team's, whatever it does."""
        self._binding.leave_alone(tid)

    def forget(self) -> None:
        """The kernel may have changed the team's masks: the next `bind` sets them anew."""
        self._binding.forget()

    def restore(self) -> None:
        """Every mask and the thread count are what they were before all this."""
        self._binding.restore()
