"""Writes the files of a finished or interrupted run: result.json, events.jsonl, trace.json and student.safetensors."""

import errno
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
from edge_student.host.disturbance import DISTURBED
from edge_student.host.environment import spinning_variables
from edge_student.host.provenance import describe_host, describe_software
from edge_student.ipc.messages import Described, Finished
from edge_student.monitor.evaluation import Evaluation
from edge_student.monitor.metrics import NAME as METRICS
from edge_student.monitor.metrics import keep_until
from edge_student.monitor.promise import Promise
from edge_student.run import checkpoint_file
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_writer import RESULT_FILES
from edge_student.run.resume import ResumeState
from edge_student.settings.student import TrainConfig, jsonable
from edge_student.training.trainer import Trainer
from edgekd.files import free_bytes, write_json, write_text
from edgekd.models.card import ModelCard
from edgekd.models.weights import save_weights
from scheduler.live.loop import SchedulerLoop
from scheduler.policies.registry import kind_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Data of a run that has ended. Times are of the monotonic clock.

    `resumed` is the state at the start in this process. `interruption` is the exception that ended the run early, or None.
    `disturbances` has a sentence for each disturbance by other programs. `is_unlabelled` says that no accuracy can be measured.
    """

    config: TrainConfig
    run_id: str
    cores: tuple[int, ...]
    trainer: Trainer
    loop: SchedulerLoop
    buffer: EventBuffer
    log: EventFile
    resumed: ResumeState
    described: Described
    card: ModelCard
    caveats: Caveats
    prefetch: int
    comm_is_idle: bool
    max_threads: int
    num_shards: int
    started: float
    ended: float
    disturbance: dict[str, Any] | None
    disturbances: list[str]
    promise: Promise
    evaluation: Evaluation
    accuracy: float | None
    is_unlabelled: bool
    interruption: BaseException | None


_RESULT_BYTES = 128 << 10
"""Disk space that events.jsonl and trace.json leave for result.json."""

MAX_TRACE_BYTES = 8 << 20
"""Bytes of events.jsonl that trace.json covers. A viewer can open that much, and a machine can write it during shutdown."""


def remove_old_files(out: Path, resumed: ResumeState) -> None:
    """Remove the files of an earlier run. A resumed run keeps its files, except result.json of its earlier part."""
    if resumed.resumed_at:
        (out / "result.json").unlink(missing_ok=True)  # result.json marks the other files as complete
        keep_until(out / METRICS, resumed.num_cycles)
        return
    if (out / checkpoint_file.NEWEST).exists():
        logger.warning("removing the checkpoint of an earlier run in %s; use --resume to continue such a run", out)
    checkpoint_file.remove(out)
    for name in RESULT_FILES:
        (out / name).unlink(missing_ok=True)


def load_finished_result(config: TrainConfig, resumed: ResumeState) -> dict[str, Any] | None:
    """Return the result of a resumed run that has completed all cycles; None if cycles or a valid result are missing."""
    path = config.out / "result.json"
    if resumed.num_cycles < config.cycles or not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(result, dict) or (result.get("accuracy") is None and not result.get("is_unlabelled")):
        return None
    return result if (result.get("cycles"), result.get("run_id")) == (config.cycles, resumed.run_id) else None


def collect_caveats(
    loop: SchedulerLoop, log: EventFile, resumed: ResumeState, finished: Finished | None, notes: Iterable[str]
) -> Caveats:
    """Return the caveats of a run so far: `notes`, those of scheduler, log and link, and those of its earlier parts."""
    all_notes = [*notes, *loop.binding_refusals, *(f"the allowed cores changed: {change}" for change in loop.cores.changes)]
    if log.has_lost_records:
        all_notes.append("events.jsonl lacks the records before the checkpoint")
    if loop.comm_troubles:
        all_notes.append(f"the link failed {len(loop.comm_troubles)} times, the first time: {loop.comm_troubles[0]}")
    if loop.class_refusal:
        all_notes.append(f"comm kept its scheduling class: {loop.class_refusal}")
    if loop.late_comm_failure:
        all_notes.append(f"after the last batch: {loop.late_comm_failure}")
    caveats = Caveats(
        notes=tuple(all_notes),
        is_ranked=not loop.binding_refusals and not loop.cores.changes,
        num_reconnects=finished.num_reconnects if finished else len(loop.comm_troubles),
        num_refused_chunks=finished.num_refused_chunks if finished else None,
        num_duplicate_chunks=finished.num_duplicate_chunks if finished else None,
    )
    return caveats.after(resumed.caveats)


def save(outcome: Outcome) -> dict[str, Any]:
    """Write all files to `config.out` and return the content of result.json, which is written last to mark the others complete.

    A disk without the space for events.jsonl or trace.json costs these files, not the result. A note names the loss.
    """
    out, notes = outcome.config.out, []
    # First, because the weights cannot be recovered otherwise.
    save_weights(outcome.trainer.student, out / "student.safetensors", outcome.card)
    try:
        outcome.log.append(outcome.buffer, keep_free=_RESULT_BYTES)
        records, are_all = outcome.log.tail(MAX_TRACE_BYTES)
        trace = json.dumps(to_trace(records, outcome.cores))
        if len(trace) > free_bytes(out) - _RESULT_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "trace.json"))
        write_text(out / "trace.json", trace)
        if not are_all:
            notes.append(f"trace.json begins {moment(records[0]):.1f} s after the start; events.jsonl is complete")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        outcome.log.drop(outcome.buffer)
        (out / "trace.json").unlink(missing_ok=True)
        notes.append(f"the disk has no space for {Path(error.filename).name}: the last events or the trace are missing")
        logger.warning("%s: %s; free disk space for the event log of the next run", error.filename, error.strerror)
    result = describe(outcome)
    result["notes"] += notes
    write_json(out / "result.json", result)
    return result


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return the content of result.json. Seconds are wall-clock, except comm_cpu_s. Accuracy is a fraction."""
    config, resumed, caveats = outcome.config, outcome.resumed, outcome.caveats
    loss = outcome.trainer.last_loss
    return {
        "run_id": outcome.run_id,
        "edge_id": config.edge_id,
        "policy": config.policy,
        "seed": config.seed,
        "cycles": outcome.trainer.num_cycles,
        "private_steps": outcome.trainer.num_private_steps,
        "wall_clock_s": resumed.wall_clock_s + outcome.ended - outcome.started,
        "resumed_at": list(resumed.resumed_at),
        "disturbance": outcome.disturbance,
        "accuracy": outcome.accuracy,
        "accuracies": [list(pair) for pair in outcome.evaluation.accuracies],
        "evaluation_s": outcome.evaluation.seconds,
        "is_unlabelled": outcome.is_unlabelled,
        "alpha": config.alpha,
        "loss": loss if math.isfinite(loss) else None,
        **outcome.log.totals.to_json(),
        "num_reconnects": caveats.num_reconnects,
        "num_refused_chunks": caveats.num_refused_chunks,
        "num_duplicate_chunks": caveats.num_duplicate_chunks,
        "prefetch": outcome.prefetch,
        "torch_threads": outcome.max_threads,
        "shards": outcome.num_shards,
        "comm_niceness": kind_of(config.policy).launch_options.comm_niceness,
        "comm_is_idle": outcome.comm_is_idle,
        "openmp_wait": spinning_variables(os.environ),
        "valid": outcome.interruption is None and caveats.is_ranked and math.isfinite(loss),
        "notes": list(_notes(outcome)),
        "teacher": asdict(outcome.described),
        "config": jsonable(asdict(config)),
        "host": describe_host(outcome.cores),
        "software": describe_software(),
    }


def _notes(outcome: Outcome) -> list[str]:
    """Return the notes of result.json: the caveats, resumes, divergence and interruption."""
    trainer, notes = outcome.trainer, list(outcome.caveats.notes)
    if outcome.resumed.resumed_at:
        cycles = ", ".join(map(str, outcome.resumed.resumed_at))
        notes.append(
            f"resumed from a checkpoint at cycle {cycles}: wall-clock and totals cover all kept cycles, disturbance the last part"
        )
    if trainer.num_private_steps:
        notes.append(f"{trainer.num_private_steps} steps on private data alone filled the time without logits")
        logger.info(notes[-1])
    if trainer.num_cycles and not math.isfinite(trainer.last_loss):
        notes.append(f"the loss is {trainer.last_loss}: training diverged; try a smaller --lr")
        logger.warning(notes[-1])
    broken = outcome.promise.broken(
        trainer.num_cycles - outcome.resumed.num_cycles,
        outcome.ended - outcome.evaluation.seconds,
        outcome.loop.logits_wait_s,
        [*outcome.disturbances, *outcome.caveats.notes],
    )
    if broken is not None:
        notes.append(broken)
        logger.warning(broken)
    for found in outcome.disturbances:
        notes.append(f"{DISTURBED}{found}")
        logger.info(notes[-1])
    if outcome.interruption is not None:
        notes.append(f"interrupted: {type(outcome.interruption).__name__}: {outcome.interruption}")
    return notes
