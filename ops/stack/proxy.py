"""A small TCP proxy that loses, delays, drops and cuts traffic, for `els torture` and tests."""

import asyncio
import threading
from collections.abc import Collection
from random import Random

from ops.stack.ports import LOOPBACK

CHUNK = 65_536
REQUESTS, REPLIES = "requests", "replies"  # the two directions
BOTH = frozenset({REQUESTS, REPLIES})


class Connection:
    """One connection: its two ends, and the directions whose traffic is dropped."""

    def __init__(self, swallowed: Collection[str]) -> None:
        self.ends: set[asyncio.StreamWriter] = set()
        self.swallowed = set(swallowed)


class Proxy:
    """Forwards connections to a server, and injects network faults on request."""

    def __init__(self, target_port: int, random: Random) -> None:
        self.target_port = target_port
        self.random = random
        self.port = 0
        self.delay_s = 0.0
        self._lose_replies = 0
        self._swallowing: frozenset[str] = frozenset()
        self._connections: set[Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()  # set while nothing is dropped
        self._passes.set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listen on a free port of loopback."""
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        """Close every connection and the port."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def cut(self) -> None:
        """Close every connection, even in the middle of a message."""
        self._loop.call_soon_threadsafe(self._cut)

    def lose_replies(self, count: int) -> None:
        """Drop the next `count` replies; the server has received their requests."""
        self._lose_replies = count

    def swallow(self, directions: Collection[str] = BOTH) -> None:
        """Read and drop all traffic and close nothing, as a firewall that lost its state.

        Existing connections, and those opened before `pass_again`, stay dead.
        """
        self._loop.call_soon_threadsafe(self._swallow, frozenset(directions))

    def pass_again(self) -> None:
        """Forward new connections again; the dead ones stay dead, but can be closed."""
        self._loop.call_soon_threadsafe(self._swallow, frozenset())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._pass_on, LOOPBACK, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._swallow(frozenset())
        self._cut()
        if passing := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(passing, timeout=5))
        self._loop.run_until_complete(asyncio.sleep(0))  # what was aborted closes in the next turn
        self._loop.close()

    def _cut(self) -> None:
        for connection in list(self._connections):
            for end in connection.ends:
                end.transport.abort()

    def _swallow(self, directions: frozenset[str]) -> None:
        self._swallowing = directions
        for connection in self._connections:
            connection.swallowed |= directions
        if directions:
            self._passes.clear()
        else:
            self._passes.set()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self._swallowing)
        connection.ends.add(writer)
        self._connections.add(connection)
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self.target_port)
            connection.ends.add(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, back, connection, REQUESTS))
                both.create_task(self._copy(there, writer, connection, REPLIES))
        except* OSError:
            pass  # one side has closed, or was cut
        finally:
            self._connections.discard(connection)
            for end in connection.ends:
                end.transport.abort()

    async def _copy(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        connection: Connection,
        direction: str,
    ) -> None:
        """Forward bytes until a side closes, then raise OSError to end the other direction too."""
        while data := await source.read(CHUNK):
            if direction in connection.swallowed:
                continue
            if self.delay_s:
                await asyncio.sleep(self.delay_s * self.random.random())
            if direction == REPLIES and self._lose_replies > 0:
                self._lose_replies -= 1
                raise ConnectionResetError("the reply is lost")
            sink.write(data)
            await sink.drain()
        if direction in connection.swallowed:
            await self._passes.wait()  # until then the other side must not notice
        raise ConnectionResetError("one side has closed")
