"""For a training loop of the user: public batches with a teacher's logits, and the scheduler's tasks as context managers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from edge_student.host.borrowed import borrowed_process
from edge_student.ipc.ring import Ring, prefetch_limit
from edge_student.run.data import check_public, name_of_source
from edge_student.run.setup import bind_team, configure_worker, ring_shape
from edge_student.run.worker_process import CommWorkerProcess
from edge_student.settings.keywords import check_names, train_config
from edge_student.settings.link import LinkSettings
from edge_student.settings.shared import BufferSettings
from edgekd.cli.flags import hints_of
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import dataset_of, load_dataset
from edgekd.wire.identity import new_run_id
from edgekd.wire.order import batch_ids
from scheduler.control.controller import Controller
from scheduler.live.binding import CommBinding
from scheduler.live.loop import SchedulerLoop
from scheduler.live.threads import may_leave_idle_priority
from scheduler.model.state import Task
from scheduler.policies.registry import kind_of, make_policy

_SETTINGS = hints_of(LinkSettings).keys() | hints_of(BufferSettings).keys() | {"cores", "seed", "prefetch", "streams"}


class Batch:
    """One public batch. Compute its forward within `forward()`, and backward and step within `backward()`.

    `inputs`: the samples as they are stored, uint8 or float32 [B, ...].
    """

    def __init__(self, index: int, inputs: torch.Tensor, loop: SchedulerLoop, ring: Ring) -> None:
        self.index = index
        self.inputs = inputs
        self._loop, self._ring = loop, ring
        self._next: Task | None = Task.FORWARD

    @property
    def is_done(self) -> bool:
        """Whether both tasks are done."""
        return self._next is None

    def close(self) -> None:
        """End the use of the batch, with its stream."""
        self._next = None

    @contextmanager
    def forward(self) -> Iterator[torch.Tensor]:
        """Run the Forward task: wait for cores, and yield `inputs`. The logits may still be on their way.

        Raises ValueError unless it is the next task of the batch, and WorldError if the teacher fails.
        """
        self._check(Task.FORWARD)
        with self._loop.task(Task.FORWARD):
            yield self.inputs
        self._next = Task.BACKWARD

    @contextmanager
    def backward(self) -> Iterator[torch.Tensor]:
        """Run the Backward task: wait for cores and for the logits, and yield the teacher's logits, float32 [B, classes].

        They are valid within the block only. Raises as `forward`.
        """
        self._check(Task.BACKWARD)
        with self._loop.task(Task.BACKWARD):
            yield torch.from_numpy(self._ring.logits(self.index)).to(torch.float32)
        self._next = None

    def _check(self, task: Task) -> None:
        if self._next is not task:
            raise ValueError(f"batch {self.index}: use `forward()` once, then `backward()` once, within the stream's block")
        self._next = None  # until the task is done


class LogitStream:
    """Streams a teacher's logits of `public` for `cycles` batches. Use it as a context manager, and iterate over its batches.

    - `teacher`: the address "HOST:PORT" of `cloud-teacher serve`.
    - `public`: the data set that the teacher serves: a name, or a map-style PyTorch data set.
    - `policy`: a scheduling policy that pins one team of threads, or "os-default".

    Settings of receiving, cores and security have the name and the default of a flag of `edge-student train`, such as
    public_batch=128, seed=0 or encoding="int8". The training has one team of threads, and no checkpoints: they are the caller's.
    Raises ValueError for a wrong setting, and edgekd.errors.WorldError if the teacher fails.
    """

    def __init__(self, *, teacher: str, public: Any, cycles: int, policy: str = "adaptive", **settings: Any) -> None:
        check_names(settings, _SETTINGS)
        name = {"public": public} if isinstance(public, str) else {}
        self._config = train_config({**settings, **name, "teacher": teacher, "cycles": cycles, "policy": policy, "shards": 1})
        if self._config.input_encoding is not None:
            raise ValueError("public_inputs must be local: this stream has the logits of your own public data")
        if isinstance(public, str):
            public = load_dataset(public)
        self.public: Dataset = public if isinstance(public, Dataset) else dataset_of(public, "public")
        self._is_used = False
        self._loop: SchedulerLoop | None = None
        self._batch: Batch | None = None
        self._resources = ExitStack()
        self.num_classes = 0
        """Number of classes of the teacher, known within the context."""
        self.class_names: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        config = self._config
        config.check_secrets()
        with ExitStack() as stack:
            cores = stack.enter_context(borrowed_process(config.cores))
            launch_options = kind_of(config.policy).launch_options
            worker = stack.enter_context(
                CommWorkerProcess(configure_worker(config, config.teacher, launch_options, cores, run_id=new_run_id()))
            )
            described = worker.await_description()
            check_public(described, self.public, name_of_source(config.teacher))
            self.num_classes, self.class_names = described.num_classes, tuple(described.class_names)
            self._ring = Ring.create(ring_shape(config, described))
            stack.callback(self._ring.close)
            worker.use_ring(self._ring, start=0, stop=config.cycles)
            controller = Controller(
                policy=make_policy(
                    config.policy,
                    num_cores=len(cores),
                    seed=config.seed,
                    profile=None,
                    has_workers=False,
                    may_change_priority=may_leave_idle_priority(),
                ),
                cycles=config.cycles,
                num_cores=len(cores),
                prefetch=prefetch_limit(self._ring.shape.num_slots, config.cycles),
                profile=None,
                comp_moves_at_boundaries=True,
                inputs_travel=False,
                done=0,
            )
            self._loop = SchedulerLoop(
                controller=controller,
                cores=cores,
                comm_port=worker,
                comm_binding=CommBinding(worker.pid),
                comp_binding=bind_team(torch.get_num_threads()),
                record=lambda record: None,
            )
            stack.callback(self._loop.finish)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._batch is not None:
            self._batch.close()
        self._resources.close()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order. Each must have had its two tasks before the next one."""
        config, inputs = self._config, self.public.inputs
        if self._is_used or self._loop is None:
            raise ValueError("a LogitStream gives its batches once, within a `with` block: make another one")
        self._is_used = True
        self._loop.start()
        for index in range(config.cycles):
            ids = batch_ids(config.seed, len(inputs), config.public_batch, index)
            batch = Batch(index, torch.from_numpy(np.ascontiguousarray(inputs[ids])), self._loop, self._ring)
            self._batch = batch
            yield batch
            if not batch.is_done:
                raise ValueError(f"batch {index} was not used within `forward()` and then `backward()`")
