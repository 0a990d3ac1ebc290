"""`cloud-teacher serve` with the flags of a test."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TINY = "synthetic:classes=4,size=8,samples=200:public"


def serve_flags(store: Path, *more: str) -> list[str]:
    return ["serve", "--listen", "127.0.0.1:0", "--dataset", TINY, "--model", "cnn:width=4", "--store", str(store), *more]


@contextmanager
def serving(log: Path, flags: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a server process and its address. Kill the process if the test did not stop it."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud_teacher", *flags], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on "), log.read_text()
            yield process, line.removeprefix("listening on ").strip()
        finally:
            process.kill()
