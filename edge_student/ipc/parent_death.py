"""No process of ours outlives the one that started it, however that ended; it would keep its cores and its memory for ever."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(signal_number: signal.Signals) -> None:
    """Have the kernel send us this signal when the parent's thread that started us ends, in whatever way.

    prctl(2), PR_SET_PDEATHSIG. A parent that has ended already is not noticed.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)


def end_with_parent() -> None:
    """For `preexec_fn`: the child is asked to end."""
    die_with_parent(signal.SIGTERM)
