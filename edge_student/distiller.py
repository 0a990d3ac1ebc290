"""The Python interface: trains a student in this process, as `edge-student train` does."""

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from edge_student.host.borrowed import borrowed_process
from edge_student.monitor.metrics import Callback
from edge_student.run.objects import Objects, name_of
from edge_student.run.run import Run
from edge_student.run.signals import SignalHandler
from edge_student.settings.keywords import check_names, train_config
from edge_student.settings.link import PublicInputs
from edge_student.settings.student import TrainConfig
from edge_student.training.augment import Augment
from edge_student.training.loss import OwnLoss
from edge_student.training.schedule import LearningRateSchedule
from edgekd.cli.flags import hints_of
from edgekd.cli.optimizer_names import OptimizerName
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import dataset_of

DataSource = str | Dataset | Any
"""The name of a data set, or a map-style PyTorch data set of (x, y) or (x,)."""

_NAMED = ("model", "private", "public", "test", "loss", "augment", "schedule", "cycles", "epochs", "resume", "out")


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
        schedule: LearningRateSchedule | str = "constant",
        classes: Sequence[str] | None = None,
        callbacks: Sequence[Callback] = (),
        out: str | Path = "runs/distiller",
        **settings: Any,
    ) -> None:
        check_names(settings, hints_of(TrainConfig).keys() - {*_NAMED})
        if classes is not None and isinstance(private, str | Dataset):
            raise ValueError("classes names the classes of a data set of your own, but private has names already: omit it")
        if not isinstance(student, str | nn.Module):
            raise ValueError(
                f"student is a {type(student).__name__}, must be an instance of torch.nn.Module or the name of a model"
            )
        if callable(callbacks) or not all(map(callable, callbacks)):
            raise ValueError("callbacks must be a list of functions")
        if classes is not None and (isinstance(classes, str) or not all(isinstance(name, str) for name in classes)):
            raise ValueError("classes must be a list of names")
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

        A second call continues with the weights of the caller's module, unless there is `init`, and a new state of the optimizer; a
        student that is given by name is built again. With `resume`, training continues from the checkpoint in `out`, with the same
        bits as without the interruption. May be called in any thread; in the main thread, Ctrl-C saves a checkpoint and then raises
        KeyboardInterrupt.

        Raises ValueError for a wrong setting, edgekd.errors.WorldError if teacher or disk fail, and KeyboardInterrupt.
        """
        if cycles is not None and epochs is not None:
            raise ValueError(f"cycles is {cycles} and epochs is {epochs}: give one of them")
        config = self._config(cycles=200 if cycles is None else cycles, epochs=epochs, resume=resume)
        config.check_secrets()
        signals = SignalHandler()
        is_main = threading.current_thread() is threading.main_thread()
        student = self._objects.student
        trained = [] if student is None else [parameter for parameter in student.parameters() if parameter.requires_grad]
        num_threads, random_state = torch.get_num_threads(), torch.get_rng_state()
        try:
            with signals.installed() if is_main else nullcontext(), borrowed_process(config.cores) as cores:
                torch.set_num_threads(min(num_threads, len(cores)))  # torch counted the cores when it was loaded
                with Run(config, cores, signals, self._objects) as run:
                    details = run.execute()
        finally:
            torch.set_num_threads(num_threads)
            torch.set_rng_state(random_state)
            for parameter in trained:  # --freeze is for this training only
                parameter.requires_grad_(True)
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
        return train_config({**self._settings, **more})


def _is_sent(public: DataSource) -> bool:
    return isinstance(public, str) and public != "local" and public in get_args(PublicInputs)


def _data(source: DataSource, name: str, names: dict[str, Any], classes: Sequence[str] | None) -> Dataset | None:
    """Return the data set of an object, None for a name. Its name is put into `names`."""
    if isinstance(source, str):
        names[name] = source
        return None
    names[name] = source.name if isinstance(source, Dataset) else f"{name_of(type(source))} ({name})"
    return source if isinstance(source, Dataset) else dataset_of(source, names[name], classes)


def _function(value: Any, name: str, names: dict[str, Any]) -> Callable[..., Any] | None:
    if callable(value):
        return value  # type: ignore[no-any-return]
    names[name] = value
    return None
