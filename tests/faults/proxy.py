"""A TCP proxy between an edge and its teacher that causes scripted faults.

It runs on its own event loop, in a thread of the test. Faults are data: a `Weather` lasts until the next one, and a `Break` happens
after a given number of bytes. The proxy counts every fault, because every test would pass with a proxy that causes none. It handles
bytes and connections only, not HTTP/2.
"""

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from plumbing import PIECE, TIMEOUT_S, BrokenOffError, first_of, let_go, read_out, reset
from proxy_script import CALM, Break, Counts, Weather

T = TypeVar("T")

# An RST comes so long after the bytes before it. gRPC (1.85) may miss one that comes while it reads: the kernel tells it that
# nothing is left to read, it waits to be woken, and finds out by its ping, 10 to 30 s later. That is in time, but not quick.
_MOMENT_S = 0.03
_PIECES_UNDER_WAY = 16  # and no more, so that a reader that stops is felt by the writer at once


class _Connection:
    """The two sockets of one connection."""

    def __init__(self, edge: asyncio.StreamWriter, teacher: asyncio.StreamWriter) -> None:
        self.writers = (edge, teacher)
        self.is_spoiled = False  # bytes of it were swallowed, so no later one can mean anything
        self.is_cut = False

    def reset(self) -> None:
        for writer in self.writers:
            reset(writer)

    def cut(self) -> None:
        """Send FIN. Closing waits until all data from the peers is read, because the kernel would otherwise send RST."""
        self.is_cut = True
        for writer in self.writers:
            if not writer.transport.is_closing():
                writer.write_eof()


class Proxy:
    """Forwards connections from its own port on loopback to `port` of `host`. Use as a context manager.

    Every method may be called from any thread, and has taken effect when it returns.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", weather: Weather = CALM, breaks: Sequence[Break] = ()) -> None:
        self._target = host, port
        self._weather = weather
        self._breaks = deque(breaks)
        self._since_break = 0
        self._free_at = 0.0
        self._is_swallowing = False
        self._running = asyncio.Event()
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._counts = Counts()
        self._counted = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self.port = 0

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self.resume()
        self.come_up()
        return self

    def __exit__(self, *_: object) -> None:
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        """HOST:PORT for the edge."""
        return f"127.0.0.1:{self.port}"

    @property
    def counts(self) -> Counts:
        """Return the counts of events so far."""
        return self._counts

    def wait_until(self, has_happened: Callable[[Counts], bool], timeout_s: float = TIMEOUT_S) -> Counts:
        """Wait until `has_happened` is true for the counts, and return them. Raises AssertionError with the counts on timeout."""
        with self._counted:
            assert self._counted.wait_for(lambda: has_happened(self._counts), timeout_s), f"it never happened: {self._counts}"
            return self._counts

    @contextlib.contextmanager
    def weather(self, weather: Weather) -> Iterator[None]:
        """Use another weather within the block."""
        before = self._weather
        self.set_weather(weather)
        try:
            yield
        finally:
            self.set_weather(before)

    def set_weather(self, weather: Weather) -> None:
        """Use another weather from the next piece on."""

        def change() -> None:
            self._weather, self._free_at = weather, 0.0

        self._order(change)

    def break_next(self, *breaks: Break) -> None:
        """Queue these breaks after the queued ones. Without a queue, the first one counts from now."""

        def change() -> None:
            if not self._breaks:
                self._since_break = 0
            self._breaks.extend(breaks)

        self._order(change)

    def reset(self) -> None:
        """Send RST to both ends of every open connection."""
        self._on_loop(self._reset_all())

    def pause(self) -> None:
        """Stop forwarding. Connections stay open, and new ones are accepted."""
        self._order(self._running.clear)

    def resume(self) -> None:
        """Forward the waiting and all later data."""
        self._order(self._running.set)

    def swallow(self) -> None:
        """Accept all data and forward none. A connection that has lost bytes stays in this state."""

        def change() -> None:
            self._is_swallowing = True
            for connection in self._open:
                connection.is_spoiled = True

        self._order(change)

    def surface(self) -> None:
        """Forward new connections again."""

        def change() -> None:
            self._is_swallowing = False

        self._order(change)

    def go_down(self) -> None:
        """Refuse new connections and reset open ones."""
        self._order(self._deafen)
        self.reset()

    def come_up(self) -> None:
        """Listen again on the same port."""

        self._order(self._listen)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _deafen(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _close(self) -> None:
        self._deafen()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(3):  # turns of the loop, in which transports that were aborted close their sockets
            await asyncio.sleep(0)

    async def _reset_all(self) -> None:
        was_running = self._running.is_set()
        self._running.clear()
        await asyncio.sleep(_MOMENT_S)
        for connection in list(self._open):
            self._end(connection, "reset")
        if was_running:
            self._running.set()

    def _order(self, change: Callable[[], object]) -> None:
        async def carry_out() -> None:
            change()

        self._on_loop(carry_out())

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def _count(self, **more: int) -> None:
        with self._counted:
            self._counts = replace(self._counts, **{name: getattr(self._counts, name) + value for name, value in more.items()})
            self._counted.notify_all()

    def _end(self, connection: _Connection, how: str) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._count(**{f"{how}s": 1})  # before anybody feels it
            connection.reset() if how == "reset" else connection.cut()

    def _accept(self, listener: socket.socket) -> None:
        """Accept connections without asyncio's server, which loses a just accepted connection when it is closed."""
        plug, _ = listener.accept()
        plug.setblocking(False)
        self._count(connections=1)
        task = self._loop.create_task(self._serve(plug))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: plug.close())  # for a task that was ended before it began

    async def _serve(self, plug: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=plug, limit=PIECE)
        try:
            there, onward = await asyncio.open_connection(*self._target, limit=PIECE)
            try:
                await self._join(reader, writer, there, onward)
            finally:
                await let_go(onward)
        except OSError:  # the teacher is away, and the edge shall feel it
            reset(writer)
        finally:
            await let_go(writer)

    async def _join(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        onward: asyncio.StreamWriter,
    ) -> None:
        for each in (writer, onward):
            each.transport.set_write_buffer_limits(high=PIECE)
        connection = _Connection(writer, onward)
        connection.is_spoiled = self._is_swallowing
        self._open.add(connection)
        try:
            if self._breaks and self._breaks[0].after == 0:
                self._end(connection, self._breaks.popleft().how)
            else:
                await first_of(
                    self._carry(connection, there, writer, is_to_edge=True),
                    self._carry(connection, reader, onward, is_to_edge=False),
                )
            if connection.is_cut:
                async with asyncio.timeout(TIMEOUT_S):
                    await asyncio.gather(read_out(reader), read_out(there))
        finally:
            self._open.discard(connection)

    async def _carry(
        self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_to_edge: bool
    ) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES_UNDER_WAY)

        async def give() -> None:
            while True:
                due, piece = await pieces.get()
                if not piece:
                    return
                await asyncio.sleep(due - self._loop.time())
                await self._give(connection, piece, sink, is_to_edge=is_to_edge)

        async def take() -> None:
            while piece := await source.read(PIECE):
                if is_to_edge:
                    self._count(bytes_taken=len(piece))
                if connection.is_spoiled:
                    self._count(bytes_swallowed=len(piece))
                else:
                    await pieces.put((self._loop.time() + self._weather.latency_s, piece))
            await pieces.put((0.0, b""))
            await asyncio.Event().wait()  # until all of it was given

        await first_of(take(), give())

    async def _give(self, connection: _Connection, piece: bytes, sink: asyncio.StreamWriter, *, is_to_edge: bool) -> None:
        while piece:
            await self._running.wait()
            num_bytes = self._weather.slice_bytes or len(piece)
            if is_to_edge and self._weather.bytes_per_s is not None:
                now = self._loop.time()
                self._free_at = max(self._free_at, now) + min(num_bytes, len(piece)) / self._weather.bytes_per_s
                await asyncio.sleep(self._free_at - now)
            if is_to_edge and self._breaks:
                num_bytes = min(num_bytes, max(0, self._breaks[0].after - self._since_break))
            part, piece = piece[:num_bytes], piece[num_bytes:]
            if connection not in self._open:
                raise BrokenOffError
            sink.write(part)
            if is_to_edge:
                self._count(bytes_given=len(part), pieces_given=1)
                self._since_break += len(part)
                if self._breaks and self._since_break >= self._breaks[0].after:
                    self._since_break, broken = 0, self._breaks.popleft()
                    try:
                        await asyncio.sleep(_MOMENT_S)
                    except asyncio.CancelledError:  # it was over already: the break is for the next one
                        self._breaks.appendleft(broken)
                        raise
                    self._end(connection, broken.how)
                    raise BrokenOffError
            await sink.drain()
            if self._weather.slice_bytes:
                await asyncio.sleep(0)  # drain() of an empty buffer does not let the others in
