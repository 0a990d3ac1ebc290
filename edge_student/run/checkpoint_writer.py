"""Writes the checkpoints of a run: decides when, and collects the content that `resume` reads in another process."""

import errno
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from edge_student.events.buffer import EventBuffer
from edge_student.events.log_file import EventFile
from edge_student.run import checkpoint_file
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_file import Checkpoint
from edge_student.run.resume import ResumeState
from edge_student.settings.student import TrainConfig
from edge_student.training.trainer import Trainer
from scheduler.control.controller import Controller

logger = logging.getLogger(__name__)

MAX_BUFFERED_RECORDS = 20_000
"""Number of records in memory (some tens of MB) that triggers a checkpoint before its time."""


class CheckpointWriter:
    """Writes the checkpoints of one run into `config.out`. Call `begin`, `on_cycle` after every cycle, and `end` in all cases.

    `identity` has the constant values: run_id, recipe and teacher. `caveats` returns the caveats so far. A failed write (for
    example a full disk) does not stop training: it is logged and added to `notes`. With --checkpoint-every 0 nothing is written.
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
    ) -> None:
        self._config, self._identity, self._caveats = config, dict(identity), caveats
        self._trainer, self._controller, self._buffer, self._log = trainer, controller, buffer, log
        self._resumed, self._started, self._next = resumed, 0.0, math.inf
        self._failures: list[str] = []
        self._student_bytes = sum(tensor.nbytes for tensor in trainer.student.state_dict().values())
        self._checkpoint_bytes = 2 * self._student_bytes  # an estimate, until the first checkpoint is written

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
        """Append to the log, but keep disk space free for two checkpoints, a temporary one, and the student's weights."""
        names = (checkpoint_file.NEWEST, checkpoint_file.PREVIOUS)
        num_missing = 1 + sum(not (self._config.out / name).exists() for name in names)
        self._log.append(self._buffer, keep_free=num_missing * self._checkpoint_bytes + self._student_bytes)

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
        }
        return Checkpoint(facts=facts, tensors=self._trainer.snapshot())
