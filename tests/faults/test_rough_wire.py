"""Latency, small pieces, resets and cuts between edge and teacher cost time but do not change the result."""

from collections.abc import Callable
from pathlib import Path

import pytest
from processes import TeacherProcess, train
from proxy import Proxy
from proxy_script import Break, Weather
from sameness import FLAGS, check_same, troubles

pytestmark = [pytest.mark.slow, pytest.mark.promise(number=7)]

# In the greeting, in Describe, at the stream's first bytes, and then in the middle of chunks and of their headers.
PLACES = (0, 5, 60, 300, 1500, 2222, 3000)
ONE, TWO = ("--streams", "1"), ("--streams", "2")
TOPK = ("--encoding", "topk", "--top-k", "3")
INPUTS = ("--public-inputs", "stream")


@pytest.mark.parametrize(
    ("weather", "flags", "num_windows"),
    [
        (Weather(latency_s=0.04), (*ONE, "--window", "7"), 9),
        (Weather(latency_s=0.04), (*TWO, *TOPK), 1),
        (Weather(slice_bytes=1), (*ONE, *TOPK), 1),
        (Weather(slice_bytes=1), TWO, 1),
    ],
    ids=["latency, one stream", "latency, two streams of topk", "crumbs, one stream of topk", "crumbs, two streams"],
)
def test_a_slow_wire_changes_no_result(
    weather: Weather,
    flags: tuple[str, ...],
    num_windows: int,
    fast_teacher: TeacherProcess,
    undisturbed: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with Proxy(fast_teacher.port, weather=weather) as proxy:
        result = train(proxy.address, tmp_path, *FLAGS, *flags)
        counts = proxy.counts
    log = check_same(tmp_path, undisturbed(*(TOPK if TOPK[0] in flags else ())))
    assert troubles(log) == []
    assert counts.bytes_given > result["comm_num_bytes"] > 0, "it went past the proxy"
    if weather.slice_bytes == 1:
        assert counts.pieces_given == counts.bytes_given
    assert result["wall_clock_s"] >= num_windows * 2 * weather.latency_s, "each request and its answer were late"


@pytest.mark.parametrize("flags", [ONE, (*TWO, *TOPK), (*TWO, *INPUTS)], ids=["one stream", "two of topk", "two of inputs"])
@pytest.mark.parametrize("how", ["reset", "cut"])
def test_a_wire_that_breaks_again_and_again_changes_no_result(
    how: str, flags: tuple[str, ...], fast_teacher: TeacherProcess, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    with Proxy(fast_teacher.port, breaks=[Break(after=after, how=how) for after in PLACES]) as proxy:
        train(proxy.address, tmp_path, *FLAGS, *flags)
        counts = proxy.counts
    log = check_same(tmp_path, undisturbed(*(TOPK if TOPK[0] in flags else ())))
    assert (counts.resets, counts.cuts) == ((len(PLACES), 0) if how == "reset" else (0, len(PLACES)))
    assert troubles(log), "some of them came in mid-stream"
