"""Executes one run: starts the comm worker, wires ring, controller, bindings and trainer, and writes the result files.

All resources are released however the run ends: the comm worker is reaped, core masks and thread counts are restored, and the
training state and log up to that point are saved.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from edge_student.events.buffer import EventBuffer
from edge_student.events.log_file import EventFile
from edge_student.host.disturbance import findings
from edge_student.host.sampler import DisturbanceSampler
from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import Ring, RingShape, prefetch_limit
from edge_student.monitor.evaluation import Evaluation, StoppedEarly
from edge_student.monitor.metrics import Callback, Metrics
from edge_student.monitor.promise import Promise
from edge_student.monitor.tensorboard import TensorBoard
from edge_student.monitor.watch import Watch
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_writer import CheckpointWriter, check_space
from edge_student.run.data import (
    TrainingData,
    check_teacher,
    load_test_data,
    load_training_data,
    map_classes,
    map_test_classes,
    name_of_source,
    student_card,
)
from edge_student.run.objects import NO_OBJECTS, Objects
from edge_student.run.profile_match import load_profile
from edge_student.run.recipe import check_initial_classes
from edge_student.run.result import Outcome, collect_caveats, load_finished_result, remove_old_files, save
from edge_student.run.resume import (
    ResumeState,
    check_recipe,
    check_same_teacher,
    flags_of,
    labels_digest,
    load_resume_state,
    recipe_of,
    resume_training,
)
from edge_student.run.setup import (
    bind_compute,
    configure_worker,
    limit_torch_threads,
    no_full_collections,
    open_trainer,
    ring_shape,
)
from edge_student.run.shards import choose_shards
from edge_student.run.signals import SignalHandler
from edge_student.run.worker_process import CommWorkerProcess
from edge_student.settings.student import TrainConfig
from edge_student.training.trainer import Trainer
from edge_student.workers.sharded_trainer import ShardedTrainer
from edgekd.data.dataset import Dataset
from edgekd.files import claim_folder, expanded, make_folder, remove_if_empty
from edgekd.models.build import check_model
from edgekd.models.card import ModelCard
from edgekd.models.devices import choose_device
from edgekd.models.weights import load_weights
from edgekd.wire.identity import new_run_id
from scheduler.control.controller import Controller
from scheduler.live.binding import CommBinding
from scheduler.live.loop import SchedulerLoop
from scheduler.live.threads import may_leave_idle_priority
from scheduler.policies.registry import kind_of, make_policy
from scheduler.policies.view import Policy

logger = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The components of a run."""

    worker: CommWorkerProcess
    ring: Ring
    trainer: Trainer
    controller: Controller


class Observers(NamedTuple):
    """The parts that follow a training after every cycle."""

    checkpoints: CheckpointWriter
    evaluation: Evaluation
    metrics: Metrics


class Run:
    """One training run on `cores`. Use as a context manager and call `execute()` once; it writes its files to `config.out`.

    The run locks `config.out` until its context ends, or until its constructor raises. An installed `signals` handler cannot
    interrupt an optimiser step, a checkpoint or the saving of the result.

    The constructor raises ValueError for a wrong setting or a locked folder, and CheckpointError for a checkpoint it cannot resume.
    """

    def __init__(
        self,
        config: TrainConfig,
        cores: tuple[int, ...],
        signals: SignalHandler | None = None,
        objects: Objects = NO_OBJECTS,
    ) -> None:
        self._config = config
        self._objects = objects
        self._cores = cores
        self._signals = signals or SignalHandler()
        with ExitStack() as lock:
            if make_folder(config.out):
                lock.callback(remove_if_empty, config.out)
            lock.callback(os.close, claim_folder(config.out))
            self._data: TrainingData | None = None
            if config.epochs is not None:
                self._data = load_training_data(config, objects)
                cycles = math.ceil(config.epochs * len(self._data.private.labels) / config.batch_size)
                self._config = config = replace(config, cycles=cycles)
                logger.info("%g epochs of %d private samples are %d cycles", config.epochs, len(self._data.private.labels), cycles)
            self._resumed = load_resume_state(config) if config.resume else ResumeState()
            self.run_id = self._resumed.run_id or new_run_id()
            """Identifies this run at both ends. A resumed run keeps its id."""
            self._device = str(choose_device(config.device))
            if objects.student is None:
                check_model(config.model)  # here, so that a wrong name is rejected before the worker starts
            self._num_shards = choose_shards(config, config.policy, len(cores), self._resumed.num_shards)
            # The number of shards is checked once it is known, see `_check_profile`.
            self._profile = load_profile(config, cores, device=self._device, num_shards=None)
            self._policy = self._make_policy()
            self._callbacks: list[Callback] = [*objects.callbacks]
            if config.tensorboard is not None:
                board = TensorBoard(expanded(config.tensorboard))
                self._callbacks.append(board)
                lock.callback(board.close)
            self._buffer = EventBuffer()
            self._sampler = DisturbanceSampler(cores, teacher=config.teacher)
            self._disturbance: dict[str, Any] | None = None
            self._disturbances: list[str] = []
            self._promise = Promise(config.cycles)
            self._started = self._ended = 0.0
            self._notes: list[str] = []
            self._lock = lock.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def execute(self) -> dict[str, Any]:
        """Train, save, and return the content of result.json.

        Raises ValueError for a user's mistake and WorldError if the teacher stays unavailable; progress up to then is saved.
        """
        config, resumed = self._config, self._resumed
        flags = flags_of(config, self._objects)
        check_recipe(resumed, flags, config.out)
        if (result := load_finished_result(config, resumed)) is not None:
            logger.info("all %d cycles are trained already: nothing to do", config.cycles)
            if self._objects.student is not None:
                load_weights(self._objects.student, config.out / "student.safetensors")
            return result
        self._max_threads = limit_torch_threads(config.torch_threads)
        # Without a teacher, the public data set identifies the cache. With one, data is loaded while the worker connects.
        data = load_training_data(config, self._objects) if config.teacher is None and self._data is None else self._data
        digest = data.public.digest if data is not None and data.public is not None else ""
        with CommWorkerProcess(self._configure(digest)) as worker:
            # The test data is loaded here too, so that a missing file ends the run before the training.
            data = data or load_training_data(config, self._objects)
            test = load_test_data(config, data, self._notes.append, self._objects)
            recipe = recipe_of(flags, data.private.digest, len(data.private.labels), self._num_shards)
            check_recipe(resumed, recipe, config.out)
            described = worker.await_description()
            self._check_class(worker)
            source = name_of_source(config.teacher)
            check_teacher(described, data, source)
            check_same_teacher(resumed, described, config.out)
            check_initial_classes(config, described.class_names)
            data = replace(data, private=map_classes(data.private, described, config.class_map, source))
            test = None if test is None else map_test_classes(test, described, config.class_map, source)
            recipe["labels"] = labels_digest(data.private.labels)
            check_recipe(resumed, recipe, config.out)
            data = data.share() if self._num_shards > 1 else data
            shape = data.private.input_shape
            ring = Ring.create(self._ring_shape(described))
            opened = open_trainer(
                config,
                data,
                ring,
                objects=self._objects,
                device=self._device,
                num_shards=self._num_shards,
                is_resumed=resumed.num_shards is not None,
                note=self._notes.append,
                keeps_memory=kind_of(config.policy).launch_options.keeps_memory,
                defer_signals=self._signals.deferred,
            )
            with closing(ring), opened as trainer:
                recipe |= self._adopt_shards(trainer)
                self._check_profile(shape, described.num_classes)
                ring.set_consumed(resumed.num_cycles)
                worker.use_ring(ring, start=resumed.num_cycles, stop=config.cycles)
                controller = self._make_controller(ring, resumed)
                resume_training(resumed, trainer, controller, config)
                card = student_card(config, data, described)
                with self._signals.deferred():
                    return self._train_and_save(Parts(worker, ring, trainer, controller), recipe, described, test, card)

    def _train_and_save(
        self, parts: Parts, recipe: dict[str, Any], described: Described, test: Dataset | None, card: ModelCard
    ) -> dict[str, Any]:
        """Train, measure the accuracy and save. Signals are deferred, except while cycles or the accuracy are computed."""
        config, trainer, resumed = self._config, parts.trainer, self._resumed
        loop = self._make_loop(parts)
        check_space(config, trainer.student, is_resumed=bool(resumed.resumed_at))
        # Not earlier, so that a run that fails to start leaves the files of the earlier run unchanged.
        remove_old_files(config.out, resumed)
        log = EventFile(config.out / "events.jsonl", num_bytes=resumed.events_bytes, totals=resumed.totals)

        def caveats(*more: str) -> Caveats:
            replaced = trainer.replaced if isinstance(trainer, ShardedTrainer) else []
            return collect_caveats(loop, log, resumed, parts.worker.finished, (*self._notes, *replaced, *more))

        observers = self._observe(parts, loop, log, recipe, described, test, caveats)
        interruption = self._train(parts, loop, observers)
        parts.worker.close()
        accuracy = None
        if interruption is None and test is not None:
            accuracy, interruption = self._measure_accuracy(trainer, test)
        return self._save(
            Outcome(
                config=config,
                run_id=self.run_id,
                cores=self._cores,
                trainer=trainer,
                loop=loop,
                buffer=self._buffer,
                log=log,
                resumed=resumed,
                described=described,
                card=card,
                caveats=caveats(*observers.checkpoints.notes),
                prefetch=parts.ring.shape.num_slots,
                comm_is_idle=self._comm_is_idle,
                max_threads=self._max_threads,
                num_shards=self._num_shards,
                started=self._started,
                ended=self._ended,
                disturbance=self._disturbance,
                disturbances=findings(self._disturbance) or self._disturbances,
                promise=self._promise,
                evaluation=observers.evaluation,
                accuracy=accuracy,
                is_unlabelled=test is None,
                interruption=interruption,
            )
        )

    def _observe(
        self,
        parts: Parts,
        loop: SchedulerLoop,
        log: EventFile,
        recipe: dict[str, Any],
        described: Described,
        test: Dataset | None,
        caveats: Callable[[], Caveats],
    ) -> Observers:
        """Return the parts that follow the training after every cycle."""
        trainer, resumed = parts.trainer, self._resumed
        evaluation = Evaluation(
            trainer,
            test,
            every=self._config.eval_every,
            early_stop=self._config.early_stop,
            former=resumed.accuracies,
            record=self._buffer.record,
        )
        checkpoints = CheckpointWriter(
            config=self._config,
            identity={"run_id": self.run_id, "recipe": recipe, "teacher": asdict(described)},
            trainer=trainer,
            controller=parts.controller,
            buffer=self._buffer,
            log=log,
            resumed=resumed,
            caveats=caveats,
            accuracies=evaluation.accuracies,
        )
        metrics = Metrics(
            out=self._config.out,
            policy=self._config.policy,
            cycles=self._config.cycles,
            trainer=trainer,
            controller=parts.controller,
            loop=loop,
            evaluation=evaluation,
            callbacks=self._callbacks,
            former_s=resumed.wall_clock_s,
        )
        return Observers(checkpoints, evaluation, metrics)

    def _save(self, outcome: Outcome) -> dict[str, Any]:
        """Save the result files; afterwards raise the interruption, if there was one."""
        config, interruption = self._config, outcome.interruption
        try:
            result = save(outcome)
        except Exception:
            if interruption is not None:  # logged, because the error in saving is raised in its place
                logger.error("interrupted: %s: %s", type(interruption).__name__, interruption)
            raise
        if interruption is not None:
            remedy = "; continue with --resume" if config.checkpoint_every else ""
            num_cycles = outcome.trainer.num_cycles
            logger.warning("%d of %d cycles were trained; saved in %s%s", num_cycles, config.cycles, config.out, remedy)
            raise interruption
        return result

    def _measure_accuracy(self, trainer: Trainer, test: Dataset) -> tuple[float | None, BaseException | None]:
        """Return the accuracy, or the exception that interrupted its measurement; the trained weights are saved in both cases."""
        try:
            with self._signals.allowed():
                accuracy = trainer.accuracy(test)
                self._signals.raise_lost()
                return accuracy, None
        except BaseException as error:
            return None, error

    def _configure(self, dataset_digest: str) -> Configure:
        config, launch_options = self._config, kind_of(self._config.policy).launch_options
        return configure_worker(
            config, config.teacher, launch_options, self._cores, dataset_digest=dataset_digest, run_id=self.run_id
        )

    def _check_class(self, worker: CommWorkerProcess) -> None:
        """Read the scheduling class of the comm worker, and add a note if the policy wants idle priority and the kernel refused."""
        self._comm_is_idle = worker.has_idle_priority()
        if kind_of(self._config.policy).launch_options.comm_is_idle and not self._comm_is_idle:
            self._notes.append("the kernel refused SCHED_IDLE for comm, which may interrupt training")

    def _adopt_shards(self, trainer: Trainer) -> dict[str, int]:
        """Return the part of the recipe that is known only now: the number of shards with which the model is trained."""
        if trainer.num_shards != self._num_shards:
            self._num_shards = trainer.num_shards
            self._policy = self._make_policy()
        return {"shards": trainer.num_shards}

    def _check_profile(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        """Check the profile against what is known only now. Raises ValueError.

        Plain torch does not follow the rates of a profile, so that a profile for shards is no mistake there.
        """
        has_team = kind_of(self._config.policy).launch_options.has_team
        load_profile(
            self._config,
            self._cores,
            device=self._device,
            num_shards=None if has_team else self._num_shards,
            input_shape=input_shape,
            num_classes=num_classes,
        )

    def _ring_shape(self, described: Described) -> RingShape:
        """Return the shape of the ring. Adds a note if --ring-mib allows fewer slots than requested."""
        config = self._config
        shape = ring_shape(config, described)
        if shape.num_slots < min(config.prefetch or config.cycles, config.cycles):
            self._notes.append(
                f"prefetch limited to {shape.num_slots} batches by --ring-mib {config.ring_mib} ({shape.slot_bytes} bytes a batch)"
            )
            logger.info(self._notes[-1])
        return shape

    def _make_policy(self) -> Policy:
        return make_policy(
            self._config.policy,
            num_cores=len(self._cores),
            seed=self._config.seed,
            profile=self._profile,
            has_workers=self._num_shards > 1,
            may_change_priority=may_leave_idle_priority(),
        )

    def _make_controller(self, ring: Ring, resumed: ResumeState) -> Controller:
        return Controller(
            policy=self._policy,
            cycles=self._config.cycles,
            num_cores=len(self._cores),
            prefetch=prefetch_limit(ring.shape.num_slots, self._config.cycles),
            profile=self._profile,
            comp_moves_at_boundaries=self._num_shards == 1,
            # A Forward that must not begin without logits waits as one whose inputs travel with them.
            inputs_travel=self._config.input_encoding is not None or self._config.while_starved == "private",
            done=resumed.num_cycles,
        )

    def _make_loop(self, parts: Parts) -> SchedulerLoop:
        return SchedulerLoop(
            controller=parts.controller,
            cores=self._cores,
            comm_port=parts.worker,
            comm_binding=CommBinding(parts.worker.pid),
            comp_binding=bind_compute(parts.trainer, self._max_threads),
            record=self._buffer.record,
        )

    def _train(self, parts: Parts, loop: SchedulerLoop, observers: Observers) -> BaseException | None:
        """Run all cycles between two readings of the counters. Returns the exception that ended them, to be raised after saving."""
        with no_full_collections():
            self._sampler.before()
            with self._watch(parts, loop) as watch:
                interruption = self._run_cycles(parts, loop, observers)
            self._notes += watch.notes
            self._disturbances = watch.disturbances
            steps = [
                *(self._read_disturbance, observers.metrics.close, loop.finish),
                lambda: observers.checkpoints.end(self._ended),
            ]
            if interruption is not None:  # last, because the reading can take seconds while the caller waits for the end
                steps = [*steps[1:], steps[0]]
            try:
                return _run_all(steps, interruption)
            finally:
                self._notes += observers.metrics.notes

    def _run_cycles(self, parts: Parts, loop: SchedulerLoop, observers: Observers) -> BaseException | None:
        checkpoints, evaluation, metrics = observers
        start = parts.controller.state.num_backward

        def on_cycle(num_cycles: int) -> None:
            self._signals.raise_lost()
            if isinstance(parts.trainer, ShardedTrainer):
                self._buffer.record({"event": "shards", "index": num_cycles - 1, **parts.trainer.shard_spans()})
            self._promise.on_cycle(num_cycles - start, time.monotonic() - evaluation.seconds, loop.logits_wait_s)
            with self._signals.deferred():
                checkpoints.on_cycle()
            evaluation.on_cycle(num_cycles)
            metrics.on_cycle(num_cycles)

        self._started = time.monotonic()
        checkpoints.begin(self._started)
        metrics.begin(self._started, start)
        self._promise.begin(self._started)
        self._buffer.record({"event": "start", "time": self._started, "clock_monotonic_s": self._started, "cycle": start})
        try:
            with self._signals.allowed():
                self._signals.raise_lost()
                evaluation.begin(start)
                loop.start()
                parts.trainer.train(self._config.cycles, loop, parts.ring, on_cycle, start=start)
        except StoppedEarly as stop:
            self._notes.append(f"stopped early at cycle {parts.trainer.num_cycles} of {self._config.cycles}: {stop}")
            logger.info(self._notes[-1])
            return None
        except BaseException as error:
            return error
        finally:
            self._ended = time.monotonic()
        return None

    def _watch(self, parts: Parts, loop: SchedulerLoop) -> Watch:
        """Watch the comm worker and the compute workers, except those that are meant to stand still."""

        def workers() -> dict[int, str]:
            comm = {} if loop.comm_has_ended else {parts.worker.pid: "the comm worker"}
            pids = parts.trainer.pids if isinstance(parts.trainer, ShardedTrainer) and not loop.holds_compute else ()
            return comm | {pid: f"the worker of shard {number}" for number, pid in enumerate(pids)}

        return Watch(workers=workers, sampler=self._sampler, max_silence_s=self._config.max_silence)

    def _read_disturbance(self) -> None:
        self._disturbance = self._sampler.after()


def _run_all(steps: Iterable[Callable[[], None]], error: BaseException | None) -> BaseException | None:
    """Run all steps even if some fail. Returns `error`, or else the first exception of a step; further exceptions are logged."""
    for step in steps:
        try:
            step()
        except Exception as failure:
            if error is None:
                error = failure
            else:
                logger.error("cleanup also failed: %s: %s", type(failure).__name__, failure)
    return error
