"""Low-level asyncio operations of the proxy: the different ways to end a connection."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Coroutine
from typing import Any

PIECE = 4096
"""Most bytes that are read at once."""
TIMEOUT_S = 60.0
"""How long anything may take that should take no time."""
_LINGER_NOT = struct.pack("ii", 1, 0)  # SO_LINGER: close() throws away what was not sent, and says RST instead of FIN


class BrokenOffError(Exception):
    """The script ends this connection."""


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Wait until one task has ended, and cancel the others: HTTP/2 closes both directions of a connection together."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError | BrokenOffError):
            raise outcome


async def read_out(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(PIECE):
            pass


async def let_go(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    plug = writer.get_extra_info("socket")
    if plug is not None and not writer.transport.is_closing():
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
