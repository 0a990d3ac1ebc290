"""The live loop: carries real events to the controller and its decisions to the kernel.

Two threads meet here under one lock. The compute worker wraps each task in `with loop.task(...)`: it reports the boundary, waits if
it has no logits or no cores, and binds itself; inside a task it calls `loop.between_layers()`. The scheduler thread hears the comm
worker through a CommPort. Whichever thread has an event has it decided at once; comm is pinned at once, compute when its layer or
its task ends, because a team of threads that shrinks in the middle of a parallel operation spins on cores it has lost. For the same
reason comm gets no core before compute has left it.

It refuses to know what a policy is called, what travels, and what is trained.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from scheduler.control.controller import Controller
from scheduler.live.binding import CommBinding, CompBinding
from scheduler.live.comm_port import BatchArrived, CommEnded, CommEvent, CommFailed, CommPort
from scheduler.live.comm_side import CommSide
from scheduler.live.comp_side import CompSide
from scheduler.live.core_count import CoreCount
from scheduler.live.records import Record, of_batch, of_decision
from scheduler.live.threads import BindingRefusedError, CoresGoneError, name_this_thread, usable_of
from scheduler.model.placement import Placement, place
from scheduler.model.state import CoresChanged, Decision, Event, Reason, Started, Task, TaskDone

_POLL_S = 0.5
_LAST_WORDS_S = 2.0
_CHOSEN = frozenset({Reason.POLICY, Reason.LEARNING, Reason.UNMANAGED})
"""What is forced, the other reasons, is too short to change more than cores."""


class SchedulerLoop:
    """Runs one controller against one comm worker and the calling compute worker, on `cores`.

    `record` receives the log line by line. Use: `start()`, then `with task(...)` around every task in order, and inside a task
    `between_layers()` as often as you like, then `finish()`, all in the compute thread. Times are seconds of `clock`.
    """

    def __init__(
        self,
        *,
        controller: Controller,
        cores: Sequence[int],
        comm_port: CommPort,
        comm_binding: CommBinding,
        comp_binding: CompBinding,
        record: Callable[[Record], None],
        clock: Callable[[], float] = time.monotonic,
        usable: Callable[[frozenset[int]], frozenset[int]] = usable_of,
    ) -> None:
        """`usable` says which of some cores the kernel still gives; the scheduler thread asks it from time to time."""
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
        self._asked: Decision | None = None  # the one that first gave compute the cores of `_placement`
        self._held_s = 0.0  # of the task that runs now
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self.binding_refusals: list[str] = []
        self.comm_troubles: list[str] = []

    def start(self) -> None:
        """Start both sides; the wall-clock of the run starts here."""
        self._thread.start()
        self._thread_is_known.wait()
        with self._changed:
            self._decide(Started(time=self._clock()))
        self._comm_port.go()

    @contextmanager
    def task(self, task: Task) -> Iterator[None]:
        """Surround one FORWARD or BACKWARD: waits until it may run, binds compute to its cores, reports its end.

        Raises what made the comm worker fail.
        """
        index = self._enter(task)
        started = self._clock()
        yield
        ended = self._clock()
        held = {"held_s": self._held_s} if self._held_s else {}
        self._record({"event": "task", "task": task.value, "index": index, "started": started, "ended": ended, **held})
        self._held_s = 0.0
        with self._changed:
            self._comp.in_use = frozenset()
            if task is Task.BACKWARD:
                self._comm_port.free_slots(index + 1)
            self._decide(TaskDone(task=task, time=self._clock()))  # not `ended`: another event may have been decided since

    def between_layers(self) -> None:
        """Call it in the middle of a task, in its thread, where no parallel operation runs: moves compute if it has new cores,
        waits if it has none. Costs one look at an attribute if nothing has changed.

        Raises what made the comm worker fail, if compute waits.
        """
        if self._comp.must_move:
            self._move_comp()

    def finish(self) -> None:
        """Stop the scheduler thread and put masks and thread counts back. Safe to call after a failure, and twice."""
        with self._changed:
            self._emit_decision()
            if self._controller.state.comm_is_done and self._thread.is_alive():  # the worker's last words are on their way
                self._changed.wait_for(lambda: self._comm.has_ended or self._failure is not None, _LAST_WORDS_S)
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._comp.restore()

    @property
    def comm_has_ended(self) -> bool:
        """Whether everything has been received and the comm worker has exited."""
        return self._comm.has_ended

    @property
    def num_threads_churned(self) -> int:
        """How often threads of compute's team were replaced behind our back."""
        return self._comp.num_churned

    def _enter(self, task: Task) -> int:
        waiting_since = self._clock()
        why = ""
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                assert self._decision is not None, "start() comes first"
                assert self._placement is not None
                assert self._asked is not None
                state, placement, asked = self._decision.state, self._placement, self._asked
                if state.comp_is_blocked:
                    why = why or "logits"
                elif not placement.comp:
                    why = why or "hold"
                else:
                    break
                self._comp.give_up_cores(placement, asked)
                self._controller.comp_has_moved(self._clock())
                self._changed.wait()
            self._comp.in_use = frozenset(placement.comp)
            self._controller.comp_has_moved(self._clock())
        if why:
            waited = {"started": waiting_since, "ended": self._clock()}
            self._record({"event": "wait", "why": why, "index": state.next_comp_index, **waited})
        self._bind_comp(placement, asked, "task")
        return state.next_comp_index

    def _bind_comp(self, placement: Placement, asked: Decision, where: str) -> None:
        """Bind compute to its part of `placement`. The lock is not held."""
        try:
            self._comp.bind(placement, asked, where, may_pin=not self.binding_refusals)
        except BindingRefusedError as error:
            self._take_refusal(error, placement)

    def _take_refusal(self, error: BindingRefusedError, placement: Placement) -> None:
        """Compute could not be bound. If that is because cores have gone, it is bound anew at its next layer; else never again."""
        if isinstance(error, CoresGoneError):
            with self._changed:
                self.cores.suspect(error, placement.comp)
            counting = threading.Thread(target=self._run_guarded, args=(self._count_cores,), name="edgekd-count")
            counting.start()  # because this thread's own mask is not to be touched
            counting.join()
        else:
            self._refused(error)
        if self.binding_refusals:
            self._comp.restore()  # what was moved before the kernel said no

    def _move_comp(self) -> None:
        """In the middle of a task: leave and take cores until compute has what the last decision gave it."""
        while True:
            with self._changed:
                if not self._comp.must_move:
                    return
                self._wait_for_cores()
                assert self._placement is not None
                assert self._asked is not None
                placement, asked = self._placement, self._asked
                self._comp.in_use |= frozenset(placement.comp)
            self._bind_comp(placement, asked, "layer")
            with self._changed:
                self._comp.in_use = frozenset(placement.comp)
                self._follow_comp()

    def _wait_for_cores(self) -> None:
        """Wait until a decision gives compute a core; its own are comm's meanwhile. The lock is held."""
        assert self._placement is not None
        if self._placement.comp:
            return
        assert self._decision is not None
        assert self._asked is not None
        waiting_since = self._clock()
        self._comp.is_on((), self._asked, "layer")
        self._comp.in_use = frozenset()
        while not self._placement.comp:
            self._follow_comp()  # each time: cores that were given and taken back before it woke up were never compute's
            if self._failure is not None:
                raise self._failure
            self._changed.wait()
        ended = self._clock()
        self._held_s += ended - waiting_since
        index = self._decision.state.next_comp_index
        self._record({"event": "wait", "why": "hold", "index": index, "started": waiting_since, "ended": ended})

    def _follow_comp(self) -> None:
        """Compute has left cores or taken some: comm gets what is free now, and the controller books it. The lock is held."""
        assert self._placement is not None
        self._comp.aim_at(self._placement, may_pin=not self.binding_refusals)
        if not self._comp.must_move:
            self._controller.comp_has_moved(self._clock())
        self._bind_comm(self._placement)

    def _decide(self, event: Event) -> None:
        """Have an event decided and carry out comm's half. The lock is held."""
        decision = self._controller.handle(event)
        self._emit_decision()
        self._decision = decision
        self._say_what_is_known(decision)
        former, self._placement = self._placement, place(decision.allocation, self.cores.now)
        if former is None or former.comp != self._placement.comp:
            self._asked = decision
        self._comp.aim_at(self._placement, may_pin=not self.binding_refusals)
        if decision.reason in _CHOSEN:
            self._comm.set_idle_priority(
                self._placement.is_shared, lambda refusal: self._record({"time": self._clock(), **refusal})
            )
        self._bind_comm(self._placement)
        self._changed.notify_all()

    def _say_what_is_known(self, decision: Decision) -> None:
        """Log the rates that made a planning policy change its mind."""
        planner = self._controller.planner
        if planner is None or decision.reason not in _CHOSEN:
            return
        if planner.strategy != self._last_strategy:
            self._last_strategy = planner.strategy
            known = {"event": "rates", "time": decision.time, "decision": decision.sequence}
            self._record({**known, "allocation": str(decision.allocation), **self._controller.rates()})

    def _bind_comm(self, placement: Placement) -> None:
        try:
            self._comm.place(placement, self._comp.in_use, may_pin=not self.binding_refusals)
        except CoresGoneError as error:
            self.cores.suspect(error, placement.comm)  # the scheduler thread looks into it
        except BindingRefusedError as error:
            self._refused(error)

    def _refused(self, error: BindingRefusedError) -> None:
        """The run goes on unpinned: comm gets every core back here, compute at its next boundary, in its own thread."""
        with self._changed:
            self.binding_refusals.append(str(error))
            self._comp.must_move = False
            self._record({"event": "binding-refused", "time": self._clock(), "cause": str(error)})
            self._comm.unpin(frozenset(self.cores.now))

    def _emit_decision(self) -> None:
        """Log the decision that was in force until now, with the masks that the kernel really gave. The lock is held."""
        if self._decision is None or self._placement is None:
            return
        self._record(of_decision(self._decision, self._placement, self._comm.masks, self._comp.masks, self._comm.is_held))
        self._decision = None

    def _run(self) -> None:
        self._comp.leave_alone(name_this_thread("edgekd-sched"))
        self._thread_is_known.set()
        self._run_guarded(self._listen)

    def _run_guarded(self, work: Callable[[], None]) -> None:
        """A thread of ours that dies must not leave training asleep: the compute worker raises what it died of."""
        try:
            work()
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _listen(self) -> None:
        while not self._stopping.is_set() and self._failure is None:
            event = None if self._comm.has_ended else self._comm_port.next_event(_POLL_S)
            if self.cores.is_due:
                self._count_cores()
            if event is not None:
                with self._changed:
                    self._hear(event)
            if self._comm.has_ended:  # training goes on, perhaps for hours, and may lose cores as before
                self._stopping.wait(_POLL_S)

    def _count_cores(self) -> None:
        """Have the controller plan anew if cores have gone or come back. If none has, a mask that was not given was refused.

        In a thread that may have any mask.
        """
        cores = self.cores.count()
        with self._changed:
            suspicion, self.cores.suspicion = self.cores.suspicion, None
            if cores is not None and not cores:
                self._take_leave()
            elif cores is not None and cores != self.cores.now:  # another thread may have counted meanwhile
                self._change_cores(cores)
            elif suspicion is not None and not self.binding_refusals:
                self._refused(suspicion)

    def _take_leave(self) -> None:
        """No core of the run is left to it, so wherever the kernel has put it, there is nothing to plan. The lock is held."""
        if not self.binding_refusals:
            self._refused(CoresGoneError(f"none of the cores {sorted(self.cores.now)} is left to this process"))

    def _change_cores(self, cores: tuple[int, ...]) -> None:
        """From now on there are these cores. The lock is held."""
        self._record({"event": "cores-changed", "time": self._clock(), "before": sorted(self.cores.now), "cores": list(cores)})
        self.cores.change(cores, self._controller.state.num_backward)
        # The kernel has moved threads as it liked.
        self._comm.forget()
        self._comp.forget()
        self._decide(CoresChanged(num_cores=len(cores), time=self._clock()))

    def _hear(self, event: CommEvent) -> None:
        """Take in one event of the comm worker. The lock is held."""
        if isinstance(event, BatchArrived):
            self._record(of_batch(event))
            self._look_for_new_comm_threads()
            self._decide(TaskDone(task=Task.COMM, time=self._clock(), busy_s=event.busy_s))
        elif isinstance(event, CommEnded):
            self._comm.end()
            self._changed.notify_all()
        elif isinstance(event, CommFailed):
            self._failure = event.error
            self._changed.notify_all()
        else:
            self.comm_troubles.append(event.cause)
            self._record({"event": "comm-trouble", "time": event.time, "cause": event.cause})

    def _look_for_new_comm_threads(self) -> None:
        if self.binding_refusals:
            return
        try:
            self._comm.look_again()
        except CoresGoneError as error:
            self.cores.suspect(error, ())
        except BindingRefusedError as error:
            self._refused(error)
