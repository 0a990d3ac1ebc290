"""Prepares a run before its clock starts: trainer, ring, threads and garbage collection."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch

from edge_student.host.memory import keep_freed_memory
from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import Ring, RingShape
from edge_student.run.data import TrainingData
from edge_student.run.objects import NO_OBJECTS, Objects
from edge_student.run.recipe import check_loss, make_recipe, prepare_student
from edge_student.settings.student import StudentConfig
from edge_student.training.recipe import Recipe
from edge_student.training.team_trainer import TeamTrainer
from edge_student.training.torch_team import TorchTeam
from edge_student.training.trainer import Trainer
from edge_student.workers.divisible import team_is_faster
from edge_student.workers.server import stop_server
from edge_student.workers.shard import rows_of
from edge_student.workers.sharded_trainer import ShardedTrainer
from edge_student.workers.shared_model import ModelNotDivisible
from edgekd.models.build import build_model, check_output
from scheduler.live.binding import TeamBinding, WorkersBinding
from scheduler.policies.registry import LaunchOptions

logger = logging.getLogger(__name__)

_MOST_STREAMS = 4


def configure_worker(
    config: StudentConfig,
    address: str | None,
    launch_options: LaunchOptions,
    cores: Sequence[int],
    *,
    dataset_digest: str = "",
    run_id: str = "",
) -> Configure:
    """Return the configuration of a comm worker for a run on `cores`: its teacher, link settings and priority.

    `address` is None without a teacher; then `dataset_digest` selects the logits in the cache. `run_id` identifies this run.
    """
    return config.configure(
        teacher=address or "",
        batch_size=config.public_batch,
        seed=config.seed,
        niceness=launch_options.comm_niceness,
        is_idle=launch_options.comm_is_idle,
        logits=config.logits,
        dataset_digest=dataset_digest,
        num_streams=config.streams or default_streams(len(cores)),
        run_id=run_id,
    )


def default_streams(num_cores: int) -> int:
    """Return the default of --streams: half the number of cores, at least 1 and at most 4."""
    return max(1, min(num_cores // 2, _MOST_STREAMS))


@contextmanager
def open_trainer(
    config: StudentConfig,
    data: TrainingData,
    ring: Ring,
    *,
    objects: Objects = NO_OBJECTS,
    device: str,
    num_shards: int,
    is_resumed: bool = False,
    note: Callable[[str], None],
    keeps_memory: bool = True,
    defer_signals: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Trainer]:
    """Build the student and yield its trainer, warmed up. A trainer with several shards has its own processes until the end.

    `data` must be shared for several shards. See `TeamTrainer` for `defer_signals`. A model that cannot be trained in shards is
    trained with one team, which is logged and noted; with --shards it raises ValueError. A model for which a team is faster is
    trained with one too, unless the user asked for shards or the run had shards when it began (`is_resumed`).
    """
    num_classes, shape = ring.shape.num_classes, data.input_shape
    if objects.student is None:
        student = build_model(config.model, num_classes=num_classes, input_shape=shape, seed=config.seed)
    else:
        student = objects.student.train()
        check_output(config.model, student, num_classes, shape)
    recipe, sharded = make_recipe(config, device, data, objects), None
    prepare_student(student, config, num_classes=num_classes, is_resumed=is_resumed)
    if num_shards > 1:
        assert data.shared is not None, "compute workers read shared data sets"
        private, public = data.shared
        try:
            check_loss(recipe, num_shards, num_classes)
            if config.shards is not None or is_resumed or not _team_is_faster(config.model, student, shape, recipe, num_shards):
                sharded = ShardedTrainer(
                    student=student,
                    private=private,
                    public=public,
                    ring=ring,
                    recipe=recipe,
                    num_shards=num_shards,
                    keeps_memory=keeps_memory,
                    defer_signals=defer_signals,
                )
        except ModelNotDivisible as error:
            if config.shards is not None:
                raise ValueError(f"--shards is {num_shards}, but model {config.model} needs --shards 1: {error}") from None
            logger.warning("model %s is trained with one team of threads, as with --shards 1: %s", config.model, error)
            note("one team of threads trained the model, because it cannot be trained in shards")
    if sharded is not None:
        with sharded:
            yield sharded
        return
    stop_server()
    data.close()
    if keeps_memory:
        keep_freed_memory()
    trainer = TeamTrainer(student=student, private=data.private, public=data.public, recipe=recipe, defer_signals=defer_signals)
    trainer.warm_up(num_classes)
    yield trainer


def _team_is_faster(name: str, student: torch.nn.Module, input_shape: tuple[int, ...], recipe: Recipe, num_shards: int) -> bool:
    """Return whether one team trains the model of this name faster than `num_shards` shards, and log it."""
    if not team_is_faster(student, input_shape, rows_of(num_shards)[0].total(recipe)):
        return False
    logger.info(
        "one team of threads trains model %s, as with --shards 1, because it has many weights for few outputs;"
        " --shards %d trains it in shards, with weights that do not depend on the number of threads",
        *(name, num_shards),
    )
    return True


def ring_shape(config: StudentConfig, described: Described) -> RingShape:
    """Return a ring with one slot per batch, limited by --prefetch, --cycles and --ring-mib. Slots include inputs if received."""
    num_slots = min(config.prefetch or config.cycles, config.cycles)
    slot = config.slot_shape(described, batch_size=config.public_batch)
    max_slots = max(1, (config.ring_mib << 20) // slot.slot_bytes)
    return replace(slot, num_slots=min(num_slots, max_slots))


def bind_compute(trainer: Trainer, max_threads: int) -> TeamBinding | WorkersBinding:
    """Return the binding that gives a trainer its cores. A team has at most `max_threads` threads."""
    if isinstance(trainer, ShardedTrainer):
        return WorkersBinding(trainer)
    return bind_team(max_threads)


def bind_team(max_threads: int) -> TeamBinding:
    """Return the binding that gives the team of threads of the calling thread its cores."""
    return TeamBinding(TorchTeam(), max_threads=max_threads)


def limit_torch_threads(limit: int | None) -> int:
    """Limit the number of torch threads to `limit`, if given, and return the resulting number."""
    if limit is not None:
        torch.set_num_threads(min(limit, torch.get_num_threads()))
    return torch.get_num_threads()


@contextmanager
def no_full_collections() -> Iterator[None]:
    """Exclude all existing objects from garbage collection while the block runs.

    A full collection over torch's objects takes 0.1 s, at a moment that the scheduler does not control.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
