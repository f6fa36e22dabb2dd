"""The unacknowledged messages of one Redis, and the scripts that move them.

The keys and entries are Kombu's own, so stock workers may share them: a hash from a message's tag
to its entry, and a sorted set from the tag to the time of the entry.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import redis
from kombu.utils.encoding import bytes_to_str

from durable_redis.limits import largest_message

LUA = Path(__file__).parent / "lua"
BEGINNING = 64 * 1024  # bytes of a message that is too large to be read


class Source(NamedTuple):
    """A list to fetch from; a queue has one for each priority."""

    queue: str
    key: str
    malformed: str  # the list for its malformed messages


class Batching(NamedTuple):
    """Tasks; workers fetch several of their messages at once where they wait one behind another.

    A single message may have any size.
    """

    tasks: Sequence[str] = ()
    messages: int = 1
    bytes: int = 0


class UnackedStore:
    """A client's access to the unacked entries."""

    def __init__(self, client: redis.Redis, unacked: str, index: str) -> None:
        self.client = client
        self._keys = [unacked, index]
        self._fetch = self._script("fetch")
        self._delete = self._script("delete")
        self._overdue = self._script("overdue")
        self._requeue = self._script("requeue")
        self._renew = self._script("renew")
        self._probe = self._script("probe")
        self._beginning = self._script("beginning")
        self._remove = self._script("remove")

    def fetch(self, sources: Sequence[Source]) -> list[Any] | None:
        """Fetch one message, and write its entry. Returns what `fetch.lua` says."""
        return cast("list[Any] | None", self._fetch(*self._arguments(sources, Batching())))

    def fetch_command(self, sources: Sequence[Source], batching: Batching) -> list[str | int]:
        """Write the command of `fetch`, for a connection that reads the reply later."""
        keys, arguments = self._arguments(sources, batching)
        return ["EVALSHA", self._fetch.sha, len(keys), *keys, *arguments]

    def load_fetch(self) -> None:
        """Give Redis the script that `fetch_command` names."""
        self.client.script_load(self._fetch.script)

    def delete(self, *tags: str) -> None:
        """Delete entries: their messages are acknowledged."""
        self._delete(self._keys, tags)

    def renew(self, tags: Collection[str]) -> None:
        """Note that a living worker holds these messages. Deleted entries stay deleted."""
        self._renew(self._keys[1:], list(tags))

    def probe(self) -> None:
        """Do what a writing script does, and change nothing. Raises what Redis refuses with."""
        self._probe(self._keys[1:])

    def entry(self, tag: str) -> bytes | None:
        """Read one entry; None if it is gone."""
        return cast("bytes | None", self.client.hget(self._keys[0], tag))

    def overdue(self, age_s: float, limit: int) -> list[tuple[str, bytes]]:
        """Read the entries, each with its tag, that are older than this by Redis' clock."""
        flat = self._overdue(self._keys, [age_s, limit])
        return [
            (bytes_to_str(tag), entry) for tag, entry in zip(flat[::2], flat[1::2], strict=True)
        ]

    def requeue(
        self,
        tag: str,
        entry: bytes,
        payload: str | bytes,
        lists: Sequence[str],
        *,
        last: bool = False,
        age_s: float = -1,
    ) -> bool:
        """Move an unacked message to these lists; False if its entry is no longer this one."""
        side = "LPUSH" if last else "RPUSH"
        return bool(self._requeue([*self._keys, *lists], [tag, entry, payload, side, age_s]))

    def oldest(self, key: str) -> tuple[int, bytes] | None:
        """Read the oldest malformed message of a list: its size, and it or its beginning."""
        found = self._beginning([key], [largest_message(), BEGINNING])
        return (found[0], found[1]) if found else None

    def remove(self, key: str, size: int, beginning: bytes) -> None:
        """Remove the oldest malformed message of a list, if it is still this one."""
        self._remove([key], [size, beginning])

    def _script(self, name: str) -> Any:  # Any: redis-py's Script, which mypy takes for untyped
        return self.client.register_script((LUA / f"{name}.lua").read_text())

    def _arguments(
        self, sources: Sequence[Source], batching: Batching
    ) -> tuple[list[str], list[str | int]]:
        keys = [*self._keys, *(each.key for each in sources), *(s.malformed for s in sources)]
        tasks, *limits = batching
        texts = [each.queue for each in sources]
        return keys, [f" {' '.join(tasks)} ", *limits, largest_message(), *texts]
