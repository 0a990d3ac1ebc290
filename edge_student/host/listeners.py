"""Finds the local processes that listen at an address, in every readable network namespace."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import psutil

from edgekd.cli.address import parse_addresses

_LISTENING = "0A"  # the state TCP_LISTEN in /proc/net/tcp
_MAPPED = "::ffff:"  # prefix of IPv4 addresses on IPv6 sockets, as gRPC opens them


def listening_at(address: str) -> frozenset[int]:
    """Return the ids of local processes that listen at HOST:PORT, or at one of several addresses: teachers, or tunnels."""
    addresses = parse_addresses(address, flag="--teacher", lowest_port=1)
    return frozenset[int]().union(*(_listening(host, port) for host, port in addresses))


def _listening(host: str, port: int) -> frozenset[int]:
    host = "127.0.0.1" if host == "localhost" else host
    try:
        local = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
        if host not in local and not host.startswith("127."):
            return _listening_in_other_namespaces(host, port)
        sockets = psutil.net_connections(kind="tcp")
    except (OSError, psutil.Error):
        return frozenset()
    return frozenset(
        entry.pid
        for entry in sockets
        if entry.pid is not None and entry.status == psutil.CONN_LISTEN and entry.laddr
        if entry.laddr.port == port and entry.laddr.ip.removeprefix(_MAPPED) in (host, "0.0.0.0", "::")
    )


def _listening_in_other_namespaces(host: str, port: int) -> frozenset[int]:
    """Return the listeners in other network namespaces (containers), as far as /proc is readable.

    psutil reads only the namespace of this process.
    """
    members: dict[str, list[int]] = {}  # by namespace
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            members.setdefault(os.readlink(f"/proc/{pid}/ns/net"), []).append(pid)
    members.pop(os.readlink("/proc/self/ns/net"), None)
    found: set[int] = set()
    for pids in members.values():
        if host not in _addresses(pids[0]):
            continue
        sockets = {f"socket:[{inode}]" for inode in _listening_sockets(pids[0], host, port)}
        found.update(pid for pid in pids if sockets and not sockets.isdisjoint(_open_files(pid)))
    return frozenset(found)


def _addresses(pid: int) -> set[str]:
    """Return the local IP addresses in the namespace of a process, from its routing tables."""
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/fib_trie", encoding="ascii") as file:
        leaf = ""
        for line in file:
            if "|--" in line:
                leaf = line.split()[-1]
            elif "host LOCAL" in line:
                found.add(leaf)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/if_inet6", encoding="ascii") as file:
        found.update(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in file)
    return found


def _listening_sockets(pid: int, host: str, port: int) -> Iterator[str]:
    """Yield inodes of TCP sockets that listen at HOST:PORT, or at every address, in the namespace of a process (proc_net(5))."""
    for version, family, everywhere in ((4, socket.AF_INET, "0.0.0.0"), (6, socket.AF_INET6, "::")):
        try:
            with open(f"/proc/{pid}/net/tcp{'6' if version == 6 else ''}", encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            address, _, at = row[1].partition(":")
            words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]  # each in the byte order of this CPU
            name = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)).removeprefix(_MAPPED)
            if row[3] == _LISTENING and int(at, 16) == port and name in (host, everywhere):
                yield row[9]


def _open_files(pid: int) -> set[str]:
    """Return the link targets of the open descriptors of a process."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry.path))
    return found
