"""Silent failures: a frozen teacher, a link that goes down, and a link that drops all packets.

Each takes as long as the keepalive: up to 20 s without a byte until the edge sends a ping, and 10 s for the answer. (A ping is sent
earlier if gRPC is measuring the link, for which it uses the same pings.) The edges therefore run in parallel, and the tests check
the records of each.
"""

import contextlib
import dataclasses
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from namespaces import TwoNamespaces, needs_namespaces
from needs import is_here
from processes import read_rest, read_until, student_command, teacher
from proxy import Proxy
from sameness import CYCLES, FLAGS, check_same, started_at, troubles
from warm_start import start

from edgekd.wire.limits import channel_options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

OPTIONS = dict(channel_options())
ANSWER_S = OPTIONS["grpc.http2.ping_timeout_ms"] / 1000
LIMIT_S = OPTIONS["grpc.keepalive_time_ms"] / 1000 + ANSWER_S + 1.0
SLOW = ("--rate-limit", "80kbit")  # 60 batches take 4 s, so that the silence falls into a stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Silence:
    """The behaviour of an edge after a silence that `began` on the monotonic clock."""

    out: Path
    began: float
    output: str
    bytes_swallowed: int = 0


@pytest.fixture(scope="module")
def silences(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Silence]]]:
    """Silences by name. Every silence begins in the middle of a stream, is detected, and ends."""
    stories = {"frozen": freeze, "swallowed": swallow}
    if all(map(is_here, needs_namespaces.args)):
        stories |= {"unplugged": unplug, "black hole": blacken}
    with ThreadPoolExecutor(len(stories)) as executor:
        yield {name: executor.submit(story, tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, story in stories.items()}


def freeze(folder: Path) -> Silence:
    with teacher(folder / "store", *SLOW) as serving:
        send = serving.process.send_signal
        return suffer(folder / "run", serving.address, begin=lambda: send(signal.SIGSTOP), end=lambda: send(signal.SIGCONT))


def swallow(folder: Path) -> Silence:
    with teacher(folder / "store", *SLOW) as serving, Proxy(serving.port) as proxy:
        silence = suffer(folder / "run", proxy.address, begin=proxy.swallow, end=proxy.surface)
        assert (proxy.counts.resets, proxy.counts.cuts) == (0, 0)
        return dataclasses.replace(silence, bytes_swallowed=proxy.counts.bytes_swallowed)


def unplug(folder: Path) -> Silence:
    with TwoNamespaces() as pair, pair.teacher(folder / "store", *SLOW) as serving:
        return suffer(folder / "run", serving.address, "--insecure", place=pair.edge, begin=pair.unplug, end=pair.plug)


def blacken(folder: Path) -> Silence:
    with TwoNamespaces() as pair, pair.teacher(folder / "store", *SLOW) as serving:
        return suffer(folder / "run", serving.address, "--insecure", place=pair.edge, begin=pair.blacken, end=pair.lighten)


def suffer(
    out: Path,
    address: str,
    *flags: str,
    place: Sequence[str] = (),
    begin: Callable[[], object],
    end: Callable[[], object],
) -> Silence:
    """Run an edge that receives no data from its middle on, until it has detected the silence."""
    command = [*place, *student_command(address, out, *FLAGS, "--max-wait", "120", *flags)]
    with contextlib.ExitStack() as stack:
        student = stack.enter_context(start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
        stack.callback(student.kill)
        read_until(student, f"6 of {CYCLES}")
        begin()
        began = time.monotonic()
        output = read_until(student, "trying again")
        end()
        output += read_rest(student)
        assert student.wait() == 0, output
    return Silence(out=out, began=began, output=output)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("frozen", marks=pytest.mark.promise(number=3)),
        pytest.param("swallowed", marks=pytest.mark.promise(number=5)),
        pytest.param("unplugged", marks=[pytest.mark.promise(number=5), needs_namespaces]),
        pytest.param("black hole", marks=[pytest.mark.promise(number=5), needs_namespaces]),
    ],
)
def test_a_silence_is_noticed_in_time_and_changes_no_result(
    name: str, silences: dict[str, Future[Silence]], undisturbed: Callable[..., Path]
) -> None:
    silence = silences[name].result()
    log = check_same(silence.out, undisturbed())
    first = troubles(log)[0]
    noticed_after_s = started_at(log) + first["time"] - silence.began
    # Sooner than an answer is waited for, and something else would have told the edge.
    assert ANSWER_S - 1.0 < noticed_after_s < LIMIT_S
    assert "UNAVAILABLE" in first["cause"]
    assert "attempt 1 failed: " in silence.output
    assert (silence.bytes_swallowed > 0) == (name == "swallowed")
