"""Identifies callers, and limits the streams that each of them has open.

Edges are identified by client certificate, then by the edge id of their metadata, then by IP address. The last two are untrusted,
so without client certificates the limit per edge does not stop a malicious client.
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
    """The caller of one RPC. `edge` and `run` are safe to log, also for untrusted metadata; `peer` is the address in gRPC's form.

    `key` identifies the edge for limits. It includes the kind of identity, so an edge id never equals the name in a certificate.
    """

    edge: str
    key: str
    run: str | None
    peer: str

    def __str__(self) -> str:
        run = "" if self.run is None else f", run {self.run}"
        return f"edge {self.edge} ({self.peer}{run})"


def caller_of(context: grpc.aio.ServicerContext) -> Caller:
    """Identify the caller of an RPC. Never raises, whatever the metadata contains."""
    peer: str = context.peer()
    metadata = context.invocation_metadata() or ()
    auth = context.auth_context() or {}
    names = [name.decode("utf-8", "replace") for name in auth.get(_COMMON_NAME, ())]
    if names and names[0]:
        edge, key = fit_id(names[0]), f"certificate {names[0]}"
    elif certificates := auth.get(_CERTIFICATE):  # a certificate without a name is identified by its hash
        edge = f"certificate-{hashlib.sha256(certificates[0]).hexdigest()[:16]}"
        key = edge
    elif (claimed := _read(metadata, EDGE_ID_KEY)) is not None:
        edge, key = claimed, f"id {claimed}"
    else:
        edge = address_of(peer)
        key = f"machine {edge}"
    return Caller(edge=edge, key=key, run=_read(metadata, RUN_ID_KEY), peer=unquote(peer))


def address_of(peer: str) -> str:
    """Return the IP address of a gRPC peer such as "ipv4:10.0.0.7:4711" or "ipv6:%5Bfe80::1%5D:4711"; other kinds unchanged."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else unquote(peer)


class StreamSlots:
    """Slots for open streams, in all and per edge. Used on one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._num_taken: Counter[str] = Counter()
        self.num_streams = 0

    @contextmanager
    def take(self, caller: Caller) -> Iterator[None]:
        """Hold a slot for one stream of `caller` during the block. Raises RefusedError if no slot is free."""
        limits = self._limits
        if limits.max_streams_per_edge is not None and self._num_taken[caller.key] >= limits.max_streams_per_edge:
            have = "1 stream" if limits.max_streams_per_edge == 1 else f"{limits.max_streams_per_edge} streams"
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"edge {caller.edge} has {have} open, which is the limit per edge; close one, or try again later",
            )
        if self.num_streams >= limits.max_streams:
            raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"all {limits.max_streams} streams are taken; try again later")
        self.num_streams += 1
        self._num_taken[caller.key] += 1
        try:
            yield
        finally:
            # Also reached when the connection is lost, because that cancels the call.
            self.num_streams -= 1
            self._num_taken[caller.key] -= 1
            if not self._num_taken[caller.key]:
                del self._num_taken[caller.key]


def _read(metadata: Iterable[tuple[str, str | bytes]], name: str) -> str | None:
    """Return the value of a metadata key if it is a valid id and the key occurs once, else None."""
    values = [value for key, value in metadata if key == name]
    return read_id(values[0]) if len(values) == 1 else None
