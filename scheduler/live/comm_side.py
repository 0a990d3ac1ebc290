"""The comm half of the live loop: applies decisions to the comm worker and to the kernel.

All calls happen under the loop's lock. The last request is remembered, and only changes reach the worker.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from scheduler.live.binding import CommBinding
from scheduler.live.comm_port import CommPort
from scheduler.live.threads import BindingRefusedError, ThreadMasks
from scheduler.model.handover import CommEffect, Handover


class CommSide:
    """One comm worker: its cores, whether it is held, and whether it has idle priority."""

    def __init__(self, port: CommPort, binding: CommBinding) -> None:
        self._port = port
        self._binding = binding
        self._cores: frozenset[int] = frozenset()
        self._may_pin = True
        self._has_idle_priority = False  # by a decision, independent of the priority at start
        self.class_refusal = ""
        """The kernel's reason for refusing a change of the scheduling class; empty if it never did."""
        self.is_held = False
        self.has_ended = False
        self.masks: ThreadMasks = {}
        """Core masks of the worker's threads, as read back from the kernel."""

    def end(self) -> None:
        """Note that the worker has exited."""
        self.has_ended = True
        self.masks = {}

    def apply(self, handover: Handover) -> None:
        """Carry out the effect of `handover` on comm. Raises BindingRefusedError."""
        if self.has_ended or handover.comm is CommEffect.KEEP:
            return
        if handover.comm is CommEffect.HOLD:
            self._hold()
            return
        if handover.comm is CommEffect.UNPIN and not (self._cores or self.is_held):
            return  # the worker was never pinned or held
        try:
            if handover.comm_cores != self._cores and self._may_pin:
                self.masks = self._binding.apply(handover.comm_cores)
                self._cores = handover.comm_cores
        finally:
            self._release()

    def forget(self) -> None:
        """Forget the masks, because the kernel may have changed them: the next `apply` sets them again."""
        self._cores = frozenset()

    def set_idle_priority(self, has_idle_priority: bool, record: Callable[[dict[str, Any]], None]) -> None:
        """Give comm idle priority or take it back. If the kernel refuses, comm keeps its class and the log gets one record."""
        if self.has_ended or self.class_refusal or has_idle_priority == self._has_idle_priority:
            return
        try:
            self._binding.set_idle_priority(has_idle_priority)
            self._has_idle_priority = has_idle_priority
        except BindingRefusedError as error:
            self.class_refusal = str(error)
            record({"event": "comm-class-refused", "is_behind": self._has_idle_priority, "cause": str(error)})

    def stop_pinning(self, cores: frozenset[int]) -> None:
        """Never pin comm again, and return all `cores` to a worker that was pinned. The kernel may refuse cores that are gone."""
        self._may_pin = False
        if not self._cores:
            return
        self._cores = cores
        with contextlib.suppress(BindingRefusedError):
            self.masks = self._binding.apply(cores)

    def pin_new_threads(self) -> None:
        """Pin threads that the worker has started since. Raises BindingRefusedError."""
        masks = self._binding.pin_new_threads() if self._may_pin else None
        if masks is not None:
            self.masks = masks

    def _hold(self) -> None:
        if not self.is_held:
            self._port.hold()
            self.is_held = True

    def _release(self) -> None:
        if self.is_held:
            self._port.release()
            self.is_held = False
