"""The training loop compared with a step computed by hand."""

import numpy as np
import pytest
import torch
from small_training import PRIVATE, PUBLIC, RECIPE, TEST, Boundaries, Logits, student

from edge_student.training.loss import combined_loss
from edge_student.training.team_trainer import TeamTrainer
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input
from edgekd.wire.order import batch_ids
from scheduler.model.state import Task


def test_three_cycles_are_three_steps_of_sgd_on_equation_1() -> None:
    torch.set_num_threads(1)
    trainer = TeamTrainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    boundaries = Boundaries()
    trainer.train(3, boundaries, Logits(), lambda done: None)
    assert boundaries.tasks == [Task.FORWARD, Task.BACKWARD] * 3

    by_hand = student()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for cycle in range(3):
        private_ids = batch_ids(5, len(PRIVATE.inputs), 6, cycle)
        public_ids = batch_ids(4, len(PUBLIC.inputs), 10, cycle)
        logits = by_hand(to_input(np.concatenate([PRIVATE.inputs[private_ids], PUBLIC.inputs[public_ids]]), Preprocessing()))
        labels, teacher = torch.from_numpy(PRIVATE.labels[private_ids]), torch.from_numpy(Logits().logits(cycle))
        loss = combined_loss(logits[:6], labels, logits[6:], teacher, alpha=0.3, temperature=2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(trainer.student.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert trainer.last_loss == loss.item()


def test_warming_up_changes_neither_weights_nor_statistics() -> None:
    trainer = TeamTrainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    before = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    trainer.warm_up(10)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.student.state_dict().items())


def test_accuracy_is_the_fraction_that_is_right() -> None:
    trainer = TeamTrainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    with torch.no_grad():
        predicted = trainer.student.eval()(to_input(TEST.inputs, Preprocessing())).argmax(1).numpy()
    assert trainer.accuracy(TEST) == pytest.approx((predicted == TEST.labels).mean())


def test_images_of_two_shapes_are_refused_by_name() -> None:
    other = load_dataset("synthetic:classes=10,size=16,samples=20:public")
    with pytest.raises(ValueError, match="shapes must be equal"):
        TeamTrainer(student=student(), private=PRIVATE, public=other, recipe=RECIPE)
