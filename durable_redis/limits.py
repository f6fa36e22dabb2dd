"""How large a message may be. Nothing larger is inflated or parsed.

Kombu inflates a compressed body before anybody can look at it: 0.6 MB become 8 GB.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

from kombu import compression
from kombu.exceptions import DecodeError

MEMORY_OF_LZMA = 128 * 1024 * 1024  # the sender chooses its dictionary; `xz -9` needs half of this
STREAMS: dict[str, Callable[[], Any]] = {  # Any: their common protocol has no name
    # Kombu's "gzip" is a stream of zlib; whoever sends without Celery writes what gzip writes.
    "application/x-gzip": partial(zlib.decompressobj, wbits=zlib.MAX_WBITS | 32),
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": partial(lzma.LZMADecompressor, memlimit=MEMORY_OF_LZMA),
}

_largest: int | None = None


class BodyTooLarge(DecodeError):
    """A body has more bytes than this process takes."""


def limit_bodies(largest: int) -> None:
    """Let this process inflate and parse no body that has more bytes.

    A way of compressing whose output cannot be bounded is refused.
    """
    global _largest  # noqa: PLW0603 - of the process, as Kombu's decoders are
    _largest = largest
    for content_type in compression.encoders():
        encoder = compression.get_encoder(content_type)[0]  # type: ignore[index] # a pair
        decoder = partial(_inflate, content_type, largest)
        compression.register(encoder, decoder, content_type)


def refuse_large(message: Any) -> None:  # Any: Kombu's message, whose types are wrong
    """Mark a message whose body is too large, as Kombu marks one that it cannot inflate."""
    if _largest is None or message.errors or len(message.body or b"") <= _largest:
        return
    size = len(message.body)
    mark(message, BodyTooLarge(f"the body has {size} bytes; at most {_largest} are read"))


def mark(message: Any, error: Exception) -> None:  # Any: likewise
    """Have Kombu call `on_decode_error` with this error when it delivers the message."""
    message.errors.append((type(error), error, None))


def largest_message() -> int:
    """Return how many bytes a message may have in Redis, with headers and in base64; 0: any."""
    return 2 * (_largest or 0)


def _inflate(content_type: str, largest: int, body: bytes) -> bytes:
    start = STREAMS.get(content_type)
    if start is None:
        raise DecodeError(f"{content_type} is not inflated here: its size cannot be bounded")
    stream = start()
    inflated: bytes = stream.decompress(body, largest + 1)
    if len(inflated) > largest:
        raise BodyTooLarge(f"the body inflates to over {largest} bytes; at most those are read")
    if not stream.eof or stream.unused_data:  # a loop over many streams would take for ever
        raise DecodeError("the compressed body is cut short, or has something behind it")
    return inflated
