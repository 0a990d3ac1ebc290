"""What a run leaves behind: result.json, events.jsonl, trace.json and student.safetensors, whether it came to its end or not."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_student.config import TrainConfig, jsonable
from edge_student.journal import Journal, write_json, write_lines, write_text
from edge_student.messages import Described, Finished
from edge_student.preflight import spinning_variables
from edge_student.provenance import describe_host, describe_software
from edge_student.trace import to_trace
from edge_student.trainer import Trainer
from edgekd.models import save_weights
from scheduler.loop import SchedulerLoop
from scheduler.policies import kind_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that is over. Times are of the monotonic clock; `interruption` is what broke it off, None if nothing did."""

    config: TrainConfig
    run_id: str
    cores: tuple[int, ...]
    trainer: Trainer
    loop: SchedulerLoop
    journal: Journal
    described: Described
    finished: Finished | None
    prefetch: int
    max_threads: int
    started: float
    ended: float
    disturbance: dict[str, Any] | None
    accuracy: float | None
    interruption: BaseException | None
    notes: tuple[str, ...]


FILES = ("result.json", "student.safetensors", "events.jsonl", "trace.json")


def remove_old(out: Path) -> None:
    """Remove an earlier run's files, so that what lies there afterwards is of this run."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def save(outcome: Outcome) -> dict[str, Any]:
    """Write all files to `config.out`, and return what result.json holds. result.json comes last: where it is, the others are."""
    out = outcome.config.out
    records = outcome.journal.relative_to(outcome.started)
    save_weights(outcome.trainer.student, out / "student.safetensors")  # first: of all the files, what cannot be had again
    write_lines(out / "events.jsonl", records)
    write_text(out / "trace.json", json.dumps(to_trace(records, outcome.cores)))
    result = describe(outcome)
    write_json(out / "result.json", result)
    return result


def describe(outcome: Outcome) -> dict[str, Any]:
    """The content of result.json. Seconds are wall-clock but for comm_cpu_s; accuracy is a fraction."""
    journal, finished, config = outcome.journal, outcome.finished, outcome.config
    comm = [record for record in journal.records if record["event"] == "task" and record["task"] == "comm"]
    loss = outcome.trainer.last_loss
    return {
        "run_id": outcome.run_id,
        "edge_id": config.edge_id,
        "policy": config.policy,
        "seed": config.seed,
        "cycles": outcome.trainer.num_cycles,
        "wall_clock_s": outcome.ended - outcome.started,
        "disturbance": outcome.disturbance,
        "accuracy": outcome.accuracy,
        "alpha": config.alpha,
        "loss": loss if math.isfinite(loss) else None,
        "stall_s": journal.total_s(event="wait", why="logits"),
        "hold_s": journal.total_s(event="wait", why="hold"),
        "forward_s": journal.total_s(event="task", task="forward"),
        "backward_s": journal.total_s(event="task", task="backward"),
        "comm_s": journal.total_s(event="task", task="comm"),
        "comm_cpu_s": sum(record["cpu_s"] for record in comm),
        "comm_num_bytes": sum(record["num_bytes"] for record in comm),
        "num_cached_batches": sum(record["num_bytes"] == 0 for record in comm),
        "num_reconnects": finished.num_reconnects if finished else len(outcome.loop.comm_troubles),
        "num_refused_chunks": finished.num_refused_chunks if finished else None,
        "num_decisions": sum(record["event"] == "decision" for record in journal.records),
        "num_threads_churned": outcome.loop.num_threads_churned,
        "prefetch": outcome.prefetch,
        "torch_threads": outcome.max_threads,
        "comm_niceness": kind_of(config.policy).surroundings.comm_niceness,
        "comm_is_idle": kind_of(config.policy).surroundings.comm_is_idle,
        "openmp_wait": spinning_variables(os.environ),
        "valid": outcome.interruption is None and not outcome.loop.binding_refusals and math.isfinite(loss),
        "notes": list(_notes(outcome)),
        "teacher": asdict(outcome.described),
        "config": jsonable(asdict(config)),
        "host": describe_host(outcome.cores),
        "software": describe_software(),
    }


def _notes(outcome: Outcome) -> list[str]:
    """What a reader of the numbers must know: everything that was given up or went wrong."""
    loop, trainer = outcome.loop, outcome.trainer
    notes = [*outcome.notes, *loop.binding_refusals]
    if loop.comm_troubles:
        notes.append(f"the link failed {len(loop.comm_troubles)} times, the first time: {loop.comm_troubles[0]}")
    if trainer.num_cycles and not math.isfinite(trainer.last_loss):
        notes.append(f"the loss is {trainer.last_loss}: training diverged; try a smaller --lr")
    if outcome.interruption is not None:
        notes.append(f"broken off: {type(outcome.interruption).__name__}: {outcome.interruption}")
    return notes
