"""Starts the teachers of benchmarks, and limits the rate of the link to them. As a program it does nothing.

With root, the teacher runs in a network namespace behind a veth pair, and the kernel's token bucket (tc tbf) limits the rate, so
that TCP meets a real queue. Otherwise the teacher listens on loopback and limits its own rate (`--rate-limit`).
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_student.ipc.messages import Configure


class Link:
    """The link to a teacher: a network namespace with a token bucket, or loopback with the teacher's own rate limit."""

    def __init__(self) -> None:
        self._name = f"edgekd{os.getpid()}"
        self.is_namespace = False

    def __enter__(self) -> "Link":
        try:
            self._ip("netns", "add", self._name)
            self._ip("link", "add", f"{self._name}e", "type", "veth", "peer", "name", f"{self._name}c", "netns", self._name)
            self._ip("addr", "add", "10.213.7.1/30", "dev", f"{self._name}e")
            self._ip("link", "set", f"{self._name}e", "up")
            self._ip("-n", self._name, "addr", "add", "10.213.7.2/30", "dev", f"{self._name}c")
            self._ip("-n", self._name, "link", "set", f"{self._name}c", "up")
            self._ip("-n", self._name, "link", "set", "lo", "up")
            self.is_namespace = True
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no network namespace ({error}); using the teacher's --rate-limit instead", file=sys.stderr)
            self._remove()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def set_rate(self, rate_mbit: float | None) -> None:
        """Limit the rate of the teacher in Mbit/s, or remove the limit (None). Loses no data in flight. Requires a namespace."""
        device = ["tc", "-n", self._name, "qdisc"]
        if rate_mbit is None:
            subprocess.run([*device, "del", "dev", f"{self._name}c", "root"], check=False, capture_output=True)
        else:
            bucket = ["tbf", "rate", f"{rate_mbit:.3f}mbit", "burst", "64kb", "latency", "200ms"]
            subprocess.run([*device, "replace", "dev", f"{self._name}c", "root", *bucket], check=True)

    def received_bytes(self) -> int:
        """Return the bytes received over the link so far. Requires a namespace."""
        return int(Path(f"/sys/class/net/{self._name}e/statistics/rx_bytes").read_text())

    @contextlib.contextmanager
    def teacher(self, core: int, dataset: str, rate_mbit: float | None, store: Path) -> Iterator[str]:
        """Run a teacher of this data set behind the link, on this core. Yields its address."""
        if self.is_namespace:
            self.set_rate(rate_mbit)
            prefix, flags = ["ip", "netns", "exec", self._name], ["--listen", "10.213.7.2:0", "--insecure"]
        else:
            prefix, flags = [], ["--listen", "127.0.0.1:0"]
            flags += [] if rate_mbit is None else ["--rate-limit", f"{rate_mbit:.3f}mbit"]
        with serving([*prefix, *_serve(core, dataset, store), *flags]) as address:
            yield address

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def _remove(self) -> None:
        self.is_namespace = False
        for arguments in (["link", "del", f"{self._name}e"], ["netns", "del", self._name]):
            with contextlib.suppress(OSError):
                subprocess.run(["ip", *arguments], check=False, capture_output=True)


def configure(address: str, *, batch_size: int, **changes: Any) -> Configure:
    """Return a receiver's configuration: float32 at normal priority, with `changes`."""
    options: dict[str, Any] = {"encoding": "float32", "top_k": 0, "seed": 0, "window": 64, "max_wait_s": 30.0, "log_level": "error"}
    options |= {"niceness": 0, "is_idle": False, **changes}
    return Configure(teacher=address, batch_size=batch_size, **options)


@contextlib.contextmanager
def loopback_teacher(core: int, dataset: str, store: Path) -> Iterator[str]:
    """Run a teacher of this data set on loopback without a rate limit, on this core. Yields its address."""
    with serving([*_serve(core, dataset, store), "--listen", "127.0.0.1:0"]) as address:
        yield address


def _serve(core: int, dataset: str, store: Path) -> list[str]:
    command = [sys.executable, "-m", "cloud_teacher", "serve", "--dataset", f"{dataset}:public", "--model", "cnn:width=4"]
    return [*command, "--store", str(store), "--precompute", "--cores", str(core), "--torch-threads", "1", "--log-level", "error"]


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[str]:
    """Run a teacher by its command during the block. Yields its address."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("listening on "):
            raise SystemExit(f"the teacher did not start (exit status {process.wait()})")
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
