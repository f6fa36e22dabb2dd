"""A proxy that answers for the server behind it, with what no such server says."""

from random import Random

from ops.stack.proxy import CHUNK, REPLIES, Proxy

REPLIES_OF_NOBODY = {
    "a word": b"+OK\r\n",
    "a number": b":1\r\n",
    "no text": b"$4\r\n\xff\xfe\xfd\xfc\r\n",
    "nothing": b"$-1\r\n",
    "an empty list": b"*0\r\n",
    "a web page": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
    "an error that nobody knows": b"-CUSTOM foo\r\n",
    "half a reply": b"$40\r\nhalf",
}


class Babbling(Proxy):
    """Passes everything on; while `instead` is set, it replaces each reply by that."""

    instead: bytes | None = None

    def __init__(self, target_port):
        super().__init__(target_port, Random(1))

    async def _copy(self, source, sink, connection, direction):
        while data := await source.read(CHUNK):
            sink.write(self.instead if direction == REPLIES and self.instead else data)
            await sink.drain()
        raise ConnectionResetError("one side has closed")
