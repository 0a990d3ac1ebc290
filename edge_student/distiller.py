"""The Python interface: trains a student in this process, as `edge-student train` does."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from torch import nn

from edge_student.host.environment import settle
from edge_student.monitor.metrics import Callback
from edge_student.run.objects import Objects, name_of
from edge_student.run.run import Run
from edge_student.run.signals import SignalHandler
from edge_student.settings.link import PublicInputs
from edge_student.settings.student import TrainConfig
from edge_student.training.augment import Augment
from edge_student.training.loss import OwnLoss
from edge_student.training.schedule import Schedule
from edgekd.cli.flags import hints_of
from edgekd.cli.optimizer_names import OptimizerName
from edgekd.cli.settings import closest
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import dataset_of
from scheduler.live.threads import allowed_cores, confine_process
from scheduler.policies.registry import kind_of

DataSource = str | Dataset | Any
"""The name of a data set, or a map-style PyTorch data set of (x, y) or (x,)."""

_RUNNING = threading.Lock()
_OBJECTS = ("model", "private", "public", "test", "loss", "augment", "schedule", "cycles", "epochs", "resume", "out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a training.

    `accuracy` is a fraction, None if there was no labelled test data. `loss` is that of the last cycle, in nats. `is_valid` says
    whether the run counts in a comparison of policies; `notes` say what happened. `details` is the content of result.json.
    """

    accuracy: float | None
    loss: float | None
    cycles: int
    wall_clock_s: float
    is_valid: bool
    notes: tuple[str, ...]
    details: dict[str, Any]


class Distiller:
    """Trains `student` with private data and a teacher's logits of public data (Eq. 1), under a scheduling policy.

    - `student`: a module that maps float32 [B, ...] to logits [B, classes], which is trained in place; or the name of a model.
    - `private`, `test`: data sets of (x, y), x uint8 or float32 of any shape, or names. The test data measure the accuracy.
    - `teacher`: the address "HOST:PORT" of `cloud-teacher serve`. Without one, `logits="offline"` reads a cache.
    - `public`: "local" (the public split of a named `private`), a data set or a name that the teacher serves too, or "stream" or
      "stored": the teacher sends the samples.
    - `loss`, `augment`, `schedule`: functions, or names as in `edge-student train --help`.
    - `classes`: names of the classes of `private` and `test`, in order, if these data sets have no attribute `classes`.
    - `callbacks`: functions that are called with a dict of metrics every two seconds.
    - `out`: folder for results and checkpoints.

    Every other setting has the name and the default of a flag of `edge-student train`, such as alpha=0.1, lr=0.05, shards=2. The
    student gets float32 samples unchanged and uint8 samples in [-1, 1], unless `normalize` says otherwise. Raises ValueError, with
    the words of the command line, for a wrong setting.
    """

    def __init__(
        self,
        student: nn.Module | str,
        *,
        private: DataSource,
        teacher: str | None = None,
        public: DataSource = "local",
        test: DataSource | None = None,
        policy: str = "adaptive",
        optimizer: OptimizerName = "sgd",
        loss: OwnLoss | str | None = None,
        augment: Augment | str = "none",
        schedule: Schedule | str = "constant",
        classes: Sequence[str] | None = None,
        callbacks: Sequence[Callback] = (),
        out: str | Path = "runs/distiller",
        **settings: Any,
    ) -> None:
        known = hints_of(TrainConfig).keys() - {*_OBJECTS}
        for name in settings:
            if name not in known:
                raise ValueError(f"unknown setting {name}{closest(name, known)}")
        names: dict[str, Any] = {}
        self._objects = Objects(
            student=None if isinstance(student, str) else student,
            private=_data(private, "private", names, classes),
            public=None if _is_sent(public) or public == "local" else _data(public, "public", names, None),
            test=None if test is None else _data(test, "test", names, classes),
            loss=_function(loss, "loss", names),
            augment=_function(augment, "augment", names),
            schedule=_function(schedule, "schedule", names),
            callbacks=tuple(callbacks),
        )
        names["model"] = student if isinstance(student, str) else name_of(type(student))
        if _is_sent(public):
            names["public_inputs"] = public
        elif public == "local" and self._objects.private is not None:
            raise ValueError('public is "local", but private is a data set of your own: name the public data, or "stream"')
        self._settings = {**names, "teacher": teacher, "policy": policy, "optimizer": optimizer, "out": Path(out), **settings}
        self._config(cycles=1)

    def fit(self, cycles: int | None = None, *, epochs: float | None = None, resume: bool = False) -> Result:
        """Train for `cycles` optimiser steps (200 by default) or `epochs` passes over the private data. Returns the result.

        A second call continues with the trained weights and a new state of the optimizer. With `resume`, training continues from
        the checkpoint in `out`, with the same bits as without the interruption. May be called in any thread; in the main thread,
        Ctrl-C saves a checkpoint and then raises KeyboardInterrupt.

        Raises ValueError for a wrong setting, edgekd.errors.WorldError if teacher or disk fail, and KeyboardInterrupt.
        """
        if cycles is not None and epochs is not None:
            raise ValueError(f"cycles is {cycles} and epochs is {epochs}: give one of them")
        config = self._config(cycles=200 if cycles is None else cycles, epochs=epochs, resume=resume)
        config.check_secrets()
        signals = SignalHandler()
        is_main = threading.current_thread() is threading.main_thread()
        if not _RUNNING.acquire(blocking=False):
            raise ValueError("another training runs in this process, which has one set of cores: wait for its end")
        try:
            with signals.installed() if is_main else nullcontext(), _cores(config) as cores:
                with Run(config, cores, signals, self._objects) as run:
                    details = run.execute()
        finally:
            _RUNNING.release()
        return Result(
            accuracy=details["accuracy"],
            loss=details["loss"],
            cycles=details["cycles"],
            wall_clock_s=details["wall_clock_s"],
            is_valid=details["valid"],
            notes=tuple(details["notes"]),
            details=details,
        )

    def _config(self, **more: Any) -> TrainConfig:
        given = {name: value for name, value in {**self._settings, **more}.items() if value is not None}
        hints = hints_of(TrainConfig)
        return TrainConfig(**{name: _converted(name, value, hints[name]) for name, value in given.items()})


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return a setting in its type, as the command line would read it. Raises ValueError in its words."""
    kinds = [kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if kind is not NoneType]
    flag = f"--{name.replace('_', '-')}"
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{flag} is {value!r}, must be {', '.join(map(repr, get_args(kind)))}")
            return value
        if issubclass(kind, Enum):
            known = [member.value for member in kind]
            if value not in known and not isinstance(value, kind):
                raise ValueError(f"{flag} is {value!r}, must be {', '.join(map(repr, known))}")
            return kind(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    raise ValueError(f"{flag} is {value!r}, must be {' or '.join(kind.__name__ for kind in kinds)}")


def _is_sent(public: DataSource) -> bool:
    return isinstance(public, str) and public != "local" and public in get_args(PublicInputs)


def _data(source: DataSource, name: str, names: dict[str, Any], classes: Sequence[str] | None) -> Dataset | None:
    """Return the data set of an object; None for a name, which is put into `names`."""
    if isinstance(source, str):
        names[name] = source
        return None
    return source if isinstance(source, Dataset) else dataset_of(source, name, classes)


def _function(value: Any, name: str, names: dict[str, Any]) -> Callable[..., Any] | None:
    if callable(value):
        return value  # type: ignore[no-any-return]
    names[name] = value
    return None


@contextmanager
def _cores(config: TrainConfig) -> Iterator[tuple[int, ...]]:
    """Confine the process to the cores of the settings, and give it its former cores back."""
    before = allowed_cores()
    try:
        yield settle(os.environ, config.cores, kind_of(config.policy).launch_options.spin_count)
    finally:
        confine_process(frozenset(before))
