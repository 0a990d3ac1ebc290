"""Many broken connections leak no resources, and the verdict of the soak test detects a leak but not noise."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flatness import trend
from mischief import BATCH_BYTES, DATASET, PACE, PUBLIC_BATCH, serve
from processes import comm_worker_of, student_command
from proxy import Proxy
from resources import Holding, read_holding

pytestmark = pytest.mark.promise(number=26)

ALLOWED = 1024.0
SECONDS = np.arange(130.0)
NOISE = np.random.default_rng(0).normal(0, 200, len(SECONDS))

# Allocates and keeps, or gives back, whenever a line comes; answers when it has. Its memory is touched, so that it counts.
CHILD = """
import os, sys
kept, descriptors = [], []
for line in sys.stdin:
    kind = line.strip()
    block = bytearray(os.urandom(1 << 10)) * 64
    if kind == "memory":
        kept.append(block)
    if kind == "descriptors":
        descriptors.append(os.open("/dev/null", os.O_RDONLY))
    print("done", flush=True)
"""


def test_noise_is_flat() -> None:
    found = trend(SECONDS, 30_000 + NOISE)
    assert found.is_flat(ALLOWED)
    assert found.low < found.slope < found.high


def test_single_peaks_are_no_trend() -> None:
    values = 30_000 + NOISE
    values[100::9] += 20_000
    assert trend(SECONDS, values).is_flat(ALLOWED)


def test_a_leak_under_noise_is_found_with_its_size() -> None:
    found = trend(SECONDS, 30_000 + NOISE + 20 * SECONDS)  # 20 KiB a second
    assert not found.is_flat(ALLOWED)
    assert found.slope == pytest.approx(20 * 60, rel=0.05)
    assert found.grown == pytest.approx(20 * 129, rel=0.05)
    assert found.low < 1200 < found.high


def test_a_leak_in_steps_is_found() -> None:
    """As a leak that occurs at every fault."""
    assert not trend(SECONDS, 30_000 + NOISE + 100 * (SECONDS // 5)).is_flat(ALLOWED)


def test_growth_below_the_limit_is_flat() -> None:
    assert trend(SECONDS, 30_000 + SECONDS).is_flat(ALLOWED)
    assert not trend(SECONDS, 30_000 + SECONDS).is_flat(100.0)


def test_a_few_samples_are_no_series() -> None:
    with pytest.raises(ValueError, match="9 samples"):
        trend(SECONDS[:9], NOISE[:9])


@pytest.mark.parametrize("kind", ["nothing", "memory", "descriptors"])
def test_a_leak_of_a_real_process_is_found(kind: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        holdings = []
        for _ in range(60):
            child.stdin.write(f"{kind}\n")
            child.stdin.flush()
            assert child.stdout.readline() == "done\n"
            holdings.append(read_holding(child.pid))
        child.stdin.close()
    judged = holdings[10:]
    memory = trend(range(len(judged)), [holding.private_kib for holding in judged])
    assert memory.is_flat(ALLOWED) == (kind != "memory")
    assert (judged[-1].descriptors - judged[0].descriptors) == (len(judged) - 1 if kind == "descriptors" else 0)


@pytest.mark.slow
def test_both_ends_hold_the_same_resources_after_many_broken_connections(tmp_path: Path) -> None:
    flags = ("--private", f"{DATASET}:private", "--public-batch", str(PUBLIC_BATCH), "--prefetch", "8", "--torch-threads", "1")
    with contextlib.closing(serve(tmp_path)) as serving, Proxy(serving.port, weather=PACE) as proxy:
        command = student_command(proxy.address, tmp_path / "out", *flags, "--cycles", "100000")
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as student:
            pids = {"teacher": serving.process.pid, "trainer": student.pid, "comm worker": comm_worker_of(student)}

            def break_and_see_it_mended(times: int) -> dict[str, Holding]:
                for _ in range(times):
                    before = proxy.counts
                    proxy.reset()
                    proxy.wait_until(
                        lambda now, before=before: (
                            now.connections > before.connections and now.bytes_given > before.bytes_given + 3 * BATCH_BYTES
                        )
                    )
                return {role: read_holding(pid) for role, pid in pids.items()}

            before = break_and_see_it_mended(5)
            after = break_and_see_it_mended(20)
            student.terminate()
    for role, held in after.items():
        assert held.threads == before[role].threads, role
        assert abs(held.descriptors - before[role].descriptors) <= 1, f"{role}: gRPC polls with one more or not"
        assert held.private_kib - before[role].private_kib < ALLOWED, role
