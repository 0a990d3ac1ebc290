"""The command `train` of cloud-teacher: trains a model with SGD and a one-cycle schedule, and saves weights and a JSON description.

The training is deliberately simple. A teacher trained elsewhere works too: `serve` takes any weights that fit --model.
"""

import json
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from cloud_teacher.settings import TrainConfig
from edgekd.cli.progress import Progress
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset, resized
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.splits import contains_test, split_of
from edgekd.data.tensors import normalized
from edgekd.files import named_by, replace_atomically
from edgekd.models.accuracy import accuracy
from edgekd.models.build import build_model
from edgekd.models.card import ModelCard
from edgekd.models.classes import outputs_of, relabelled
from edgekd.models.devices import choose_device
from edgekd.models.input import choose_preprocessing
from edgekd.models.weights import save_weights, weights_digest

_EXIT_INTERRUPTED = 130

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> int:
    """Train, save FILE.safetensors and FILE.json, and return the exit status: 0, or 130 after Ctrl-C or SIGTERM.

    Raises ValueError for invalid settings, and if the loss becomes infinite or NaN.
    """
    started = time.perf_counter()
    device = choose_device(config.device)
    dataset, test = _load(config.dataset, config.test)
    preprocessing = choose_preprocessing(
        config.model, dataset.input_shape, dataset.inputs.dtype, normalize=config.normalize, resize=config.resize
    )
    dataset, test = resized(dataset, preprocessing), resized(test, preprocessing)
    shape = preprocessing.shape_of(dataset.input_shape)
    model = build_model(config.model, num_classes=dataset.num_classes, input_shape=shape, seed=config.seed)
    with named_by("--out"):
        config.out.parent.mkdir(parents=True, exist_ok=True)
    logger.info("training on %d samples of %s with %s on %s", len(dataset.labels), dataset.name, config.model, device)
    training = _Training(model.to(device), dataset, test, config, device, preprocessing)
    with _stop_on_signal() as is_stopped:
        training.run(is_stopped)
    if training.num_steps == 0:
        logger.warning("interrupted before the first step: saved nothing")
        return _EXIT_INTERRUPTED
    test_accuracy = accuracy(model, test, device, preprocessing)
    card = ModelCard(
        preprocessing=preprocessing,
        model=config.model,
        input_shape=shape,
        class_names=dataset.class_names,
        num_classes=dataset.num_classes,
        digest=weights_digest(config.model, model, preprocessing),
        accuracy=test_accuracy,
    )
    save_weights(model, config.out, card)
    description = {
        **card.as_json(),
        "dataset": config.dataset,
        "dataset_digest": dataset.digest,
        "epochs": training.num_epochs,
        "seed": config.seed,
        "wall_clock_s": round(time.perf_counter() - started, 3),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "host": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {device}",
    }
    text = json.dumps(description, indent=2) + "\n"
    replace_atomically(config.out.with_suffix(".json"), lambda fresh: fresh.write_text(text))
    if training.is_interrupted:
        logger.warning("interrupted after %d of %d epochs: saved the weights of the last step", training.num_epochs, config.epochs)
    logger.info("%s: test accuracy %.1f %%, %.1f s", config.out, 100 * test_accuracy, description["wall_clock_s"])
    return _EXIT_INTERRUPTED if training.is_interrupted else 0


class _Training:
    """The training loop and its progress."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        test: Dataset,
        config: TrainConfig,
        device: torch.device,
        preprocessing: Preprocessing,
    ) -> None:
        self._model, self._dataset, self._test, self._config = model, dataset, test, config
        self._device, self._preprocessing = device, preprocessing
        # The incomplete last batch is dropped: batch normalization fails for a batch of one sample.
        self._batch_size = min(config.batch_size, len(dataset.labels))
        self._steps_per_epoch = len(dataset.labels) // self._batch_size
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, config.lr, total_steps=config.epochs * self._steps_per_epoch, cycle_momentum=False
        )
        self.num_steps = 0
        self.num_epochs = 0
        self.is_interrupted = False

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Train all epochs, or until `is_stopped` returns true. Raises ValueError if the loss is infinite or NaN."""
        rng = np.random.default_rng(self._config.seed)
        epochs = self._config.epochs
        with Progress("training", epochs * self._steps_per_epoch, is_logged=False) as progress:
            for epoch in range(1, epochs + 1):
                started = time.perf_counter()
                loss = self._epoch(rng.permutation(len(self._dataset.labels)), is_stopped, progress)
                if loss is None:
                    self.is_interrupted = True
                    return
                if not np.isfinite(loss):
                    raise ValueError(f"the loss is {loss} in epoch {epoch}, must be finite: lower --lr, which is {self._config.lr}")
                self.num_epochs = epoch
                test_accuracy = accuracy(self._model, self._test, self._device, self._preprocessing)
                seconds = time.perf_counter() - started
                progress.line(
                    f"epoch {epoch}/{epochs}  loss {loss:.4f}  test accuracy {100 * test_accuracy:.1f} %  {seconds:.1f} s"
                )

    def _epoch(self, order: np.ndarray, is_stopped: Callable[[], bool], progress: Progress) -> float | None:
        """Train one epoch. Returns the mean loss, or None if it was interrupted."""
        self._model.train()
        losses = []
        for begin in range(0, self._steps_per_epoch * self._batch_size, self._batch_size):
            if is_stopped():
                return None
            losses.append(self._step(order[begin : begin + self._batch_size]))
            progress.advance()
        return float(torch.stack(losses).mean())

    def _step(self, ids: np.ndarray) -> torch.Tensor:
        inputs = normalized(self._dataset.inputs[ids], self._preprocessing).to(self._device)
        labels = torch.from_numpy(self._dataset.labels[ids]).to(self._device)
        loss = nn.functional.cross_entropy(self._model(inputs), labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        self.num_steps += 1
        return loss.detach()


def _load(spec: str, test_spec: str | None) -> tuple[Dataset, Dataset]:
    """Load the training set and the test set, by default the test split of the same data set."""
    if spec.endswith(":test"):
        base = spec.removesuffix(":test")
        raise ValueError(f"--dataset is {spec}, but accuracy is measured on the test split: train on {base}:public or {base}")
    if test_spec is None and contains_test(spec):
        raise ValueError(f"--dataset is {spec}, which contains the test split: name other data with --test")
    dataset, test = load_dataset(spec), load_dataset(test_spec or split_of(spec, "test"))
    for flag, data in (("--dataset", dataset), ("--test", test)):
        if not data.is_labelled:
            raise ValueError(f"{flag} is {data.name}, which has no labels: name a data set with classes")
    if missing := [name for name in test.class_names if name not in dataset.class_names]:
        raise ValueError(
            f"{test.name} has the class {missing[0]!r}, which {dataset.name} lacks: name test data of the same classes"
        )
    if test.class_names != dataset.class_names:
        outputs = outputs_of(test.class_names, dataset.class_names, None, edge=test.name, source=dataset.name)
        test = relabelled(test, outputs, dataset.class_names)
    return dataset, test


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Record Ctrl-C and SIGTERM, so that the current step completes. A second signal raises KeyboardInterrupt."""
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
