"""A small TCP proxy that loses, delays and cuts what passes, for `els torture`."""

import asyncio
import threading
from random import Random

from ops.embedded import LOOPBACK

CHUNK = 65_536


class Proxy:
    """Passes connections from a port of its own to a server; does harm when told to."""

    def __init__(self, target_port: int, random: Random) -> None:
        self.target_port = target_port
        self.random = random
        self.port = 0
        self.delay_s = 0.0
        self._lose_replies = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listen, on a free port of loopback."""
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        """Cut everything and listen no more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def cut(self) -> None:
        """Close every connection, in the middle of whatever it carries."""
        self._loop.call_soon_threadsafe(self._cut)

    def lose_replies(self, count: int) -> None:
        """Let the server hear so many more requests whose answers never arrive."""
        self._lose_replies = count

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._pass_on, LOOPBACK, 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._cut()
        if passing := asyncio.all_tasks(self._loop):
            self._loop.run_until_complete(asyncio.wait(passing, timeout=5))
        self._loop.close()

    def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        self._writers |= ends
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self.target_port)
            ends.add(back)
            self._writers |= ends
            async with asyncio.TaskGroup() as both:
                both.create_task(self._copy(reader, back, replies=False))
                both.create_task(self._copy(there, writer, replies=True))
        except* OSError:
            pass  # one side has closed, or was cut
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        """Pass bytes on until a side closes. Raises OSError then, to end the other way as well."""
        while data := await source.read(CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s * self.random.random())
            if replies and self._lose_replies > 0:
                self._lose_replies -= 1
                raise ConnectionResetError("the reply is lost")
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError("one side has closed")
