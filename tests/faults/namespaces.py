"""Two network namespaces with a veth pair between them: an edge and a cloud, with a link that tests can disturb.

Real TCP runs over a real link: no proxy's kernel answers for an end that has exited.
"""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import TeacherProcess, teacher

_NUMBERS = itertools.count()

needs_namespaces = pytest.mark.needs("ip", "network-namespaces")


class TwoNamespaces:
    """Two network namespaces. `edge` and `cloud` are the prefixes of commands that run there. A context manager."""

    CLOUD_HOST, _EDGE_HOST = "10.213.9.2", "10.213.9.1"

    def __init__(self) -> None:
        number = next(_NUMBERS)
        self._edge, self._cloud = (f"ekd{os.getpid()}-{number}{end}" for end in "ec")
        self.edge, self.cloud = (["ip", "netns", "exec", name] for name in (self._edge, self._cloud))

    def __enter__(self) -> "TwoNamespaces":
        try:
            for name in (self._edge, self._cloud):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", self._edge, "link", "add", "edge0", "type", "veth", "peer", "name", "cloud0", "netns", self._cloud)
            _ip("-n", self._edge, "addr", "add", f"{self._EDGE_HOST}/30", "dev", "edge0")
            _ip("-n", self._cloud, "addr", "add", f"{self.CLOUD_HOST}/30", "dev", "cloud0")
            _ip("-n", self._edge, "link", "set", "edge0", "up")
            self.plug()
        except subprocess.CalledProcessError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self._edge, self._cloud):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    @contextlib.contextmanager
    def teacher(self, store: Path, *flags: str, dataset: str = "digits:public") -> Iterator[TeacherProcess]:
        """Start a teacher in the cloud's namespace."""
        with teacher(store, "--insecure", *flags, dataset=dataset, host=self.CLOUD_HOST, place=self.cloud) as serving:
            yield serving

    def unplug(self) -> None:
        """Set the cloud's end of the link down."""
        _ip("-n", self._cloud, "link", "set", "cloud0", "down")

    def plug(self) -> None:
        """Set the cloud's end of the link up."""
        _ip("-n", self._cloud, "link", "set", "cloud0", "up")

    def blacken(self) -> None:
        """Drop everything that the cloud sends. Data from the edge arrives, and the link is up at both ends."""
        _ip("-n", self._cloud, "route", "add", "blackhole", f"{self._EDGE_HOST}/32")

    def lighten(self) -> None:
        """Stop dropping data from the cloud."""
        _ip("-n", self._cloud, "route", "del", "blackhole", f"{self._EDGE_HOST}/32")

    def set_rate(self, rate_mbit: float) -> None:
        """Set the rate of data from the cloud, in Mbit/s. Data in flight is not lost."""
        bucket = ["tbf", "rate", f"{rate_mbit}mbit", "burst", "32kb", "latency", "400ms"]
        subprocess.run(["tc", "-n", self._cloud, "qdisc", "replace", "dev", "cloud0", "root", *bucket], check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
