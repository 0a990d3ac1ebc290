"""Who is calling, and how many streams each of them has open.

An edge is who its certificate says it is, where edges show one. Else it is who it says it is, and else the machine that its
connection comes from; neither proves anything, so without certificates a limit per edge keeps order among friends only.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

import grpc
import grpc.aio

from cloud_teacher.service.admission import RefusedError
from cloud_teacher.service.limits import Limits
from edgekd.wire.identity import fit_id, read_id
from edgekd.wire.limits import EDGE_ID_KEY, RUN_ID_KEY

_COMMON_NAME, _CERTIFICATE = "x509_common_name", "x509_pem_cert"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """One end of a call. `edge` and `run` are safe to be logged, whatever was sent; `peer` is gRPC's word for the other address.

    `key` tells edges apart: a name that an edge gave itself is another than the same one in a certificate.
    """

    edge: str
    key: str
    run: str | None
    peer: str

    def __str__(self) -> str:
        run = "" if self.run is None else f", run {self.run}"
        return f"edge {self.edge} ({self.peer}{run})"


def caller_of(context: grpc.aio.ServicerContext) -> Caller:
    """Who makes this call. Does not raise, whatever was sent."""
    peer: str = context.peer()
    metadata = context.invocation_metadata() or ()
    shown = context.auth_context() or {}
    names = [name.decode("utf-8", "replace") for name in shown.get(_COMMON_NAME, ())]
    if names and names[0]:
        edge, key = fit_id(names[0]), f"certificate {names[0]}"
    elif certificates := shown.get(_CERTIFICATE):  # one without a name is known by its own hash
        edge = f"certificate-{hashlib.sha256(certificates[0]).hexdigest()[:16]}"
        key = edge
    elif (claimed := _read(metadata, EDGE_ID_KEY)) is not None:
        edge, key = claimed, f"id {claimed}"
    else:
        edge = machine_of(peer)
        key = f"machine {edge}"
    return Caller(edge=edge, key=key, run=_read(metadata, RUN_ID_KEY), peer=unquote(peer))


def machine_of(peer: str) -> str:
    """The address in gRPC's "ipv4:10.0.0.7:4711" or "ipv6:%5Bfe80::1%5D:4711", without the port; another kind of peer as it is."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else unquote(peer)


class StreamSlots:
    """The streams that are open, within their limits. Used on one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._taken: Counter[str] = Counter()
        self.num_streams = 0

    @contextmanager
    def take(self, caller: Caller) -> Iterator[None]:
        """A place for one stream of `caller` during the block, however that ends. Raises RefusedError if there is none."""
        limits = self._limits
        if limits.max_streams_per_edge is not None and self._taken[caller.key] >= limits.max_streams_per_edge:
            have = "1 stream" if limits.max_streams_per_edge == 1 else f"{limits.max_streams_per_edge} streams"
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"edge {caller.edge} has {have} open, and no edge may have more here at a time; end one, or try again later",
            )
        if self.num_streams >= limits.max_streams:
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"all {limits.max_streams} streams are taken; try again later")
        self.num_streams += 1
        self._taken[caller.key] += 1
        try:
            yield
        finally:
            # Also when the edge vanishes: its call is cancelled, and the cancellation arrives here.
            self.num_streams -= 1
            self._taken[caller.key] -= 1
            if not self._taken[caller.key]:
                del self._taken[caller.key]


def _read(metadata: Iterable[tuple[str, str | bytes]], name: str) -> str | None:
    """The one value of `name` if it is a name that may be shown; two are as good as none."""
    values = [value for key, value in metadata if key == name]
    return read_id(values[0]) if len(values) == 1 else None
