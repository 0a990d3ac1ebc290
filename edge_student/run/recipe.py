"""Converts flags to the recipe of a training, and prepares the student: start weights and frozen parts."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edge_student.run.data import TrainingData
from edge_student.run.objects import NO_OBJECTS, Objects
from edge_student.settings.student import StudentConfig
from edge_student.training.augment import AUGMENTS, check_augment
from edge_student.training.frozen import freeze
from edge_student.training.initial import HEAD, load_initial
from edge_student.training.loss import is_mean_over_rows
from edge_student.training.optimizers import OptimizerRule
from edge_student.training.recipe import Recipe
from edge_student.training.schedule import SCHEDULES, learning_rates
from edge_student.workers.shared_model import ModelNotDivisible
from edgekd.data.user_modules import import_attribute
from edgekd.files import expanded, named_by
from edgekd.models.card import read_card


def make_recipe(config: StudentConfig, device: str, data: TrainingData, objects: Objects = NO_OBJECTS) -> Recipe:
    """Return the recipe, with the caller's functions where there are some.

    Raises ValueError if code of the user cannot be imported, or if augmentation does not fit the data.
    """
    augment = objects.augment or _known_or_own(config.augment, "--augment", AUGMENTS)
    check_augment(augment, data.private.input_shape, data.private.name)
    schedule = objects.schedule or _known_or_own(config.schedule, "--schedule", SCHEDULES)
    loss = objects.loss or (None if config.loss is None else _known_or_own(config.loss, "--loss", {}))
    return Recipe(
        alpha=config.alpha,
        temperature=config.temperature,
        lr=config.lr,
        lrs=learning_rates(schedule, lr=config.lr, warmup=config.warmup, cycles=config.cycles),
        rule=OptimizerRule(name=config.optimizer, momentum=config.momentum, weight_decay=config.weight_decay),
        clip_grad=config.clip_grad,
        augment=augment,
        loss=loss,
        frozen=config.frozen,
        trains_while_starved=config.while_starved == "private",
        batch_size=config.batch_size,
        public_batch=config.public_batch,
        seed=config.seed,
        device=device,
        preprocessing=data.preprocessing,
    )


def prepare_student(student: torch.nn.Module, config: StudentConfig, *, num_classes: int, is_resumed: bool) -> None:
    """Load the weights of --init, unless the run is resumed, and freeze.

    Raises ValueError for weights or patterns that do not fit.
    """
    if config.init is not None and not is_resumed:
        kept = [part.strip() for part in (config.init_except or "").split(",") if part.strip()]
        load_initial(student, expanded(config.init), kept, num_classes)
    if config.frozen:
        freeze(student, config.frozen)


def check_initial_classes(config: StudentConfig, class_names: Sequence[str]) -> None:
    """Raise ValueError if the last layer of --init has other classes, or another order, than the teacher.

    Nothing is known, and nothing is checked, for weights without class names.
    """
    if config.init is None or config.init_except is not None:
        return
    card = read_card(expanded(config.init))
    if card is not None and card.class_names and class_names and tuple(card.class_names) != tuple(class_names):
        difference = "in another order" if set(card.class_names) == set(class_names) else "others"
        raise ValueError(
            f"--init {config.init} has {len(card.class_names)} classes, {difference} than the {len(class_names)} of the teacher: "
            f"start without the last layer with --init-except {HEAD}"
        )


def check_loss(recipe: Recipe, num_shards: int, num_classes: int) -> None:
    """Raise ModelNotDivisible if shards cannot compute the user's loss, and ValueError if it fails for random logits."""
    if recipe.loss is None:
        return
    sizes = {"--batch-size": recipe.batch_size, "--public-batch": recipe.public_batch}
    for flag, size in sizes.items():
        if size % num_shards:
            raise ModelNotDivisible(f"--loss with {num_shards} shards needs a multiple of {num_shards} rows, {flag} is {size}")
    is_mean = is_mean_over_rows(
        recipe.loss,
        num_shards=num_shards,
        num_private=recipe.batch_size,
        num_public=recipe.public_batch,
        num_classes=num_classes,
    )
    if not is_mean:
        raise ModelNotDivisible("--loss is not a mean over the rows of a batch")


def recipe_flags(config: StudentConfig, objects: Objects = NO_OBJECTS) -> dict[str, Any]:
    """Return the flags of the recipe that the weights depend on, as plain values by flag name.

    A file is represented by its digest. The number of cycles counts for a schedule that depends on it.
    """
    names = (
        "optimizer",
        "momentum",
        "weight_decay",
        "schedule",
        "warmup",
        "clip_grad",
        "augment",
        "loss",
        "freeze",
        "init_except",
        "while_starved",
    )
    flags: dict[str, Any] = {name: getattr(config, name) for name in names}
    if config.init is not None:
        with named_by("--init"), expanded(config.init).open("rb") as file:
            flags["init"] = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        flags["init"] = None
    flags |= objects.names()
    if flags["schedule"] != "constant":
        flags["cycles"] = config.cycles
    return flags


def _known_or_own(spec: str, flag: str, known: Mapping[str, Any]) -> Any:
    """Return the known function of this name, or one of the user's code. Raises ValueError."""
    if spec in known:
        return known[spec]
    module, _, name = spec.partition(":")
    forms = ", ".join((*known, "package.module:callable"))
    return import_attribute(module, name, what=f"{flag} {spec}", forms=forms)
