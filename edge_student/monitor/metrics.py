"""The metrics of a run while it trains: the progress bar, metrics.jsonl, TensorBoard and functions of the user."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_student.monitor.evaluation import Evaluation
from edge_student.training.trainer import Trainer
from edgekd.cli.progress import Progress
from scheduler.control.controller import Controller
from scheduler.live.loop import SchedulerLoop

NAME = "metrics.jsonl"
EVERY_S = 2.0
"""Seconds between two records."""

Callback = Callable[[Mapping[str, Any]], object]
"""A function that is called with every record: see `Metrics.record`. What it returns is ignored."""

logger = logging.getLogger(__name__)


class Metrics:
    """Records metrics every `EVERY_S` seconds and after each evaluation, and shows them beside the bar.

    A callback that fails, and a file that cannot be written, are dropped with a note: they do not end a training.
    """

    def __init__(
        self,
        *,
        out: Path,
        policy: str,
        cycles: int,
        trainer: Trainer,
        controller: Controller,
        loop: SchedulerLoop,
        evaluation: Evaluation,
        callbacks: Sequence[Callback] = (),
        former_s: float = 0.0,
    ) -> None:
        self._trainer, self._controller, self._loop, self._evaluation = trainer, controller, loop, evaluation
        self._policy, self._cycles = policy, cycles
        self._former_s = former_s
        self._sinks: dict[str, Callback] = {NAME: _Writer(out / NAME)}
        self._sinks |= {f"callback {number} ({_name_of(callback)})": callback for number, callback in enumerate(callbacks)}
        self._bar = Progress(policy, cycles, status=self._status)
        self._started = self._last_time = self._next = 0.0
        self._last_cycle = 0
        self._rate = 0.0
        self.notes: list[str] = []

    def begin(self, started: float, cycle: int) -> None:
        """Start the clock. `started` is when this part of the run began, on the monotonic clock."""
        self._started = self._last_time = started
        self._last_cycle = cycle
        self._next = started + EVERY_S

    def on_cycle(self, num_cycles: int) -> None:
        """Advance the bar, and write a record if it is due."""
        self._bar.reach(num_cycles)
        now = time.monotonic()
        was_evaluated = bool(self._evaluation.accuracies) and self._evaluation.accuracies[-1][0] == num_cycles
        if now >= self._next or was_evaluated:
            self._next = now + EVERY_S
            self._emit(num_cycles, now)

    def close(self) -> None:
        """Write the last record, and remove the bar."""
        if self._started:
            self._emit(self._trainer.num_cycles, time.monotonic())
        self._bar.close()

    def record(self, num_cycles: int, now: float) -> dict[str, Any]:
        """Return the metrics after `num_cycles` cycles.

        cycles: their planned number; time_s: seconds since the start of the run; loss: of the last cycle, null if it is not finite;
        lr: learning rate; accuracy: the last measured one, with accuracy_cycle; cycles_per_s: since the last record; waited_s:
        seconds in which training waited for logits; buffered: received batches that wait; allocation, reason, num_decisions: of the
        scheduler.
        """
        seconds = now - self._last_time
        if seconds > 0 and num_cycles > self._last_cycle:
            self._rate = (num_cycles - self._last_cycle) / seconds
        self._last_time, self._last_cycle = now, num_cycles
        loss, state, decision = self._trainer.last_loss, self._controller.state, self._loop.decision
        evaluated, accuracy = self._evaluation.accuracies[-1] if self._evaluation.accuracies else (None, None)
        return {
            "cycle": num_cycles,
            "cycles": self._cycles,
            "time_s": round(self._former_s + now - self._started, 3),
            "policy": self._policy,
            "loss": loss if math.isfinite(loss) else None,
            "lr": self._trainer.recipe.lr_of(max(0, num_cycles - 1)),
            "accuracy": accuracy,
            "accuracy_cycle": evaluated,
            "cycles_per_s": round(self._rate, 3),
            "waited_s": round(self._loop.logits_wait_s, 3),
            "buffered": max(0, state.num_comm - state.num_backward),
            "allocation": None if decision is None else str(decision.allocation),
            "reason": None if decision is None else decision.reason.value,
            "num_decisions": 0 if decision is None else decision.sequence + 1,
        }

    def _emit(self, num_cycles: int, now: float) -> None:
        record = self.record(num_cycles, now)
        for name, sink in list(self._sinks.items()):
            try:
                sink(record)
            except Exception as error:  # the user's code may raise anything
                del self._sinks[name]
                self.notes.append(f"{name} failed at cycle {num_cycles} and was not called again: {type(error).__name__}: {error}")
                logger.warning(self.notes[-1])

    def _status(self) -> str:
        """Return the text beside the bar."""
        loss, decision = self._trainer.last_loss, self._loop.decision
        parts = [f"loss {loss:.3f}"]
        if self._evaluation.accuracies:
            parts.append(f"acc {100 * self._evaluation.accuracies[-1][1]:.1f} %")
        if self._rate:
            parts.append(f"{self._rate:.1f}/s")
        if decision is not None:
            parts.append(str(decision.allocation))
        return "  ".join(parts)


class _Writer:
    """Appends records to a file, line by line, so that another program can follow it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, record: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def keep_until(path: Path, num_cycles: int) -> None:
    """Keep the records of a resumed run up to its checkpoint. A damaged line ends the file."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["cycle"] > num_cycles:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")


def _name_of(callback: Callback) -> str:
    return str(getattr(callback, "__qualname__", type(callback).__qualname__))
