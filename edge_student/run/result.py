"""What a run leaves behind: result.json, events.jsonl, trace.json and student.safetensors, whether it came to its end or not."""

import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_student.events.buffer import EventBuffer, moment
from edge_student.events.log_file import EventFile
from edge_student.events.perfetto import to_trace
from edge_student.host.environment import spinning_variables
from edge_student.host.provenance import describe_host, describe_software
from edge_student.ipc.messages import Described, Finished
from edge_student.run import checkpoint_file
from edge_student.run.caveats import Caveats
from edge_student.run.resume import Past
from edge_student.settings.student import TrainConfig, jsonable
from edge_student.training.trainer import Trainer
from edgekd.data.models import save_weights
from edgekd.files import write_json, write_text
from scheduler.live.loop import SchedulerLoop
from scheduler.policies.registry import kind_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that is over. Times are of the monotonic clock; `interruption` is what broke it off, None if nothing did.

    `past` is what it had behind it when it began in this process.
    """

    config: TrainConfig
    run_id: str
    cores: tuple[int, ...]
    trainer: Trainer
    loop: SchedulerLoop
    buffer: EventBuffer
    log: EventFile
    past: Past
    described: Described
    caveats: Caveats
    prefetch: int
    max_threads: int
    started: float
    ended: float
    disturbance: dict[str, Any] | None
    accuracy: float | None
    interruption: BaseException | None


FILES = ("result.json", "student.safetensors", "events.jsonl", "trace.json")

MOST_TRACED = 8 << 20
"""Bytes of events.jsonl that trace.json shows: what a viewer still opens, and what can be written while a machine shuts down."""


def make_way(out: Path, past: Past) -> None:
    """Remove what would not be of this run: an earlier one's files or, where it goes on, the result of the part before."""
    if past.resumed_at:
        (out / "result.json").unlink(missing_ok=True)  # where it is, it vouches for the other files
        return
    if (out / checkpoint_file.NEWEST).exists():
        logger.warning("%s held a checkpoint of an earlier run, which is replaced: --resume would have gone on from it", out)
    checkpoint_file.remove(out)
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def finished_before(config: TrainConfig, past: Past) -> dict[str, Any] | None:
    """The result of a run that has nothing left to do, if it is there whole and its own."""
    path = config.out / "result.json"
    if past.num_cycles < config.cycles or not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(result, dict) or result.get("accuracy") is None:
        return None
    return result if (result.get("cycles"), result.get("run_id")) == (config.cycles, past.run_id) else None


def caveats_of(loop: SchedulerLoop, log: EventFile, past: Past, finished: Finished | None, notes: Iterable[str]) -> Caveats:
    """What must be known of a run's figures by now, `notes` among it, and of what it has behind it."""
    told = [*notes, *loop.binding_refusals, *(f"cores were taken away or given back: {change}" for change in loop.cores.changes)]
    if log.has_lost_its_beginning:
        told.append("events.jsonl had lost what was logged before the checkpoint")
    if loop.comm_troubles:
        told.append(f"the link failed {len(loop.comm_troubles)} times, the first time: {loop.comm_troubles[0]}")
    caveats = Caveats(
        notes=tuple(told),
        is_ranked=not loop.binding_refusals and not loop.cores.changes,
        num_reconnects=finished.num_reconnects if finished else len(loop.comm_troubles),
        num_refused_chunks=finished.num_refused_chunks if finished else None,
        num_duplicate_chunks=finished.num_duplicate_chunks if finished else None,
    )
    return caveats.after(past.caveats)


def save(outcome: Outcome) -> dict[str, Any]:
    """Write all files to `config.out`, and return what result.json holds. result.json comes last: where it is, the others are."""
    out = outcome.config.out
    save_weights(outcome.trainer.student, out / "student.safetensors")  # first: of all the files, what cannot be had again
    outcome.log.append(outcome.buffer)
    records, are_all = outcome.log.tail(MOST_TRACED)
    write_text(out / "trace.json", json.dumps(to_trace(records, outcome.cores)))
    result = describe(outcome)
    if not are_all:
        result["notes"].append(f"trace.json begins {moment(records[0]):.1f} s after the start; events.jsonl has all")
    write_json(out / "result.json", result)
    return result


def describe(outcome: Outcome) -> dict[str, Any]:
    """The content of result.json. Seconds are wall-clock but for comm_cpu_s; accuracy is a fraction."""
    config, past, caveats = outcome.config, outcome.past, outcome.caveats
    loss = outcome.trainer.last_loss
    return {
        "run_id": outcome.run_id,
        "edge_id": config.edge_id,
        "policy": config.policy,
        "seed": config.seed,
        "cycles": outcome.trainer.num_cycles,
        "wall_clock_s": past.wall_clock_s + outcome.ended - outcome.started,
        "resumed_at": list(past.resumed_at),
        "disturbance": outcome.disturbance,
        "accuracy": outcome.accuracy,
        "alpha": config.alpha,
        "loss": loss if math.isfinite(loss) else None,
        **outcome.log.totals.to_json(),
        "num_reconnects": caveats.num_reconnects,
        "num_refused_chunks": caveats.num_refused_chunks,
        "num_duplicate_chunks": caveats.num_duplicate_chunks,
        "num_threads_churned": outcome.loop.num_threads_churned,
        "prefetch": outcome.prefetch,
        "torch_threads": outcome.max_threads,
        "comm_niceness": kind_of(config.policy).launch_options.comm_niceness,
        "comm_is_idle": kind_of(config.policy).launch_options.comm_is_idle,
        "openmp_wait": spinning_variables(os.environ),
        "valid": outcome.interruption is None and caveats.is_ranked and math.isfinite(loss),
        "notes": list(_notes(outcome)),
        "teacher": asdict(outcome.described),
        "config": jsonable(asdict(config)),
        "host": describe_host(outcome.cores),
        "software": describe_software(),
    }


def _notes(outcome: Outcome) -> list[str]:
    """What a reader of the numbers must know."""
    trainer, notes = outcome.trainer, list(outcome.caveats.notes)
    if outcome.past.resumed_at:
        cycles = ", ".join(map(str, outcome.past.resumed_at))
        notes.append(
            f"went on from a checkpoint at cycle {cycles}; wall-clock and totals are of what was kept, disturbance of the last part"
        )
    if trainer.num_cycles and not math.isfinite(trainer.last_loss):
        notes.append(f"the loss is {trainer.last_loss}: training diverged; try a smaller --lr")
        logger.warning(notes[-1])
    if outcome.interruption is not None:
        notes.append(f"broken off: {type(outcome.interruption).__name__}: {outcome.interruption}")
    return notes
