"""Erase a person: in every row, in every JSON, and in Redis, `erased` stands instead.

What identifies texts and batches stays, so manifests still verify. A second run changes nothing.
"""

from ops.erasure.redis_entries import erase_redis
from ops.erasure.rows import clean_up, erase_reason, erase_rows, open_batches
from ops.erasure.scrub import Person, Scrub

__all__ = [
    "Person",
    "Scrub",
    "clean_up",
    "erase_reason",
    "erase_redis",
    "erase_rows",
    "open_batches",
]
