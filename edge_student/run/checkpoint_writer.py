"""Writes the checkpoints of a run: decides when, and collects the content that `resume` reads in another process."""

import errno
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edge_student.events.buffer import EventBuffer
from edge_student.events.log_file import EventFile
from edge_student.monitor.metrics import NAME as METRICS
from edge_student.run import checkpoint_file
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_file import Checkpoint
from edge_student.run.resume import ResumeState
from edge_student.settings.student import TrainConfig
from edge_student.training.optimizers import OptimizerRule
from edge_student.training.trainer import Trainer
from edgekd.errors import WorldError
from edgekd.files import free_bytes
from scheduler.control.controller import Controller

RESULT_FILES = ("result.json", "student.safetensors", "events.jsonl", "trace.json", METRICS)

logger = logging.getLogger(__name__)

_OTHER_BYTES = 128 << 10
"""Disk space of a run besides weights and checkpoints: result.json and the first events."""
MAX_BUFFERED_RECORDS = 20_000
"""Number of records in memory (some tens of MB) that triggers a checkpoint before its time."""


class CheckpointWriter:
    """Writes the checkpoints of one run into `config.out`. Call `begin`, `on_cycle` after every cycle, and `end` in all cases.

    `identity` has the constant values: run_id, recipe and teacher. `caveats` returns the caveats so far, `accuracies` grows with
    the evaluations. A failed write (for example a full disk) does not stop training: it is logged and added to `notes`. With
    --checkpoint-every 0 nothing is written.
    """

    def __init__(
        self,
        *,
        config: TrainConfig,
        identity: Mapping[str, Any],
        trainer: Trainer,
        controller: Controller,
        buffer: EventBuffer,
        log: EventFile,
        resumed: ResumeState,
        caveats: Callable[[], Caveats],
        accuracies: Sequence[tuple[int, float]],
    ) -> None:
        self._config, self._identity, self._caveats = config, dict(identity), caveats
        self._trainer, self._controller, self._buffer, self._log = trainer, controller, buffer, log
        self._accuracies = accuracies
        self._resumed, self._started, self._next = resumed, 0.0, math.inf
        self._failures: list[str] = []
        self._student_bytes = _size_of(trainer.student)
        self._checkpoint_bytes = _arrays_of(config) * self._student_bytes  # an estimate, until the first checkpoint is written

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a note on failed writes, if there were any."""
        if not self._failures:
            return ()
        return (f"{len(self._failures)} writes of a checkpoint or of events.jsonl failed, the first {self._failures[0]}",)

    def begin(self, started: float) -> None:
        """Start the checkpoint timer. `started` is when this part of the run began, on the monotonic clock."""
        self._log.start = started - self._resumed.wall_clock_s
        self._started = started
        if self._config.checkpoint_every:
            self._next = started + self._config.checkpoint_every

    def end(self, ended: float) -> None:
        """Write the last checkpoint. `ended` is when this part of the run ended, on the monotonic clock."""
        if self._config.checkpoint_every:
            self._write(ended)

    def on_cycle(self) -> None:
        """Write a checkpoint if it is due. Call it in the compute thread between two cycles, with signals deferred."""
        now = time.monotonic()
        is_due = now >= self._next or (len(self._buffer.records) >= MAX_BUFFERED_RECORDS and not self._failures)
        if self._config.checkpoint_every and is_due:
            was_written = self._write(now)
            ended = time.monotonic()
            self._next = ended + self._config.checkpoint_every
            if was_written:
                self._buffer.record({"event": "checkpoint", "index": self._trainer.num_cycles, "started": now, "ended": ended})

    def _write(self, now: float) -> bool:
        """Append the buffered records to the log and write a checkpoint of the last cycle's end; return whether both succeeded.

        If the log cannot be written, its records stay in memory, and the checkpoint is written all the same.
        """
        succeeded = [self._try(action) for action in (self._append_log, lambda: self._save(now))]
        return all(succeeded)

    def _append_log(self) -> None:
        """Append to the log, but keep disk space free for the files that matter more."""
        needed = _bytes_of_files(self._config.out, self._student_bytes, self._checkpoint_bytes)
        self._log.append(self._buffer, keep_free=needed)

    def _save(self, now: float) -> None:
        self._checkpoint_bytes = checkpoint_file.save(self._config.out, self._checkpoint(now))

    def _try(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except OSError as error:
            self._failures.append(f"at cycle {self._trainer.num_cycles}, {error.filename}: {error.strerror}")
            remedy = "; free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            logger.warning("checkpoint or log not written %s%s", self._failures[-1], remedy)
            return False
        return True

    def _checkpoint(self, now: float) -> Checkpoint:
        loss = self._trainer.last_loss
        facts = {
            **self._identity,
            "num_cycles": self._trainer.num_cycles,
            "totals": self._log.totals.to_json(),
            "marks": asdict(self._caveats()),
            "wall_clock_s": self._resumed.wall_clock_s + now - self._started,
            "events_bytes": self._log.num_bytes,
            "loss": loss if math.isfinite(loss) else None,
            "resumed_at": list(self._resumed.resumed_at),
            "learnt": self._controller.to_json(),
            "accuracies": [list(pair) for pair in self._accuracies],
            "num_private_steps": self._trainer.num_private_steps,
        }
        return Checkpoint(facts=facts, tensors=self._trainer.snapshot())


def check_space(config: TrainConfig, student: torch.nn.Module, *, is_resumed: bool) -> None:
    """Raise WorldError, with the sizes, if the disk of --out cannot hold the weights and the checkpoints of a run.

    A new run replaces the files of an earlier one, so their space counts as free.
    """
    out, has_checkpoints = config.out, config.checkpoint_every > 0
    student_bytes = _size_of(student)
    needed = _OTHER_BYTES + (
        _bytes_of_files(out, student_bytes, _arrays_of(config) * student_bytes) if has_checkpoints else student_bytes
    )
    free = free_bytes(out)
    if not is_resumed:
        replaced = [out / name for name in (*checkpoint_file.FILES, *RESULT_FILES)]
        free += sum(file.stat().st_size for file in replaced if file.is_file())
    if needed > free:
        subject = "the student and its checkpoints need" if has_checkpoints else "the student needs"
        remedy = ", or train with --checkpoint-every 0" if has_checkpoints else ""
        raise WorldError(f"{subject} {needed:,} bytes, but the disk of {out} has {free:,.0f}: free some space{remedy}")


def _bytes_of_files(out: Path, student_bytes: int, checkpoint_bytes: int) -> int:
    """Return the bytes of two checkpoints, unless they exist, a temporary one, and the student's weights."""
    names = (checkpoint_file.NEWEST, checkpoint_file.PREVIOUS)
    return (1 + sum(not (out / name).exists() for name in names)) * checkpoint_bytes + student_bytes


def _arrays_of(config: TrainConfig) -> int:
    """Return the number of arrays of a checkpoint that are as large as the student: the student and the optimizer's states."""
    return 1 + len(OptimizerRule(name=config.optimizer).state_names)


def _size_of(student: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in student.state_dict().values())
