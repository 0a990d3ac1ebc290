"""The way to the teacher: who it is, whether it lets us in, how long a question takes, and how fast logits come.

It connects, asks, receives a few batches and throws them away. `find_*` are pure; everything else talks to the teacher.
"""

import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edge_student.doctor.finding import Finding, Status, note, ok, problem, unknown
from edge_student.doctor.tls import find_papers, read_papers
from edge_student.ipc.messages import Described
from edge_student.ipc.ring import Slot
from edge_student.receive.diagnose import find_cause
from edge_student.receive.receiver import Receiver
from edge_student.settings.doctor import DoctorConfig
from edgekd.cli.address import format_address, parse_addresses

logger = logging.getLogger(__name__)

_NUM_QUESTIONS = 7
_LONG_ENOUGH_S = 5.0  # for a rate; a window of a slow link would take minutes
_FAR_S = 0.1
_CONNECT_S = 5.0
_CHECKS = ("link.reach", "link.round-trip", "link.throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came in how long."""

    num_batches: int
    num_bytes: int
    seconds: float


def look_at_link(config: DoctorConfig, now: float) -> Iterator[Finding]:
    """All findings of the link, of one teacher after the other, as they are made. `now` in seconds since 1970."""
    if config.teacher is None:
        for check in ("link.tls", *_CHECKS):
            yield unknown(check, "not looked at, because no teacher was named", "name its address with --teacher HOST:PORT")
        return
    for host, port in parse_addresses(config.teacher, flag="--teacher", lowest_port=1):
        yield from _look_at_one(replace(config, teacher=format_address(host, port)), host, port, now)


def _look_at_one(config: DoctorConfig, host: str, port: int, now: float) -> Iterator[Finding]:
    reach = _reach(config, host, port)
    is_open = reach.status is Status.OK
    yield find_papers(read_papers(config.tls, host, port), config.tls, host, now, is_open=is_open)
    yield reach
    if is_open:
        yield from _ask_and_receive(config)
    else:
        yield from _not_made(_CHECKS[1:], "there is no way to the teacher", "link.reach")


def _reach(config: DoctorConfig, host: str, port: int) -> Finding:
    """Whether a gRPC server lets us connect, and if not, what stands between."""
    check = "link.reach"
    try:
        config.check_secrets()
    except ValueError as error:
        return problem(check, f"what is to open the connection cannot be used: {error}", "name the right file, or make it readable")
    cause = find_cause(host, port, config.tls, timeout_s=_CONNECT_S)
    if cause is None:
        how = "over TLS" if config.tls else "in plaintext"
        return ok(check, f"a gRPC server answers at {config.teacher} {how}", teacher=config.teacher, tls=bool(config.tls))
    remedy = "start `cloud-teacher serve` there, and look at --teacher and at the network and firewall in between"
    if cause.is_final or cause.may_be_chance:
        remedy = "mend what that sentence names; `deploy/certs.sh` makes certificates"
    return problem(check, cause.text, remedy, is_final=cause.is_final)


def _not_made(checks: tuple[str, ...], why: str, first: str) -> Iterator[Finding]:
    for check in checks:
        yield unknown(check, f"not looked at, because {why}", f"mend {first} first")


def _ask_and_receive(config: DoctorConfig) -> Iterator[Finding]:
    assert config.teacher is not None
    configuration = config.configure(teacher=config.teacher, batch_size=config.public_batch)
    receiver = Receiver(configuration, lambda cause, attempt: logger.debug("attempt %d failed: %s", attempt, cause))
    try:
        try:
            described, first_s, seconds = _ask(receiver)
        except (OSError, ValueError, RuntimeError) as error:
            yield problem("link.round-trip", _plainly(error), "mend what that sentence names, here or at the teacher")
            yield from _not_made(_CHECKS[2:], "the teacher does not answer", "link.round-trip")
            return
        yield find_round_trip(described, first_s, seconds)
        try:
            logger.info("receiving for %g s, to see how fast logits come", _LONG_ENOUGH_S)
            received = _receive(receiver, described, config)
        except (OSError, ValueError, RuntimeError) as error:
            yield problem("link.throughput", _plainly(error), "look at the teacher's own messages: it answers, and does not stream")
            return
        yield find_throughput(received, described, config)
    finally:
        receiver.close()


def _plainly(error: Exception) -> str:
    """The first cause of an error: that it was not tried again says nothing here."""
    while isinstance(error.__cause__, OSError | ValueError):
        error = error.__cause__
    return str(error)


def _ask(receiver: Receiver) -> tuple[Described, float, list[float]]:
    """Who the teacher is; seconds of the first question, which connects, and of those that follow."""
    started = time.perf_counter()
    described = receiver.describe()
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(_NUM_QUESTIONS):
        started = time.perf_counter()
        receiver.describe()
        seconds.append(time.perf_counter() - started)
    return described, first_s, seconds


def find_round_trip(described: Described, first_s: float, seconds: list[float]) -> Finding:
    """How far away the teacher is."""
    check, middle_s = "link.round-trip", statistics.median(seconds)
    details = {
        "dataset": described.dataset_name,
        "num_samples": described.num_samples,
        "num_classes": described.num_classes,
        "teacher_digest": described.teacher_digest,
        "connect_ms": round(first_s * 1000, 3),
        "round_trip_ms": [round(value * 1000, 3) for value in seconds],
    }
    text = (
        f"a question to the teacher of {described.dataset_name} ({described.num_samples} samples, {described.num_classes} classes) "
        f"takes {middle_s * 1000:.1f} ms (median of {len(seconds)}, {min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f}), and "
        f"the first, which connects, {first_s * 1000:.0f} ms"
    )
    if middle_s > _FAR_S:
        return note(check, text, "keep --window large: every window begins with such a wait", **details)
    return ok(check, text, **details)


def _receive(receiver: Receiver, described: Described, config: DoctorConfig) -> Received:
    """One window, or as much of it as comes in a few seconds; nothing is kept."""
    shape = config.slot_shape(batch_size=config.public_batch, num_classes=described.num_classes, input_shape=described.input_shape)
    slot = Slot.empty(shape)
    started, num_bytes, seconds, index = time.perf_counter(), 0, 0.0, 0
    while index < config.window and (index == 0 or seconds < _LONG_ENOUGH_S):
        num_bytes += receiver.receive(index, config.window, slot, lambda: None)
        index, seconds = index + 1, time.perf_counter() - started
    receiver.release()
    return Received(num_batches=index, num_bytes=num_bytes, seconds=seconds)


def find_throughput(received: Received, described: Described, config: DoctorConfig) -> Finding:
    """How fast it comes, of teacher, link and this edge's decoding together."""
    rate = received.num_bytes / received.seconds
    batch_ms = received.seconds / received.num_batches * 1000
    return ok(
        "link.throughput",
        f"{received.num_batches} batches of {config.public_batch} came as {config.form} in {received.seconds:.2f} s: "
        f"{rate / 1e6:.2f} MB/s of payload, {batch_ms:.1f} ms a batch; a training step that is shorter waits for them",
        num_batches=received.num_batches,
        num_bytes=received.num_bytes,
        seconds=received.seconds,
        bytes_per_s=rate,
        encoding=str(config.form),
        public_batch=config.public_batch,
    )
