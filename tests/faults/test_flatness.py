"""A leak is found, and noise is none: what the soak's verdict is worth."""

import subprocess
import sys

import numpy as np
import pytest
from flatness import trend
from resources import read_holding

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
    """As one that happens at every fault."""
    assert not trend(SECONDS, 30_000 + NOISE + 100 * (SECONDS // 5)).is_flat(ALLOWED)


def test_what_grows_by_less_than_is_allowed_is_flat() -> None:
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
