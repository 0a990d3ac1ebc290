"""Check the link to the teacher: certificates, connection, authentication, round trip, and throughput of logits.

The check connects, sends a few Describe calls, receives some batches and discards them. The `check_*` functions of measured values
are pure; the other functions use the network.
"""

import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edge_student.doctor.finding import Finding, Status, note, ok, problem, unknown
from edge_student.doctor.tls import check_certificates, read_certificates
from edge_student.ipc.messages import Described
from edge_student.ipc.ring import Slot
from edge_student.receive.diagnose import find_cause
from edge_student.receive.receiver import Receiver
from edge_student.settings.doctor import DoctorConfig
from edgekd.cli.address import format_address, parse_addresses

logger = logging.getLogger(__name__)

_NUM_CALLS = 7
_MAX_RECEIVE_S = 5.0  # enough to measure a rate; a whole window on a slow link would take minutes
_SLOW_ROUND_TRIP_S = 0.1
_CONNECT_S = 5.0
_CHECKS = ("link.reach", "link.round-trip", "link.throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """Batches and payload bytes received, and the elapsed seconds."""

    num_batches: int
    num_bytes: int
    seconds: float


def check_link(config: DoctorConfig, now: float) -> Iterator[Finding]:
    """Yield the findings of each teacher in turn. `now` is in seconds since 1970."""
    if config.teacher is None:
        for check in ("link.tls", *_CHECKS):
            yield unknown(check, "not checked, because no teacher address was given", "set --teacher HOST:PORT")
        return
    for host, port in parse_addresses(config.teacher, flag="--teacher", lowest_port=1):
        yield from _check_teacher(replace(config, teacher=format_address(host, port)), host, port, now)


def _check_teacher(config: DoctorConfig, host: str, port: int, now: float) -> Iterator[Finding]:
    reach = _check_reach(config, host, port)
    is_open = reach.status is Status.OK
    yield check_certificates(read_certificates(config.tls, host, port), config.tls, host, now, is_open=is_open)
    yield reach
    if is_open:
        yield from _call_and_receive(config)
    else:
        yield from _skipped(_CHECKS[1:], "the teacher cannot be reached", "link.reach")


def _check_reach(config: DoctorConfig, host: str, port: int) -> Finding:
    """Check whether a gRPC server accepts the connection, and name the cause if it does not."""
    check = "link.reach"
    try:
        config.check_secrets()
    except ValueError as error:
        return problem(
            check,
            f"a certificate, key or token cannot be used: {error}",
            "set the flag to the right file, and make the file readable",
        )
    cause = find_cause(host, port, config.tls, timeout_s=_CONNECT_S)
    if cause is None:
        transport = "over TLS" if config.tls else "in plaintext"
        return ok(check, f"a gRPC server responds at {config.teacher} {transport}", teacher=config.teacher, tls=bool(config.tls))
    remedy = "start `cloud-teacher serve` on that machine, then check --teacher, the network and the firewall"
    if cause.is_final or cause.may_be_chance:
        remedy = "fix the named cause; make certificates with `deploy/certs.sh`"
    return problem(check, cause.text, remedy, is_final=cause.is_final)


def _skipped(checks: tuple[str, ...], why: str, first: str) -> Iterator[Finding]:
    for check in checks:
        yield unknown(check, f"not checked, because {why}", f"fix {first} first")


def _call_and_receive(config: DoctorConfig) -> Iterator[Finding]:
    assert config.teacher is not None
    configuration = config.configure(teacher=config.teacher, batch_size=config.public_batch)
    receiver = Receiver(configuration, lambda cause, attempt: logger.debug("attempt %d failed: %s", attempt, cause))
    try:
        try:
            described, first_s, seconds = _time_calls(receiver)
        except (OSError, ValueError, RuntimeError) as error:
            yield problem("link.round-trip", _first_cause(error), "fix the named cause on this machine or at the teacher")
            yield from _skipped(_CHECKS[2:], "the teacher does not respond", "link.round-trip")
            return
        yield check_round_trip(described, first_s, seconds)
        try:
            logger.info("receiving logits for up to %g s to measure the throughput", _MAX_RECEIVE_S)
            received = _receive(receiver, described, config)
        except (OSError, ValueError, RuntimeError) as error:
            yield problem(
                "link.throughput",
                _first_cause(error),
                "read the log of the teacher: it responds to calls but does not stream logits",
            )
            return
        yield check_throughput(received, described, config)
    finally:
        receiver.close()


def _first_cause(error: Exception) -> str:
    """Return the message of the first cause. The outer message only reports that there was no retry."""
    while isinstance(error.__cause__, OSError | ValueError):
        error = error.__cause__
    return str(error)


def _time_calls(receiver: Receiver) -> tuple[Described, float, list[float]]:
    """Return the teacher's description, the seconds of the first call, which connects, and of the following calls."""
    started = time.perf_counter()
    described = receiver.describe()
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(_NUM_CALLS):
        started = time.perf_counter()
        receiver.describe()
        seconds.append(time.perf_counter() - started)
    return described, first_s, seconds


def check_round_trip(described: Described, first_s: float, seconds: list[float]) -> Finding:
    """Judge the round trip to the teacher."""
    check, median_s = "link.round-trip", statistics.median(seconds)
    details = {
        "dataset": described.dataset_name,
        "num_samples": described.num_samples,
        "num_classes": described.num_classes,
        "teacher_digest": described.teacher_digest,
        "connect_ms": round(first_s * 1000, 3),
        "round_trip_ms": [round(value * 1000, 3) for value in seconds],
    }
    text = (
        f"the teacher of {described.dataset_name} ({described.num_samples} samples, {described.num_classes} classes) responds in "
        f"{median_s * 1000:.1f} ms (median of {len(seconds)}, range {min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f} ms); "
        f"the first call, which connects, took {first_s * 1000:.0f} ms"
    )
    if median_s > _SLOW_ROUND_TRIP_S:
        return note(check, text, "use a large --window, because each window starts with one round trip", **details)
    return ok(check, text, **details)


def _receive(receiver: Receiver, described: Described, config: DoctorConfig) -> Received:
    """Receive one window, or its first seconds, and discard it."""
    slot = Slot.empty(config.slot_shape(described, batch_size=config.public_batch))
    started, num_bytes, seconds, index = time.perf_counter(), 0, 0.0, 0
    while index < config.window and (index == 0 or seconds < _MAX_RECEIVE_S):
        num_bytes += receiver.receive(index, config.window, slot, lambda: None)
        index, seconds = index + 1, time.perf_counter() - started
    receiver.release()
    return Received(num_batches=index, num_bytes=num_bytes, seconds=seconds)


def check_throughput(received: Received, described: Described, config: DoctorConfig) -> Finding:
    """Report the throughput of teacher, link and decoding on this edge together."""
    rate = received.num_bytes / received.seconds
    batch_ms = received.seconds / received.num_batches * 1000
    return ok(
        "link.throughput",
        f"received {received.num_batches} batches of {config.public_batch} as {config.form} in {received.seconds:.2f} s: "
        f"{rate / 1e6:.2f} MB/s of payload, {batch_ms:.1f} ms per batch; training steps shorter than this wait for logits",
        num_batches=received.num_batches,
        num_bytes=received.num_bytes,
        seconds=received.seconds,
        bytes_per_s=rate,
        encoding=str(config.form),
        public_batch=config.public_batch,
    )
