"""What `cloud-teacher train` does: learn a data set with SGD under a one-cycle schedule, save the weights and a card about them.

Plain on purpose. A teacher made elsewhere does as well: `serve` takes any weights that fit a model's name.
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
from edgekd.data.datasets import load_dataset
from edgekd.data.devices import choose_device
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.models import build_model, save_weights, weights_digest
from edgekd.data.sources import SPLITS
from edgekd.data.tensors import to_input
from edgekd.files import named_by, replace_atomically

_EVALUATION_BATCH = 512
_EXIT_INTERRUPTED = 130

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> int:
    """Train, save FILE.safetensors and FILE.json, and return the exit status: 0, or 130 if Ctrl-C or SIGTERM cut it short.

    Raises ValueError for names and sizes that cannot be, and if the loss stops being finite.
    """
    begun = time.perf_counter()
    device = choose_device(config.device)
    dataset, test = _load(config.dataset)
    model = build_model(config.model, num_classes=dataset.num_classes, input_shape=dataset.images.shape[1:], seed=config.seed)
    with named_by("--out"):
        config.out.parent.mkdir(parents=True, exist_ok=True)
    logger.info("learning %d samples of %s with %s on %s", len(dataset.labels), dataset.name, config.model, device)
    training = _Training(model.to(device), dataset, test, config, device)
    with _stop_on_signal() as is_stopped:
        training.run(is_stopped)
    if training.num_steps == 0:
        logger.warning("interrupted before the first step: nothing was saved")
        return _EXIT_INTERRUPTED
    accuracy = evaluate(model, test, device)
    save_weights(model, config.out)
    card = {
        "teacher_digest": weights_digest(config.model, model),
        "dataset": config.dataset,
        "dataset_digest": dataset.digest,
        "model": config.model,
        "num_classes": dataset.num_classes,
        "accuracy": accuracy,
        "epochs": training.num_epochs,
        "seed": config.seed,
        "wall_clock_s": round(time.perf_counter() - begun, 3),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "host": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, {device}",
    }
    text = json.dumps(card, indent=2) + "\n"
    replace_atomically(config.out.with_suffix(".json"), lambda fresh: fresh.write_text(text))
    if training.is_cut_short:
        logger.warning("interrupted after %d of %d epochs: saved what was learnt so far", training.num_epochs, config.epochs)
    logger.info("%s: test accuracy %.1f %%, %.1f s", config.out, 100 * accuracy, card["wall_clock_s"])
    return _EXIT_INTERRUPTED if training.is_cut_short else 0


@torch.inference_mode()
def evaluate(model: nn.Module, dataset: ImageDataset, device: torch.device) -> float:
    """Fraction of a data set's samples that the model puts into the right class; leaves it in evaluation mode."""
    model.eval()
    num_right = 0
    for begin in range(0, len(dataset.labels), _EVALUATION_BATCH):
        images = dataset.images[begin : begin + _EVALUATION_BATCH]
        guesses = model(to_input(images).to(device)).argmax(1).cpu().numpy()
        num_right += int((guesses == dataset.labels[begin : begin + _EVALUATION_BATCH]).sum())
    return num_right / len(dataset.labels)


class _Training:
    """The loop and how far it came."""

    def __init__(
        self, model: nn.Module, dataset: ImageDataset, test: ImageDataset, config: TrainConfig, device: torch.device
    ) -> None:
        self._model, self._dataset, self._test, self._config = model, dataset, test, config
        self._device = device
        # The incomplete last batch is left out: batch normalisation cannot learn from a single sample.
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
        self.is_cut_short = False

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """All epochs, or as many steps as come before `is_stopped`. Raises ValueError if the loss is no longer finite."""
        rng = np.random.default_rng(self._config.seed)
        epochs = self._config.epochs
        with Progress("training", epochs * self._steps_per_epoch, log_tenths=False) as progress:
            for epoch in range(1, epochs + 1):
                begun = time.perf_counter()
                loss = self._epoch(rng.permutation(len(self._dataset.labels)), is_stopped, progress)
                if loss is None:
                    self.is_cut_short = True
                    return
                if not np.isfinite(loss):
                    raise ValueError(f"the loss is {loss} in epoch {epoch}: --lr {self._config.lr} is too high, lower it")
                self.num_epochs = epoch
                accuracy = evaluate(self._model, self._test, self._device)
                seconds = time.perf_counter() - begun
                progress.line(f"epoch {epoch}/{epochs}  loss {loss:.4f}  test accuracy {100 * accuracy:.1f} %  {seconds:.1f} s")

    def _epoch(self, order: np.ndarray, is_stopped: Callable[[], bool], progress: Progress) -> float | None:
        """Mean loss of one pass, None if it was cut short."""
        self._model.train()
        losses = []
        for begin in range(0, self._steps_per_epoch * self._batch_size, self._batch_size):
            if is_stopped():
                return None
            losses.append(self._step(order[begin : begin + self._batch_size]))
            progress.advance()
        return float(torch.stack(losses).mean())

    def _step(self, ids: np.ndarray) -> torch.Tensor:
        inputs = to_input(self._dataset.images[ids]).to(self._device)
        labels = torch.from_numpy(self._dataset.labels[ids]).to(self._device)
        loss = nn.functional.cross_entropy(self._model(inputs), labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        self.num_steps += 1
        return loss.detach()


def _load(spec: str) -> tuple[ImageDataset, ImageDataset]:
    """The data set to learn and the test part of the same one."""
    base, colon, split = spec.rpartition(":")
    if not colon or split not in SPLITS:
        base, split = spec, ""
    if split == "test":
        raise ValueError(f"--dataset is {spec}: accuracy is measured on the test part, so learn {base}:public or {base}")
    return load_dataset(spec), load_dataset(f"{base}:test")


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM only raise a flag, so that no step is left half done; a second Ctrl-C interrupts at once."""
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
