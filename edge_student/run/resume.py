"""How a run goes on from a checkpoint in another process, and when it must not.

What must be equal for a run to go on is the recipe: what the weights depend on. Policy, cores and the number of cycles may change.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edge_student.events.log_file import Totals
from edge_student.ipc.messages import Described
from edge_student.run import checkpoint_file
from edge_student.run.caveats import Caveats
from edge_student.run.checkpoint_file import Checkpoint, CheckpointError
from edge_student.settings.student import TrainConfig
from edge_student.training.trainer import Trainer
from edgekd.wire.identity import read_id
from scheduler.control.controller import Controller
from scheduler.model.checked_json import check_keys, is_whole, listing, mapping, number, shown, whole

logger = logging.getLogger(__name__)

# Flags that the weights depend on, beside the data sets' digests.
_RECIPE = ("model", "alpha", "temperature", "lr", "momentum", "batch_size", "public_batch", "seed", "encoding", "top_k")
_KEPT = ("totals", "marks", "wall_clock_s", "events_bytes", "loss", "resumed_at", "learnt")
_FACTS = ("run_id", "recipe", "teacher", "num_cycles", *_KEPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a run that goes on has behind it; of one that begins, nothing.

    `learnt` is for the controller, `snapshot` for the trainer.
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
    learnt: Any = None
    snapshot: Mapping[str, torch.Tensor] | None = None


def flags_of(config: TrainConfig) -> dict[str, Any]:
    """What the weights depend on as far as it is known without any data, as plain values by flag."""
    return {**{name: getattr(config, name) for name in _RECIPE}, "encoding": config.encoding.value}


def recipe_of(config: TrainConfig, private_digest: str, num_private: int) -> dict[str, Any]:
    """All that the weights depend on beside teacher and public data, as plain values by flag."""
    return {**flags_of(config), "private": private_digest, "private_samples": num_private}


def load_past(config: TrainConfig) -> Past:
    """What the checkpoint in --out says, if there is one. Raises CheckpointError for one that cannot be, or is past --cycles."""
    found = checkpoint_file.load(config.out)
    if found is None:
        logger.info("%s holds no checkpoint yet: beginning at the first cycle", config.out)
        return Past()
    try:
        past = _to_past(found, str(config.out / checkpoint_file.NEWEST))
    except ValueError as error:
        raise CheckpointError(f"{error}; leave --resume out to start anew") from None
    if past.num_cycles > config.cycles:
        raise CheckpointError(f"--cycles is {config.cycles}, but {config.out} has a checkpoint of cycle {past.num_cycles} already")
    return past


def check_recipe(past: Past, recipe: Mapping[str, Any], out: Path) -> None:
    """CheckpointError, naming flag and both values, unless a run that goes on is still of the recipe that it began with."""
    for name, value in recipe.items():
        if past.recipe is None or past.recipe.get(name) == value:
            continue
        then = "another data set" if name == "private" else shown(past.recipe.get(name))
        now = "what it is" if name == "private" else shown(value)
        raise CheckpointError(
            f"--{name.replace('_', '-')} is {now}, and was {then} when the checkpoint in {out} was written: go on with the same, "
            "or begin anew without --resume"
        )


def check_teacher_is_the_same(past: Past, described: Described, out: Path) -> None:
    """CheckpointError if the run began with another teacher, or another public data set: their logits are never mixed."""
    if past.teacher is None:
        return
    for name, what in (("teacher_digest", "teacher"), ("dataset_digest", "public data set")):
        then, now = past.teacher.get(name), getattr(described, name)
        if then != now:
            raise CheckpointError(
                f"the {what} is {now[:12]}, and was {str(then)[:12]} when the checkpoint in {out} was written: logits of two are "
                "never mixed; begin anew without --resume"
            )


def go_on(past: Past, trainer: Trainer, controller: Controller, config: TrainConfig) -> None:
    """Put trainer and controller where the run was. Raises CheckpointError for what cannot be theirs."""
    if past.snapshot is not None:
        where = config.out / checkpoint_file.NEWEST
        try:
            trainer.restore(past.snapshot, past.num_cycles)
            controller.recall(past.learnt, "what was learnt")
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}; leave --resume out to start anew") from None
        trainer.last_loss = past.loss
        logger.info("going on after %d of %d cycles", past.num_cycles, config.cycles)
    if config.checkpoint_every:
        trainer.keep_boundaries()


def _to_past(found: Checkpoint, where: str) -> Past:
    facts = found.facts
    check_keys(facts, required=_FACTS, where=where)
    teacher, recipe = mapping(facts["teacher"], where), mapping(facts["recipe"], where)
    resumed_at = listing(facts["resumed_at"], where)
    if not all(is_whole(cycle) for cycle in resumed_at):
        raise ValueError(f"{where}: {shown(resumed_at)} are no cycles")
    run_id = read_id(facts["run_id"])
    if run_id is None:
        raise ValueError(f"{where}: {shown(facts['run_id'])} names no run")
    num_cycles = whole(facts, "num_cycles", where, least=0, most=None)
    wall_clock_s = number(facts, "wall_clock_s", where)
    if wall_clock_s < 0:
        raise ValueError(f"{where}: a wall-clock of {wall_clock_s:g} s")
    return Past(
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
        learnt=facts["learnt"],
        snapshot=found.tensors,
    )
