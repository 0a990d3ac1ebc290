"""Records of a run's event log, as plain dicts. docs/architecture.md explains the fields. Times are seconds of the loop's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.live.comm_port import BatchArrived
from scheduler.model.placement import Placement
from scheduler.model.state import Decision, Task

Record = dict[str, Any]
Masks = Mapping[int, tuple[int, ...]]


def of_decision(decision: Decision, placement: Placement, comm: Masks, comp: Masks, comm_is_held: bool) -> Record:
    """Return the record of a decision, with the requested cores and the masks by thread, as read back from the kernel."""
    state, allocation = decision.state, decision.allocation
    return {
        "event": "decision",
        "sequence": decision.sequence,
        "time": decision.time,
        "policy": decision.policy,
        "reason": decision.reason.value,
        "state": [state.num_comm, state.num_forward, state.num_backward],
        "allocation": {"comm": allocation.comm, "comp": allocation.comp, "pinned": allocation.pinned},
        "requested": {"comm": sorted(placement.comm), "comp": sorted(placement.comp)},
        "effective": {"comm": comm, "comp": comp},
        "comm_is_held": comm_is_held,
    }


def of_bound(time: float, decision: Decision, cores: Sequence[int], where: str, effective: Masks) -> Record:
    """Return the record of compute's cores from `time` on (empty while it waits), requested first by `decision`."""
    return {
        "event": "comp-bound",
        "time": time,
        "decision": decision.sequence,
        "decided": decision.time,
        "cores": sorted(cores),
        "where": where,
        "effective": effective,
    }


def of_batch(batch: BatchArrived) -> Record:
    """Return the record of a Comm task."""
    return {
        "event": "task",
        "task": Task.COMM.value,
        "index": batch.index,
        "started": batch.started,
        "ended": batch.ended,
        "cpu_s": batch.cpu_s,
        "busy_s": batch.busy_s,
        "num_bytes": batch.num_bytes,
    }
