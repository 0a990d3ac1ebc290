"""The live loop: passes real events to the controller and applies its decisions to the kernel.

Two threads share one lock. The compute worker wraps every task in `with loop.task(...)`: it reports the task boundary, waits while
it has no logits or no cores. The scheduler thread receives the events of the comm worker through a CommPort. The thread that
receives an event also passes it to the controller, pins comm and moves compute workers, all at once. One team of threads moves when
its task ends (see scheduler/model/handover.py).

The loop knows neither the names of policies nor the content of a batch nor the training step.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from scheduler.control.controller import Controller
from scheduler.live.binding import CommBinding, TeamBinding, WorkersBinding
from scheduler.live.comm_port import BatchArrived, CommEnded, CommEvent, CommFailed, CommPort
from scheduler.live.comm_side import CommSide
from scheduler.live.comp_side import CompSide
from scheduler.live.core_count import CoreCount
from scheduler.live.records import Record, of_batch, of_decision
from scheduler.live.threads import BindingRefusedError, CoresGoneError, name_this_thread, usable_of
from scheduler.model.handover import hand_over
from scheduler.model.placement import Placement, place
from scheduler.model.state import CoresChanged, Decision, Event, Reason, Started, Task, TaskDone

_POLL_S = 0.5
_FINAL_EVENT_S = 2.0
_CHOSEN = frozenset({Reason.POLICY, Reason.LEARNING, Reason.UNMANAGED})
"""Reasons of decisions that a policy made. Forced decisions hold too briefly to change more than cores."""


class SchedulerLoop:
    """Runs one controller against one comm worker and the calling compute worker, on `cores`.

    Usage, all in the compute thread: call `start()`, wrap each task in `with task(...)`, then call `finish()`. `record` receives
    the log record by record. Times are seconds of `clock`.
    """

    def __init__(
        self,
        *,
        controller: Controller,
        cores: Sequence[int],
        comm_port: CommPort,
        comm_binding: CommBinding,
        comp_binding: TeamBinding | WorkersBinding,
        record: Callable[[Record], None],
        clock: Callable[[], float] = time.monotonic,
        usable: Callable[[frozenset[int]], frozenset[int]] = usable_of,
    ) -> None:
        """`usable` returns the subset of some cores that the kernel still grants. The scheduler thread calls it twice a second."""
        self._controller = controller
        self.cores = CoreCount(cores, usable, clock)
        self._comm_port = comm_port
        self._comm = CommSide(comm_port, comm_binding)
        self._comp = CompSide(comp_binding, record, clock)
        self._record = record
        self._clock = clock
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="edgekd-scheduler", daemon=True)
        self._thread_is_known = threading.Event()
        self._decision: Decision | None = None
        self._placement: Placement | None = None
        self._last_strategy = ""
        self._requested_by: Decision | None = None  # the decision that first gave compute the cores of `_placement`
        self._held_s = 0.0  # of the running task
        self._held_since: float | None = None  # compute that moves at once is held in the middle of a task since then
        self._task_runs = False
        self._task_started = 0.0
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._failure_is_raised = False
        self.binding_refusals: list[str] = []
        self.comm_troubles: list[str] = []
        self.logits_wait_s = 0.0
        """Seconds that training has waited for logits."""
        self.late_comm_failure = ""
        """The failure of a comm worker that had delivered every batch; empty if there was none. It does not end the run."""

    def start(self) -> None:
        """Start both sides. The wall-clock time of the run starts here."""
        self._thread.start()
        self._thread_is_known.wait()
        with self._changed:
            self._decide(Started(time=self._clock()))
        self._comm_port.go()

    @contextmanager
    def task(self, task: Task) -> Iterator[None]:
        """Surround one FORWARD or BACKWARD: wait until it may run, bind compute to its cores, report its end.

        Raises the error that made the comm worker fail.
        """
        index = self._enter(task)
        self._task_started = self._clock()
        yield
        self._complete(task, index)

    def has_batch(self, index: int) -> bool:
        """Return whether comm has delivered this batch. Never blocks."""
        return self._controller.state.num_comm > index

    def is_starved(self, index: int) -> bool:
        """Return whether comm has not delivered this batch. Never blocks. Raises the error that made the comm worker fail."""
        with self._changed:
            self._raise_failure()
            return not self.has_batch(index)

    def complete_cycle(self) -> None:
        """Report the tasks of the present cycle as done, after an exception at which compute completed them. Never blocks."""
        state = self._controller.state
        for task in (Task.FORWARD, Task.BACKWARD)[state.num_forward - state.num_backward :]:
            self._complete(task, state.next_comp_index)
            self._task_started = self._clock()

    def _complete(self, task: Task, index: int) -> None:
        started, ended = self._task_started, self._clock()
        with self._changed:
            self._end_hold(ended)
            self._task_runs = False
        held = {"held_s": self._held_s} if self._held_s else {}
        self._record({"event": "task", "task": task.value, "index": index, "started": started, "ended": ended, **held})
        self._held_s = 0.0
        with self._changed:
            self._comp.in_use = frozenset()
            if task is Task.BACKWARD:
                self._comm_port.free_slots(index + 1)
            self._decide(TaskDone(task=task, time=self._clock()))  # not `ended`: another event may have been decided since

    def finish(self) -> None:
        """Stop the scheduler thread and restore masks and thread counts. Safe after a failure, and to call twice.

        Raises a failure of comm or of the scheduler thread that no task has raised.
        """
        with self._changed:
            self._emit_decision()
            if self._controller.state.comm_is_done and self._thread.is_alive():  # the final event of the worker is in flight
                self._changed.wait_for(lambda: self._comm.has_ended or self._failure is not None, _FINAL_EVENT_S)
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._comp.restore()
        if not self._failure_is_raised:
            self._raise_failure()

    @property
    def comm_has_ended(self) -> bool:
        """Whether the comm worker has delivered every batch and exits."""
        return self._comm.has_ended

    @property
    def decision(self) -> Decision | None:
        """The decision in force; None before `start`."""
        with self._changed:
            return self._decision

    @property
    def holds_compute(self) -> bool:
        """Whether compute workers are stopped now, because a decision gives them no cores."""
        return self._comp.is_held

    @property
    def class_refusal(self) -> str:
        """The kernel's reason for refusing a change of comm's scheduling class; empty if it never did."""
        return self._comm.class_refusal

    def _enter(self, task: Task) -> int:
        waiting_since = self._clock()
        why = ""
        with self._changed:
            while True:
                self._raise_failure()
                assert self._decision is not None, "start() comes first"
                assert self._placement is not None
                assert self._requested_by is not None
                state, placement, requested_by = self._decision.state, self._placement, self._requested_by
                if state.comp_is_blocked:
                    why = why or "logits"
                elif not placement.comp:
                    why = why or "hold"
                else:
                    break
                self._comp.record_wait(placement, requested_by)
                self._changed.wait()
            self._comp.occupy(placement.comp)
            self._task_runs = True
        if why:
            waited = {"started": waiting_since, "ended": self._clock()}
            if why == "logits":
                self.logits_wait_s += waited["ended"] - waiting_since
            self._record({"event": "wait", "why": why, "index": state.next_comp_index, **waited})
        if not self._comp.moves_at_once:
            self._bind_team(placement, requested_by)
        return state.next_comp_index

    def _bind_team(self, placement: Placement, requested_by: Decision) -> None:
        """Bind the team of the calling thread to its part of `placement`. Call without the lock."""
        try:
            self._comp.bind(placement, requested_by, "task")
        except BindingRefusedError as error:
            self._handle_refusal(error, placement)

    def _handle_refusal(self, error: BindingRefusedError, placement: Placement) -> None:
        """Handle a refused mask.

        If cores are gone, compute is bound again at its next task. Otherwise pinning stops for the rest of the run.
        """
        if isinstance(error, CoresGoneError):
            with self._changed:
                self.cores.suspect(error, placement.comp)
            counting = threading.Thread(target=self._run_guarded, args=(self._count_cores,), name="edgekd-count")
            counting.start()  # counting changes the mask of its thread, and must not change the mask of this one
            counting.join()
        else:
            self._stop_pinning(error)
        if self.binding_refusals:
            self._comp.restore()  # undo masks that were set before the refusal

    def _hand_over(self) -> None:
        """Carry out the effect that the placement has on comm now. Call with the lock held."""
        assert self._placement is not None
        handover = hand_over(self._placement, self._comp.in_use)
        try:
            self._comm.apply(handover)
        except CoresGoneError as error:
            self.cores.suspect(error, self._placement.comm)  # the scheduler thread counts the cores
        except BindingRefusedError as error:
            self._stop_pinning(error)

    def _decide(self, event: Event) -> None:
        """Have an event decided, pin or hold comm, and move compute workers. Call with the lock held."""
        decision = self._controller.handle(event)
        self._emit_decision()
        self._decision = decision
        self._record_rates(decision)
        former, self._placement = self._placement, place(decision.allocation, self.cores.now)
        if former is None or former.comp != self._placement.comp:
            self._requested_by = decision
        if decision.reason in _CHOSEN:
            self._comm.set_idle_priority(self._placement.comm_is_idle, self._record_now)
        if self._comp.moves_at_once:
            self._move_workers(decision.time)
        self._hand_over()
        self._changed.notify_all()

    def _move_workers(self, time: float) -> None:
        """Give the compute workers the cores of the last decision, now. Call with the lock held."""
        assert self._placement is not None
        assert self._requested_by is not None
        try:
            self._comp.apply_at_once(self._placement, self._requested_by)
        except CoresGoneError as error:
            self.cores.suspect(error, self._placement.comp)
        except BindingRefusedError as error:
            self._stop_pinning(error)
        if not self._task_runs:
            return
        if self._comp.is_held and self._held_since is None:
            self._held_since = time
        elif not self._comp.is_held:
            self._end_hold(time)

    def _end_hold(self, time: float) -> None:
        """Record a hold in the middle of a task, if there was one. Call with the lock held."""
        if self._held_since is None:
            return
        started, self._held_since = self._held_since, None
        self._held_s += time - started
        index = self._controller.state.next_comp_index
        self._record({"event": "wait", "why": "hold", "index": index, "started": started, "ended": time})

    def _record_now(self, record: Record) -> None:
        self._record({"time": self._clock(), **record})

    def _record_rates(self, decision: Decision) -> None:
        """Record the known rates when a planning policy changes its strategy."""
        learning = self._controller.learning
        if learning is None or decision.reason is not Reason.POLICY:
            return
        if learning.planner.strategy != self._last_strategy:
            self._last_strategy = learning.planner.strategy
            known = {"event": "rates", "time": decision.time, "decision": decision.sequence}
            self._record({**known, "allocation": str(decision.allocation), **learning.rates()})

    def _stop_pinning(self, error: BindingRefusedError) -> None:
        """Continue the run unpinned: comm gets every core back now, compute at its next boundary, in its own thread."""
        with self._changed:
            self.binding_refusals.append(str(error))
            self._record_now({"event": "binding-refused", "cause": str(error)})
            self._comp.stop_pinning()
            self._comm.stop_pinning(frozenset(self.cores.now))

    def _emit_decision(self) -> None:
        """Record the decision that was in force until now, with the masks read back from the kernel. Call with the lock held."""
        if self._decision is None or self._placement is None:
            return
        self._record(of_decision(self._decision, self._placement, self._comm.masks, self._comp.masks, self._comm.is_held))
        self._decision = None

    def _run(self) -> None:
        self._comp.leave_alone(name_this_thread("edgekd-sched"))
        self._thread_is_known.set()
        self._run_guarded(self._listen)

    def _run_guarded(self, work: Callable[[], None]) -> None:
        """Call `work`. Pass its exception to the compute worker, which would otherwise wait forever."""
        try:
            work()
        except Exception as error:
            with self._changed:
                self._fail(error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._failure_is_raised = True
            raise self._failure

    def _fail(self, error: Exception) -> None:
        """Keep the first failure, which the compute worker raises. Call with the lock held."""
        self._failure = self._failure or error
        self._comp.release()  # the task that is held ends, and the next one raises
        self._changed.notify_all()

    def _listen(self) -> None:
        while not self._stopping.is_set() and self._failure is None:
            event = None if self._comm.has_ended else self._comm_port.next_event(_POLL_S)
            if self.cores.is_due:
                self._count_cores()
            if event is not None:
                with self._changed:
                    self._handle_comm_event(event)
            if self._comm.has_ended:  # training continues, possibly for hours, and cores may still be taken away
                self._stopping.wait(_POLL_S)

    def _count_cores(self) -> None:
        """Have the controller plan again if cores were taken away or given back. Otherwise a missing mask was a refusal.

        Call it in a thread whose own mask may change.
        """
        cores = self.cores.count()
        with self._changed:
            suspicion, self.cores.suspicion = self.cores.suspicion, None
            if cores is not None and not cores:
                self._continue_without_cores()
            elif cores is not None and cores != self.cores.now:  # another thread may have counted meanwhile
                self._change_cores(cores)
            elif suspicion is not None and not self.binding_refusals:
                self._stop_pinning(suspicion)

    def _continue_without_cores(self) -> None:
        """Stop pinning, because the process has lost every core of the run. Call with the lock held."""
        if not self.binding_refusals:
            self._stop_pinning(CoresGoneError(f"none of the cores {sorted(self.cores.now)} is left to this process"))

    def _change_cores(self, cores: tuple[int, ...]) -> None:
        """Use these cores from now on. Call with the lock held."""
        self._record_now({"event": "cores-changed", "before": sorted(self.cores.now), "cores": list(cores)})
        self.cores.change(cores, self._controller.state.num_backward)
        # The kernel has moved threads to other cores.
        self._comm.forget()
        self._comp.forget()
        self._decide(CoresChanged(num_cores=len(cores), time=self._clock()))

    def _handle_comm_event(self, event: CommEvent) -> None:
        """Process one event of the comm worker. Call with the lock held."""
        if isinstance(event, BatchArrived):
            self._record(of_batch(event))
            self._pin_new_comm_threads()
            self._decide(TaskDone(task=Task.COMM, time=self._clock(), busy_s=event.busy_s))
        elif isinstance(event, CommEnded):
            self._comm.end()
            self._changed.notify_all()
        elif isinstance(event, CommFailed):
            if self._controller.state.comm_is_done:  # training needs nothing more from the worker
                self.late_comm_failure = str(event.error)
                self._comm.end()
                self._changed.notify_all()
            else:
                self._fail(event.error)
        else:
            self.comm_troubles.append(event.cause)
            self._record({"event": "comm-trouble", "time": event.time, "cause": event.cause})

    def _pin_new_comm_threads(self) -> None:
        try:
            self._comm.pin_new_threads()
        except CoresGoneError as error:
            self.cores.suspect(error, ())
        except BindingRefusedError as error:
            self._stop_pinning(error)
