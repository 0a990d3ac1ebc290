"""Resumes a run from a checkpoint in another process, if recipe and teacher are unchanged.

The recipe is everything that the weights depend on. Policy, cores and number of cycles may change between the parts of a run.
"""

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_student.events.log_file import Totals
from edge_student.ipc.messages import Described
from edge_student.monitor.evaluation import parse_accuracies
from edge_student.run import checkpoint_file
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_file import NO_RESUME, Checkpoint, CheckpointError
from edge_student.run.objects import NO_OBJECTS, Objects
from edge_student.run.recipe import recipe_flags
from edge_student.settings.student import TrainConfig
from edge_student.training.trainer import Trainer
from edgekd.wire.identity import read_id
from scheduler.control.controller import Controller
from scheduler.model.checked_json import check_keys, is_whole, listing, mapping, number, shown, whole

logger = logging.getLogger(__name__)

# Flags that the weights depend on, besides the data sets' digests.
_RECIPE = (
    *("model", "alpha", "temperature", "lr", "batch_size", "public_batch", "seed", "encoding", "top_k"),
    *("normalize", "resize", "class_map"),
)
_FORMER = {
    "shards": 1,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0,
    "augment": "none",
    "while_starved": "wait",
}
"""Values of flags that did not exist when a checkpoint was written."""
_KEYS = (
    *("run_id", "recipe", "teacher", "num_cycles", "totals", "marks", "wall_clock_s", "events_bytes", "loss", "resumed_at"),
    "learnt",
)
"""Keys of a checkpoint's JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeState:
    """State of a run at its last checkpoint. The defaults are the state of a new run.

    `controller_state` is for `Controller.recall`, `snapshot` for `Trainer.restore`. `events_bytes` is the length of events.jsonl.
    """

    num_cycles: int = 0
    wall_clock_s: float = 0.0
    totals: Totals = field(default_factory=Totals)
    caveats: Caveats = field(default_factory=Caveats)
    events_bytes: int = 0
    loss: float = math.nan
    resumed_at: tuple[int, ...] = ()
    run_id: str | None = None
    recipe: Mapping[str, Any] | None = None
    teacher: Mapping[str, Any] | None = None
    controller_state: Any = None
    snapshot: Mapping[str, torch.Tensor] | None = None
    accuracies: tuple[tuple[int, float], ...] = ()
    num_private_steps: int = 0

    @property
    def num_shards(self) -> int | None:
        """The number of shards of the run so far; None for a new run."""
        return None if self.recipe is None else int(self.recipe.get("shards", _FORMER["shards"]))


def flags_of(config: TrainConfig, objects: Objects = NO_OBJECTS) -> dict[str, Any]:
    """Return the flags that the weights depend on, as plain values by flag name. Needs no data set."""
    own = {name: getattr(config, name) for name in _RECIPE}
    return {**own, "encoding": config.encoding.value, **recipe_flags(config, objects)}


def labels_digest(labels: npt.NDArray[np.int64]) -> str:
    """Return the SHA-256 of labels, as outputs of the teacher. It covers label files, class names and class maps of both ends."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def recipe_of(flags: Mapping[str, Any], private_digest: str, num_private: int, num_shards: int) -> dict[str, Any]:
    """Return all that the weights depend on, except teacher and public data: `flags_of` and the rest, by flag name."""
    return {**flags, "private": private_digest, "private_samples": num_private, "shards": num_shards}


def load_resume_state(config: TrainConfig) -> ResumeState:
    """Return the state of the checkpoint in --out, or that of a new run if there is none.

    Raises CheckpointError for an invalid checkpoint, and for one of a cycle above --cycles.
    """
    found = checkpoint_file.load(config.out)
    if found is None:
        logger.info("%s has no checkpoint; starting at the first cycle", config.out)
        return ResumeState()
    try:
        state = _to_resume_state(found, str(config.out / checkpoint_file.NEWEST))
    except ValueError as error:
        raise CheckpointError(f"{error}; {NO_RESUME}") from None
    if state.num_cycles > config.cycles:
        raise CheckpointError(
            f"--cycles is {config.cycles}, must be at least {state.num_cycles}: {config.out} has a checkpoint of that cycle"
        )
    return state


def check_recipe(resumed: ResumeState, recipe: Mapping[str, Any], out: Path) -> None:
    """Raise CheckpointError, with flag and both values, if a resumed run has another recipe than its checkpoint."""
    for name, value in recipe.items():
        if resumed.recipe is None or resumed.recipe.get(name, _FORMER.get(name)) == value:
            continue
        if name == "labels" and name not in resumed.recipe:  # of a former version
            continue
        flag = f"--{name.replace('_', '-')}"
        if name == "private":
            difference = f"{flag} names another data set than"
        elif name == "labels":
            difference = "the labels, mapped by class name to the teacher's outputs, differ from"
        else:
            stored = resumed.recipe.get(name, _FORMER.get(name))
            is_now = "is not given" if value is None else f"is {shown(value)}"
            difference = f"{flag} {is_now}, must be {'omitted' if stored is None else shown(stored)} as in"
        raise CheckpointError(f"{difference} the checkpoint in {out}: use the same value, or {NO_RESUME}")


def check_same_teacher(resumed: ResumeState, described: Described, out: Path) -> None:
    """Raise CheckpointError if a resumed run has another teacher or public data set: logits of two teachers are never mixed."""
    if resumed.teacher is None:
        return
    for key, name in (("teacher_digest", "teacher"), ("dataset_digest", "public data set")):
        stored, current = resumed.teacher.get(key), getattr(described, key)
        if stored != current:
            raise CheckpointError(
                f"the {name} has digest {current[:12]}, must have {str(stored)[:12]} as in the checkpoint in {out}: logits of two "
                f"teachers are never mixed; {NO_RESUME}"
            )


def resume_training(resumed: ResumeState, trainer: Trainer, controller: Controller, config: TrainConfig) -> None:
    """Restore trainer and controller from a checkpoint, if there is one. Raises CheckpointError for unsuitable content."""
    if resumed.snapshot is not None:
        where = config.out / checkpoint_file.NEWEST
        try:
            trainer.restore(resumed.snapshot, resumed.num_cycles)
            controller.recall(resumed.controller_state, "controller state")
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}; {NO_RESUME}") from None
        trainer.last_loss = resumed.loss
        trainer.num_private_steps = resumed.num_private_steps
        logger.info("resuming after %d of %d cycles", resumed.num_cycles, config.cycles)
    if config.checkpoint_every:
        trainer.enable_snapshots()


def _to_resume_state(found: Checkpoint, where: str) -> ResumeState:
    facts = found.facts
    check_keys(facts, required=_KEYS, optional=("accuracies", "num_private_steps"), where=where)
    teacher, recipe = mapping(facts["teacher"], where), mapping(facts["recipe"], where)
    resumed_at = listing(facts["resumed_at"], where)
    if not all(is_whole(cycle) for cycle in resumed_at):
        raise ValueError(f"{where}: resumed_at is {shown(resumed_at)}, must be cycle numbers")
    run_id = read_id(facts["run_id"])
    if run_id is None:
        raise ValueError(f"{where}: run_id is {shown(facts['run_id'])}, which is not a valid id")
    num_cycles = whole(facts, "num_cycles", where, least=0, most=None)
    wall_clock_s = number(facts, "wall_clock_s", where)
    if wall_clock_s < 0:
        raise ValueError(f"{where}: wall_clock_s is {wall_clock_s:g}, must be at least 0")
    return ResumeState(
        num_cycles=num_cycles,
        wall_clock_s=wall_clock_s,
        totals=Totals.from_json(facts["totals"], f"{where}, totals"),
        caveats=Caveats.from_json(facts["marks"], f"{where}, marks"),
        events_bytes=whole(facts, "events_bytes", where, least=0, most=None),
        loss=math.nan if facts["loss"] is None else number(facts, "loss", where),
        resumed_at=(*resumed_at, num_cycles),
        run_id=run_id,
        recipe=recipe,
        teacher=teacher,
        controller_state=facts["learnt"],
        snapshot=found.tensors,
        accuracies=parse_accuracies(facts.get("accuracies", []), where),
        num_private_steps=whole({"num_private_steps": 0, **facts}, "num_private_steps", where, least=0, most=None),
    )
