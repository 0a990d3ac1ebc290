"""Measures the accuracy during a training, and ends the training when it no longer improves."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from edge_student.training.frozen import set_training
from edge_student.training.trainer import Trainer
from edgekd.data.dataset import Dataset
from scheduler.model.checked_json import is_whole

logger = logging.getLogger(__name__)


class StoppedEarly(Exception):
    """The accuracy has not improved in the last evaluations."""


class Evaluation:
    """Evaluates every `every` cycles, and stops after `early_stop` evaluations without a higher accuracy; None for never."""

    def __init__(
        self,
        trainer: Trainer,
        test: Dataset | None,
        *,
        every: int | None,
        early_stop: int | None,
        former: Sequence[tuple[int, float]] = (),
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        self._trainer = trainer
        self._test = test
        self._every = every
        self._early_stop = early_stop
        self._record = record
        self.accuracies: list[tuple[int, float]] = list(former)
        """Pairs of (cycles, accuracy), in order; a resumed run begins with those of its earlier part."""
        self.seconds = 0.0
        """Time of the evaluations in this process."""

    @property
    def is_over(self) -> bool:
        """Whether the training should end."""
        if self._early_stop is None or not self.accuracies:
            return False
        values = [accuracy for _, accuracy in self.accuracies]
        return len(values) - 1 - values.index(max(values)) >= self._early_stop

    def on_cycle(self, num_cycles: int) -> None:
        """Measure the accuracy, a fraction, after `num_cycles` cycles if it is due. Raises StoppedEarly."""
        if self._every is None or self._test is None or num_cycles % self._every:
            return
        started = time.monotonic()
        accuracy = self._trainer.accuracy(self._test)
        set_training(self._trainer.student, self._trainer.recipe.frozen)
        ended = time.monotonic()
        self.seconds += ended - started
        self.accuracies.append((num_cycles, accuracy))
        self._record({"event": "evaluation", "index": num_cycles, "accuracy": accuracy, "started": started, "ended": ended})
        logger.info("cycle %d: accuracy %.4f, loss %.4f", num_cycles, accuracy, self._trainer.last_loss)
        self._check()

    def begin(self, num_cycles: int) -> None:
        """Make up for the evaluation after cycle `num_cycles`, which an interruption has prevented. Raises StoppedEarly."""
        if num_cycles and (not self.accuracies or self.accuracies[-1][0] < num_cycles):
            self.on_cycle(num_cycles)
        self._check()

    def _check(self) -> None:
        if self.is_over:
            best_cycle, best = max(self.accuracies, key=lambda pair: pair[1])
            raise StoppedEarly(
                f"the accuracy has not risen above {best:.4f}, that of cycle {best_cycle}, in {self._early_stop} evaluations"
            )


def parse_accuracies(value: Any, where: str) -> tuple[tuple[int, float], ...]:
    """Return the accuracies of a checkpoint. Raises ValueError."""
    is_valid = isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and is_whole(pair[0]) and isinstance(pair[1], float | int) for pair in value
    )
    if not is_valid:
        raise ValueError(f"{where}: accuracies must be pairs of cycles and accuracy")
    return tuple((pair[0], float(pair[1])) for pair in value)
