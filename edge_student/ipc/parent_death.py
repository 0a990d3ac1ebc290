"""Ends a child process when its parent exits for any reason; otherwise an orphan would keep its cores and its memory."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: signal.Signals) -> None:
    """Request that the kernel sends this signal when the parent's thread that started this process exits, for any reason.

    prctl(2), PR_SET_PDEATHSIG. It has no effect if the parent has already exited.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)


def end_with_parent() -> None:
    """Send SIGTERM to the child at the parent's exit; for use as `preexec_fn`."""
    die_with_parent(signal.SIGTERM)
