"""Training with one process for each shard: the weights depend on the number of shards and on nothing else."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from noisy_student import NoisyStudent
from small_training import PRIVATE, PUBLIC, RECIPE, TEST, Boundaries, Logits, student

from edge_student.events.spans import SHARD_PARTS
from edge_student.ipc.ring import Ring, RingShape
from edge_student.training.team_trainer import TeamTrainer
from edge_student.workers.pool import MAX_REPLACED, WorkerFailed
from edge_student.workers.sharded_trainer import ShardedTrainer
from edge_student.workers.shared_dataset import SharedDataset
from edgekd.errors import WorldError
from scheduler.model.state import Task

CYCLES = 6
STUDENTS = {
    "cnn": student,
    "noisy": NoisyStudent,
    "linear": lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
}


@pytest.fixture(scope="module")
def ring() -> Iterator[Ring]:
    """A ring with the logits of all cycles."""
    ring = Ring.create(RingShape(num_slots=CYCLES, batch_size=RECIPE.public_batch, num_classes=10))
    for cycle in range(CYCLES):
        ring.slot(cycle).logits[:] = Logits().logits(cycle)
    yield ring
    ring.close()


@contextmanager
def trainer(ring: Ring, num_shards: int, name: str = "cnn", **changes: object) -> Iterator[ShardedTrainer]:
    torch.manual_seed(3)
    with ShardedTrainer(
        student=STUDENTS[name](),
        private=SharedDataset(PRIVATE),
        public=SharedDataset(PUBLIC),
        ring=ring,
        recipe=replace(RECIPE, **changes),  # type: ignore[arg-type]
        num_shards=num_shards,
    ) as made:
        yield made


def weights(made: ShardedTrainer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in made.snapshot().items()}


def train(ring: Ring, num_shards: int, name: str = "cnn") -> dict[str, bytes]:
    with trainer(ring, num_shards, name) as made:
        made.train(CYCLES, Boundaries(), ring, lambda done: None)
        return weights(made)


@pytest.fixture(scope="module")
def whole(ring: Ring) -> dict[str, bytes]:
    """The state of the noisy student after all cycles in three shards."""
    return train(ring, 3, "noisy")


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_shards_give_the_weights_of_the_whole_batch_up_to_rounding(ring: Ring, num_shards: int) -> None:
    torch.manual_seed(3)
    team = TeamTrainer(student=STUDENTS["linear"](), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    team.train(CYCLES, Boundaries(), Logits(), lambda done: None)
    with trainer(ring, num_shards, "linear") as sharded:
        sharded.train(CYCLES, Boundaries(), ring, lambda done: None)
        assert sharded.last_loss == pytest.approx(team.last_loss, rel=1e-4)
        for name, tensor in team.student.state_dict().items():
            assert torch.allclose(sharded.student.state_dict()[name], tensor, rtol=1e-3, atol=1e-5), name
        assert sharded.accuracy(TEST) == pytest.approx(team.accuracy(TEST), abs=0.01)


@pytest.mark.promise(number=34)
def test_a_run_is_repeatable_on_one_core_and_on_all(ring: Ring, whole: dict[str, bytes]) -> None:
    with trainer(ring, 3, "noisy") as made:
        for pid in made.pids:
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
        made.train(CYCLES, Boundaries(), ring, lambda done: None)
        assert weights(made) == whole


def test_the_parts_of_each_cycle_are_timed_by_shard(ring: Ring) -> None:
    found = []

    def read(num_cycles: int) -> None:
        if num_cycles == 3:
            os.kill(made.pids[0], signal.SIGKILL)  # in or before the next Forward
        while num_cycles not in (3, CYCLES) and made._board.num_done <= 2 * num_cycles:
            time.sleep(0.001)  # until all have completed the next Forward, which has times of its own
        found.append(made.shard_spans())

    before = time.monotonic()
    with trainer(ring, 3) as made:
        made.train(CYCLES, Boundaries(), ring, read)
    after = time.monotonic()
    assert len(found) == CYCLES
    starts = [spans["started"] for spans in found]
    assert before <= starts[0] < starts[-1] < found[-1]["ended"] <= after
    assert starts == sorted(starts)
    for spans in found:
        forward, backward, step = (spans[part] for part in SHARD_PARTS)
        assert all(len(part) == 3 for part in (forward, backward, step))
        assert min(start for start, _ in forward) == 0.0
        for shard in range(3):
            ends = [*forward[shard], *backward[shard], *step[shard]]
            assert ends == sorted(ends)
        assert min(start for start, _ in step) >= max(end for _, end in backward), "a step needs all gradients"


def test_other_numbers_of_shards_give_other_weights(ring: Ring, whole: dict[str, bytes]) -> None:
    assert train(ring, 2, "noisy") != whole


class KillsIn(Boundaries):
    """A schedule that kills a worker in one task."""

    def __init__(self, number: int, delay_s: float) -> None:
        super().__init__()
        self.number, self.delay_s = number, delay_s
        self.made: ShardedTrainer | None = None

    @contextmanager
    def task(self, task: Task) -> Iterator[None]:  # type: ignore[override]
        self.tasks.append(task)
        assert self.made is not None
        if len(self.tasks) == self.number:
            victim = self.made.pids[1]
            killer = threading.Timer(self.delay_s, os.kill, (victim, signal.SIGKILL))
            killer.start()
            yield
            killer.join()
        else:
            yield


@pytest.mark.promise(number=29)
@pytest.mark.parametrize("number", [1, 2, 5, 8])
@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.003])
def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(
    ring: Ring, whole: dict[str, bytes], number: int, delay_s: float
) -> None:
    schedule = KillsIn(number, delay_s)
    with trainer(ring, 3, "noisy") as made:
        schedule.made = made
        made.train(CYCLES, schedule, ring, lambda done: None)
        assert weights(made) == whole


def test_workers_that_die_again_and_again_end_the_run(ring: Ring) -> None:
    with trainer(ring, 2) as made:

        class Kills(Boundaries):
            def task(self, task: Task) -> nullcontext:
                for pid in made.pids:
                    os.kill(pid, signal.SIGKILL)
                return nullcontext()

        with pytest.raises(WorldError, match=f"after {MAX_REPLACED} others were replaced"):
            made.train(CYCLES, Kills(), ring, lambda done: None)


class Refuses(torch.nn.Module):
    """A student that fails in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(64, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("no such input")
        return self.head(inputs.flatten(1))


def test_an_exception_in_a_worker_is_raised_with_its_traceback(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "refuses", Refuses)
    with pytest.raises(WorkerFailed, match="RuntimeError: no such input"), trainer(ring, 2, "refuses"):
        pass


def test_a_run_resumes_with_the_same_weights(ring: Ring, whole: dict[str, bytes]) -> None:
    with trainer(ring, 3, "noisy") as first:
        first.train(2, Boundaries(), ring, lambda done: None)
        kept = first.snapshot()
    with trainer(ring, 3, "noisy", seed=9) as second:
        second.train(1, Boundaries(), ring, lambda done: None)  # state that restore must replace completely
    with trainer(ring, 3, "noisy") as third:
        third.train(1, Boundaries(), ring, lambda done: None)
        third.restore(kept, 2)
        third.train(CYCLES, Boundaries(), ring, lambda done: None, start=2)
        assert weights(third) == whole


def test_batch_normalisation_and_counters_are_combined(ring: Ring) -> None:
    with trainer(ring, 2, "noisy") as made:
        made.train(CYCLES, Boundaries(), ring, lambda done: None)
        state = made.student.state_dict()
        assert int(state["features.2.num_batches_tracked"]) == CYCLES
        assert torch.isfinite(state["features.2.running_var"]).all()
        assert np.array_equal(state["constant"].numpy(), np.array([0.1, np.inf], np.float32))
        assert np.array_equal(state["unused"].numpy(), np.ones(3, np.float32))


def test_an_interrupted_cycle_leaves_the_state_of_the_last_whole_one(ring: Ring) -> None:
    class Stops(Boundaries):
        def task(self, task: Task) -> nullcontext:
            if len(self.tasks) == 5:
                raise KeyboardInterrupt
            return super().task(task)

    with trainer(ring, 2, "noisy") as made:
        with pytest.raises(KeyboardInterrupt):
            made.train(CYCLES, Stops(), ring, lambda done: None)
        num_cycles, stopped = made.num_cycles, weights(made)
    assert num_cycles in (2, 3)  # the workers may have begun the step of the third cycle
    with trainer(ring, 2, "noisy") as made:
        made.train(num_cycles, Boundaries(), ring, lambda done: None)
        assert weights(made) == stopped


def test_an_interruption_while_the_next_forward_runs_does_not_mix_the_cycles(ring: Ring) -> None:
    with trainer(ring, 2, "noisy") as made:

        class Stops(Boundaries):
            @contextmanager
            def task(self, task: Task) -> Iterator[None]:  # type: ignore[override]
                self.tasks.append(task)
                yield
                if len(self.tasks) == 6:
                    while made._board.num_done < 7:  # all workers have completed the Forward of the fourth cycle
                        time.sleep(0.001)
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            made.train(CYCLES, Stops(), ring, lambda done: None)
        assert made.num_cycles == 3
        stopped = weights(made)
    with trainer(ring, 2, "noisy") as made:
        made.train(3, Boundaries(), ring, lambda done: None)
        assert weights(made) == stopped
