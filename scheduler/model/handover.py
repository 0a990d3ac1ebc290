"""The hand-over of cores: the effects of a placement while compute still uses cores of an earlier one.

A team of threads keeps its cores until its task ends, because a team that shrinks inside a parallel operation spins on the lost
cores. Comm gets no core before compute has left it. Compute workers leave cores at once and use none of an earlier placement. The
live loop carries the effects out, the controller attributes time by them, and `calibrate` switches modes with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from scheduler.model.placement import Placement


class CommEffect(Enum):
    """The effect on comm. PIN and UNPIN also release a comm worker that is held."""

    PIN = auto()
    """Pin comm to the cores."""
    UNPIN = auto()
    """Let the kernel place comm on the cores. A comm worker that was never pinned keeps its mask."""
    HOLD = auto()
    """Hold comm at its next chunk: it gets no cores."""
    KEEP = auto()
    """Change nothing: compute still uses every core that comm is to get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """The effect on comm now. `comm_cores` is empty for HOLD and KEEP."""

    comm: CommEffect
    comm_cores: frozenset[int] = frozenset()


def hand_over(placement: Placement, comp_in_use: frozenset[int]) -> Handover:
    """Return the effect of `placement` while compute uses the cores `comp_in_use`, none if it waits or is between two tasks."""
    if not placement.comm:
        return Handover(comm=CommEffect.HOLD)
    if not placement.is_pinned:
        return Handover(comm=CommEffect.UNPIN, comm_cores=placement.comm)
    free = placement.comm - comp_in_use
    if not free and placement.is_shared:
        free = placement.comm
    if not free:
        return Handover(comm=CommEffect.KEEP)
    return Handover(comm=CommEffect.PIN, comm_cores=free)
