"""One run, wired together: comm worker, ring, controller, bindings and trainer; and the files that tell how it went.

Everything that starts here ends here, in whatever way the run ends: the comm worker is reaped, masks and thread counts are put
back, and what was trained and logged until then is saved.
"""

import gc
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edge_student.comm_port import CommWorkerProcess
from edge_student.config import TrainConfig
from edge_student.journal import Journal
from edge_student.messages import Configure, Described
from edge_student.outcome import Outcome, remove_old, save
from edge_student.progress import Progress
from edge_student.ring import Ring, RingShape
from edge_student.trainer import Recipe, TorchTeam, Trainer
from edge_student.witness import Witness
from edgekd.datasets import ImageDataset, load_dataset
from edgekd.devices import choose_device
from edgekd.models import build_model
from scheduler.binding import CommBinding, CompBinding
from scheduler.controller import Controller
from scheduler.loop import SchedulerLoop
from scheduler.policies import kind_of, make_policy
from scheduler.scenario import Profile

logger = logging.getLogger(__name__)


class Run:
    """One training run on `cores`. `execute()` once; afterwards the files lie in `config.out`."""

    def __init__(self, config: TrainConfig, cores: tuple[int, ...]) -> None:
        self._config = config
        self._cores = cores
        self._profile = None if config.profile is None else load_profile(config.profile)
        # Made before anything is started, so that a wrong name is answered at once.
        self._policy = make_policy(config.policy, num_cores=len(cores), seed=config.seed, profile=self._profile)
        self._device = str(choose_device(config.device))
        self._journal = Journal()
        self._witness = Witness(cores, teacher=config.teacher)
        self._disturbance: dict[str, Any] | None = None
        self._started = self._ended = 0.0
        self._notes: list[str] = []

    def execute(self) -> dict[str, Any]:
        """Train, save, and return what result.json holds.

        Raises ValueError for a user's mistake and WorldError when the teacher stays away; what was done until then is saved.
        """
        config = self._config
        config.out.mkdir(parents=True, exist_ok=True)
        remove_old(config.out)
        if config.torch_threads is not None:
            torch.set_num_threads(min(config.torch_threads, torch.get_num_threads()))
        self._max_threads = torch.get_num_threads()
        with CommWorkerProcess(self._configure()) as worker:
            private, public, test = self._load_data()
            described = worker.await_description()
            self._check_teacher(described, private, public)
            trainer = self._make_trainer(private, public, described.num_classes)
            ring = Ring.create(self._ring_shape(described.num_classes))
            try:
                worker.use_ring(ring, start=0, stop=config.cycles)
                loop = self._make_loop(worker, ring)
                interruption = self._train(trainer, loop, ring)
            finally:
                ring.close()
            worker.close()
        outcome = Outcome(
            config=config,
            cores=self._cores,
            trainer=trainer,
            loop=loop,
            journal=self._journal,
            described=described,
            finished=worker.finished,
            prefetch=ring.shape.num_slots,
            max_threads=self._max_threads,
            started=self._started,
            ended=self._ended,
            disturbance=self._disturbance,
            accuracy=None if interruption is not None else trainer.accuracy(test),
            interruption=interruption,
            notes=tuple(self._notes),
        )
        result = save(outcome)
        if interruption is not None:
            logger.warning("%d of %d cycles were trained; saved in %s", trainer.num_cycles, config.cycles, config.out)
            raise interruption
        return result

    def _configure(self) -> Configure:
        config = self._config
        return Configure(
            teacher=config.teacher,
            batch_size=config.public_batch,
            seed=config.seed,
            encoding=config.encoding.value,
            window=config.window,
            max_wait_s=config.max_wait,
            log_level=config.log_level,
            niceness=kind_of(config.policy).surroundings.comm_niceness,
        )

    def _load_data(self) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
        """Private, public and test data; all of it now, so that nothing is missing when the training is over."""
        private = load_dataset(self._config.private)
        wanted = self._config.private_samples
        if wanted is not None and wanted > len(private.labels):
            raise ValueError(f"--private-samples is {wanted}, but {private.name} has {len(private.labels)} samples")
        if wanted is not None:
            private = replace(private, images=private.images[:wanted], labels=private.labels[:wanted])
        return private, load_dataset(self._config.public_dataset), load_dataset(self._config.test_dataset)

    def _check_teacher(self, described: Described, private: ImageDataset, public: ImageDataset) -> None:
        if described.dataset_digest != public.digest:
            raise ValueError(
                f"the teacher at {self._config.teacher} serves {described.dataset_name} (digest {described.dataset_digest[:12]}), "
                f"this edge has {public.name} (digest {public.digest[:12]}): name the same data set with --public"
            )
        if described.num_classes != private.num_classes:
            raise ValueError(
                f"the teacher knows {described.num_classes} classes, {private.name} has {private.num_classes}: they must agree"
            )

    def _make_trainer(self, private: ImageDataset, public: ImageDataset, num_classes: int) -> Trainer:
        config = self._config
        shape = private.images.shape[1:]
        student = build_model(config.model, num_classes=num_classes, input_shape=shape, seed=config.seed)
        recipe = Recipe(
            alpha=config.alpha,
            temperature=config.temperature,
            lr=config.lr,
            momentum=config.momentum,
            batch_size=config.batch_size,
            public_batch=config.public_batch,
            seed=config.seed,
            device=self._device,
        )
        trainer = Trainer(student=student, private=private, public=public, recipe=recipe)
        trainer.warm_up(num_classes)
        return trainer

    def _ring_shape(self, num_classes: int) -> RingShape:
        """Room for as many batches as the user allows, the run needs and the memory holds; less than that is said."""
        config = self._config
        wanted = min(config.prefetch or config.cycles, config.cycles)
        slot = RingShape(num_slots=1, batch_size=config.public_batch, num_classes=num_classes).slot_bytes
        fitting = max(1, (config.ring_mib << 20) // slot)
        if fitting < wanted:
            self._notes.append(f"prefetch limited to {fitting} batches by --ring-mib {config.ring_mib} ({slot} bytes a batch)")
            logger.info(self._notes[-1])
        return RingShape(num_slots=min(wanted, fitting), batch_size=config.public_batch, num_classes=num_classes)

    def _make_loop(self, worker: CommWorkerProcess, ring: Ring) -> SchedulerLoop:
        num_slots = ring.shape.num_slots
        controller = Controller(
            policy=self._policy,
            cycles=self._config.cycles,
            num_cores=len(self._cores),
            prefetch=num_slots if num_slots < self._config.cycles else None,
            profile=self._profile,
            comp_moves_at_boundaries=True,
        )
        return SchedulerLoop(
            controller=controller,
            cores=self._cores,
            comm_port=worker,
            comm_binding=CommBinding(worker.pid),
            comp_binding=CompBinding(TorchTeam(), max_threads=self._max_threads),
            record=self._journal.record,
        )

    def _train(self, trainer: Trainer, loop: SchedulerLoop, ring: Ring) -> BaseException | None:
        """Run all cycles between the two readings of the clock. What broke the run off is returned, to be raised after saving."""
        progress = Progress(self._config.cycles, label=self._config.policy)
        # What was loaded until here stays: a full collection over all of torch takes 0.1 s, at a moment nobody scheduled.
        gc.collect()
        gc.freeze()
        self._witness.before()
        try:
            self._started = time.monotonic()
            self._journal.record({"event": "start", "time": self._started, "clock_monotonic_s": self._started})
            loop.start()
            trainer.train(self._config.cycles, loop, ring, progress.advance)
        except BaseException as error:
            return error
        finally:
            self._ended = time.monotonic()
            self._disturbance = self._witness.after()
            loop.finish()
            progress.close()
            gc.unfreeze()
        return None


def load_profile(path: Path) -> Profile:
    """A device profile from JSON; ValueError that names the file if it is not one."""
    try:
        return Profile.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"--profile {path}: {error}") from error
