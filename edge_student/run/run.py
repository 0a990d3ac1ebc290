"""One run, wired together: comm worker, ring, controller, bindings and trainer; and the files that tell how it went.

Everything that starts here ends here, in whatever way the run ends: the comm worker is reaped, masks and thread counts are put
back, and what was trained and logged until then is saved.
"""

import gc
import logging
import os
import time
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from edge_student.events.buffer import EventBuffer
from edge_student.events.log_file import EventFile
from edge_student.host.sampler import DisturbanceSampler
from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import Ring, RingShape
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_writer import Checkpoints
from edge_student.run.profile_match import load_profile
from edge_student.run.result import Outcome, caveats_of, finished_before, make_way, save
from edge_student.run.resume import (
    Past,
    check_recipe,
    check_teacher_is_the_same,
    flags_of,
    go_on,
    load_past,
    recipe_of,
)
from edge_student.run.setup import check_teacher, configure, load_training_data, make_trainer, ring_shape
from edge_student.run.signals import Interruption
from edge_student.run.worker_process import CommWorkerProcess
from edge_student.settings.student import TrainConfig
from edge_student.training.trainer import TorchTeam, Trainer
from edgekd.cli.progress import Progress
from edgekd.data.datasets import load_dataset
from edgekd.data.devices import choose_device
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.models import check_model
from edgekd.files import claim_folder, make_folder
from edgekd.wire.identity import new_run_id
from scheduler.control.controller import Controller
from scheduler.live.binding import CommBinding, CompBinding
from scheduler.live.loop import SchedulerLoop
from scheduler.policies.registry import kind_of, make_policy

logger = logging.getLogger(__name__)


class Run:
    """One training run on `cores`. `execute()` once; afterwards the files lie in `config.out`.

    With an `interruption` that handles the signals nothing of it is torn by one.
    """

    def __init__(self, config: TrainConfig, cores: tuple[int, ...], interruption: Interruption | None = None) -> None:
        self._config = config
        make_folder(config.out)
        self._claim = claim_folder(config.out)
        self._past = load_past(config) if config.resume else Past()
        self.run_id = self._past.run_id or new_run_id()
        """Names this run at both ends, and keeps its name when it goes on in another process."""
        self._cores = cores
        self._interruption = interruption or Interruption()
        self._device = str(choose_device(config.device))
        self._profile = load_profile(config, cores, device=self._device)
        # Looked at before anything is started, so that a wrong name is answered at once.
        check_model(config.model)
        self._policy = make_policy(config.policy, num_cores=len(cores), seed=config.seed, profile=self._profile)
        self._buffer = EventBuffer()
        self._sampler = DisturbanceSampler(cores, teacher=config.teacher)
        self._disturbance: dict[str, Any] | None = None
        self._started = self._ended = 0.0
        self._notes: list[str] = []

    def execute(self) -> dict[str, Any]:
        """Train, save, and return what result.json holds.

        Raises ValueError for a user's mistake and WorldError when the teacher stays away; what was done until then is saved.
        """
        try:
            return self._execute()
        finally:
            os.close(self._claim)

    def _execute(self) -> dict[str, Any]:
        config, past = self._config, self._past
        check_recipe(past, flags_of(config), config.out)
        if (result := finished_before(config, past)) is not None:
            logger.info("all %d cycles were trained before: nothing is left to do", config.cycles)
            return result
        if config.torch_threads is not None:
            torch.set_num_threads(min(config.torch_threads, torch.get_num_threads()))
        self._max_threads = torch.get_num_threads()
        # Without a teacher the data set says whose cache it is; with one, the worker looks for it meanwhile.
        data = load_training_data(config) if config.teacher is None else None
        digest = data.public.digest if data is not None and data.public is not None else ""
        with CommWorkerProcess(self._configure(digest)) as worker:
            # All of it now, the test data too, so that nothing is missing when the training is over.
            data, test = data or load_training_data(config), load_dataset(config.test_dataset)
            recipe = recipe_of(config, data.private.digest, len(data.private.labels))
            check_recipe(past, recipe, config.out)
            described = worker.await_description()
            check_teacher(described, data, config.teacher)
            check_teacher_is_the_same(past, described, config.out)
            shape = data.private.images.shape[1:]  # now known, so that the profile can be held against it
            load_profile(config, self._cores, device=self._device, input_shape=shape, num_classes=described.num_classes)
            trainer = make_trainer(config, data, described.num_classes, self._device, self._interruption.deferred)
            ring = Ring.create(self._ring_shape(described.num_classes, shape))
            try:
                ring.set_consumed(past.num_cycles)
                worker.use_ring(ring, start=past.num_cycles, stop=config.cycles)
                controller = self._make_controller(ring, past)
                go_on(past, trainer, controller, config)
                with self._interruption.deferred():
                    return self._train_and_save(Parts(worker, ring, trainer, controller), past, recipe, described, test)
            finally:
                ring.close()

    def _train_and_save(
        self, parts: "Parts", past: Past, recipe: dict[str, Any], described: Described, test: ImageDataset
    ) -> dict[str, Any]:
        """Signals come through only while it trains, and while it counts what the student gets right."""
        config, trainer = self._config, parts.trainer
        loop = self._make_loop(parts)
        # Not before all is ready: whatever would have kept this run from beginning leaves the earlier one as it is.
        make_way(config.out, past)
        log = EventFile(config.out / "events.jsonl", num_bytes=past.events_bytes, totals=past.totals)

        def caveats(*more: str) -> Caveats:
            return caveats_of(loop, log, past, parts.worker.finished, (*self._notes, *more))

        checkpoints = Checkpoints(
            config=config,
            identity={"run_id": self.run_id, "recipe": recipe, "teacher": asdict(described)},
            trainer=trainer,
            controller=parts.controller,
            buffer=self._buffer,
            log=log,
            past=past,
            caveats=caveats,
        )
        interruption = self._train(parts, loop, checkpoints)
        parts.worker.close()
        accuracy = None
        if interruption is None:
            accuracy, interruption = self._count_hits(trainer, test)
        outcome = Outcome(
            config=config,
            run_id=self.run_id,
            cores=self._cores,
            trainer=trainer,
            loop=loop,
            buffer=self._buffer,
            log=log,
            past=past,
            described=described,
            caveats=caveats(*checkpoints.notes),
            prefetch=parts.ring.shape.num_slots,
            max_threads=self._max_threads,
            started=self._started,
            ended=self._ended,
            disturbance=self._disturbance,
            accuracy=accuracy,
            interruption=interruption,
        )
        try:
            result = save(outcome)
        except Exception:
            if interruption is not None:  # else nobody would hear of it
                logger.error("broken off: %s: %s", type(interruption).__name__, interruption)
            raise
        if interruption is not None:
            remedy = "; --resume goes on" if config.checkpoint_every else ""
            logger.warning("%d of %d cycles were trained; saved in %s%s", trainer.num_cycles, config.cycles, config.out, remedy)
            raise interruption
        return result

    def _count_hits(self, trainer: Trainer, test: ImageDataset) -> tuple[float | None, BaseException | None]:
        """The accuracy, or what broke the counting off: what was trained is saved all the same."""
        try:
            with self._interruption.allowed():
                return trainer.accuracy(test), None
        except BaseException as error:
            return None, error

    def _configure(self, dataset_digest: str) -> Configure:
        config, launch_options = self._config, kind_of(self._config.policy).launch_options
        return configure(config, config.teacher, launch_options, self._cores, dataset_digest=dataset_digest, run_id=self.run_id)

    def _ring_shape(self, num_classes: int, input_shape: tuple[int, ...]) -> RingShape:
        """As many slots as fit; fewer than the user or the run would have is said."""
        config = self._config
        shape = ring_shape(config, num_classes, input_shape)
        if shape.num_slots < min(config.prefetch or config.cycles, config.cycles):
            self._notes.append(
                f"prefetch limited to {shape.num_slots} batches by --ring-mib {config.ring_mib} ({shape.slot_bytes} bytes a batch)"
            )
            logger.info(self._notes[-1])
        return shape

    def _make_controller(self, ring: Ring, past: Past) -> Controller:
        num_slots = ring.shape.num_slots
        return Controller(
            policy=self._policy,
            cycles=self._config.cycles,
            num_cores=len(self._cores),
            prefetch=num_slots if num_slots < self._config.cycles else None,
            profile=self._profile,
            comp_moves_at_boundaries=True,
            inputs_travel=self._config.input_encoding is not None,
            done=past.num_cycles,
        )

    def _make_loop(self, parts: "Parts") -> SchedulerLoop:
        return SchedulerLoop(
            controller=parts.controller,
            cores=self._cores,
            comm_port=parts.worker,
            comm_binding=CommBinding(parts.worker.pid),
            comp_binding=CompBinding(TorchTeam(), max_threads=self._max_threads),
            record=self._buffer.record,
        )

    def _train(self, parts: "Parts", loop: SchedulerLoop, checkpoints: Checkpoints) -> BaseException | None:
        """Run all cycles between the two readings of the clock. What broke the run off is returned, to be raised after saving."""
        start = parts.controller.state.num_backward
        progress = Progress(self._config.policy, self._config.cycles)
        # What was loaded until here stays: a full collection over all of torch takes 0.1 s, at a moment nobody scheduled.
        gc.collect()
        gc.freeze()
        self._sampler.before()
        interruption: BaseException | None = None

        def on_cycle(num_cycles: int) -> None:
            progress.reach(num_cycles)
            with self._interruption.deferred():
                checkpoints.on_cycle()

        self._started = time.monotonic()
        checkpoints.begin(self._started)
        self._buffer.record({"event": "start", "time": self._started, "clock_monotonic_s": self._started, "cycle": start})
        try:
            with self._interruption.allowed():
                loop.start()
                parts.trainer.train(self._config.cycles, loop, parts.ring, on_cycle, start=start)
        except BaseException as error:
            interruption = error
        self._ended = time.monotonic()
        steps = [self._look_back, loop.finish, lambda: checkpoints.end(self._ended), progress.close]
        if interruption is not None:  # somebody waits for the end, and to look back may take seconds
            steps = [*steps[1:], steps[0]]
        for step in steps:
            try:
                step()
            except Exception as error:  # the others are done all the same, and what came first is what is raised
                if interruption is None:
                    interruption = error
                else:
                    logger.error("and then: %s: %s", type(error).__name__, error)
        gc.unfreeze()
        return interruption

    def _look_back(self) -> None:
        self._disturbance = self._sampler.after()


class Parts(NamedTuple):
    """What takes part in a run."""

    worker: CommWorkerProcess
    ring: Ring
    trainer: Trainer
    controller: Controller
