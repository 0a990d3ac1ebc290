"""When a run writes a checkpoint, and what goes into it: all that resuming.py wants to know of it in another process."""

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
from edge_student.run.resume import Past
from edge_student.settings.student import TrainConfig
from edge_student.training.trainer import Trainer
from scheduler.control.controller import Controller

logger = logging.getLogger(__name__)

FULL_JOURNAL = 20_000
"""Records in memory that are worth a checkpoint before its time: some tens of MB."""


class Checkpoints:
    """Writes the checkpoints of one run into `config.out`: `begin`, `on_cycle` after every cycle, and `end`, however it ends.

    `identity` is what stays the same in all of them: run_id, recipe and teacher. `caveats` tells what a reader of the result must
    know by now. One that cannot be written (a full disk) is no reason to stop training: it is logged, and `notes` tells. Without
    --checkpoint-every there are none.
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
        past: Past,
        caveats: Callable[[], Caveats],
    ) -> None:
        self._config, self._identity, self._caveats = config, dict(identity), caveats
        self._trainer, self._controller, self._buffer, self._log = trainer, controller, buffer, log
        self._past, self._started, self._next = past, 0.0, math.inf
        self._failures: list[str] = []
        self._student_bytes = sum(tensor.nbytes for tensor in trainer.student.state_dict().values())
        self._bytes = 2 * self._student_bytes  # of one, as far as one can tell before the first

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether some could not be written."""
        if not self._failures:
            return ()
        return (f"{len(self._failures)} times a checkpoint or its log could not be written, first {self._failures[0]}",)

    def begin(self, started: float) -> None:
        """The clock of this part of the run began so, on the monotonic clock."""
        self._log.start = started - self._past.wall_clock_s
        self._started = started
        if self._config.checkpoint_every:
            self._next = started + self._config.checkpoint_every

    def end(self, ended: float) -> None:
        """The clock has stopped: write the last one."""
        if self._config.checkpoint_every:
            self._write(ended)

    def on_cycle(self) -> None:
        """Write one if it is time. In the compute thread, between two cycles, and not to be broken off."""
        now = time.monotonic()
        is_due = now >= self._next or (len(self._buffer.records) >= FULL_JOURNAL and not self._failures)
        if self._config.checkpoint_every and is_due:
            was_written = self._write(now)
            ended = time.monotonic()
            self._next = ended + self._config.checkpoint_every
            if was_written:
                self._buffer.record({"event": "checkpoint", "index": self._trainer.num_cycles, "started": now, "ended": ended})

    def _write(self, now: float) -> bool:
        """One of the last cycle's end, and all that has been logged until now; whether both could be.

        A log that finds no room keeps no checkpoint from being written: what it could not take stays in memory.
        """
        failed = [action for action in (self._append, lambda: self._save(now)) if not self._try(action)]
        return not failed

    def _append(self) -> None:
        """On a small disk the log, which grows, leaves the room of what matters: two checkpoints, a fresh one, the student."""
        still_to_come = 1 + sum(not (self._config.out / name).exists() for name in (checkpoint_file.NEWEST, checkpoint_file.BEFORE))
        self._log.append(self._buffer, keep_free=still_to_come * self._bytes + self._student_bytes)

    def _save(self, now: float) -> None:
        self._bytes = checkpoint_file.save(self._config.out, self._checkpoint(now))

    def _try(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except OSError as error:
            self._failures.append(f"at cycle {self._trainer.num_cycles}, {error.filename}: {error.strerror}")
            remedy = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            logger.warning("not written %s%s", self._failures[-1], remedy)
            return False
        return True

    def _checkpoint(self, now: float) -> Checkpoint:
        loss = self._trainer.last_loss
        facts = {
            **self._identity,
            "num_cycles": self._trainer.num_cycles,
            "totals": self._log.totals.to_json(),
            "marks": asdict(self._caveats()),
            "wall_clock_s": self._past.wall_clock_s + now - self._started,
            "events_bytes": self._log.num_bytes,
            "loss": loss if math.isfinite(loss) else None,
            "resumed_at": list(self._past.resumed_at),
            "learnt": self._controller.to_json(),
        }
        return Checkpoint(facts=facts, tensors=self._trainer.snapshot())
