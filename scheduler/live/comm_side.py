"""The comm half of the live loop: carries to the comm worker, and to the kernel, what a decision gives comm.

All calls come under the loop's lock. It remembers what was asked for last, and asks only for what is new.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from scheduler.live.binding import CommBinding
from scheduler.live.comm_port import CommPort
from scheduler.live.threads import BindingRefusedError, ThreadMasks
from scheduler.model.placement import Placement


class CommSide:
    """One comm worker: which cores it has, whether it is held, whether it yields to training."""

    def __init__(self, port: CommPort, binding: CommBinding) -> None:
        self._port = port
        self._binding = binding
        self._cores: frozenset[int] = frozenset()
        self._has_idle_priority = False  # because of a decision, whatever it was started as
        self._class_is_refused = False
        self.is_held = False
        self.has_ended = False
        self.masks: ThreadMasks = {}
        """Masks of its threads, as the kernel really gave them."""

    def end(self) -> None:
        """The worker has exited."""
        self.has_ended = True
        self.masks = {}

    def place(self, placement: Placement, comp_in_use: frozenset[int], *, may_pin: bool) -> None:
        """Give comm its cores, but for those that compute still uses, or hold it if it gets none.

        Without `may_pin` it is only held and let go. Raises BindingRefusedError.
        """
        wanted = placement.comm
        if self.has_ended or not (placement.is_pinned or self._cores or self.is_held):
            return  # gone, or nothing was ever asked of it
        if not wanted:
            if not self.is_held:
                self._port.hold()
                self.is_held = True
            return
        cores = wanted - comp_in_use
        if not placement.is_pinned or (not cores and placement.is_shared):
            cores = wanted
        if not cores:
            return  # every core is still compute's; comm gets its own when compute has left them
        try:
            if cores != self._cores and may_pin:
                self.masks = self._binding.apply(cores)
                self._cores = cores
        finally:
            if self.is_held:
                self._port.release()
                self.is_held = False

    def forget(self) -> None:
        """The kernel may have changed the worker's masks: the next `place` sets them anew."""
        self._cores = frozenset()

    def set_idle_priority(self, has_idle_priority: bool, record: Callable[[dict[str, Any]], None]) -> None:
        """Comm yields to training, or no longer does. Where the kernel refuses, comm stays as it is, and the log says so once."""
        if self.has_ended or self._class_is_refused or has_idle_priority == self._has_idle_priority:
            return
        try:
            self._binding.set_idle_priority(has_idle_priority)
            self._has_idle_priority = has_idle_priority
        except BindingRefusedError as error:
            self._class_is_refused = True
            record({"event": "comm-class-refused", "is_behind": self._has_idle_priority, "cause": str(error)})

    def unpin(self, cores: frozenset[int]) -> None:
        """Give a worker that was pinned all these cores back. The kernel may refuse it: cores may have been taken away for good."""
        if not self._cores:
            return
        self._cores = cores
        with contextlib.suppress(BindingRefusedError):
            self.masks = self._binding.apply(cores)

    def look_again(self) -> None:
        """Pin threads that were born since. Raises BindingRefusedError."""
        masks = self._binding.look_again()
        if masks is not None:
            self.masks = masks
