"""Slots in Redis: fast claims on what Postgres says is open.

Nothing here decides: a claim is a hint which slot to try, and every key can be rebuilt.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

import structlog
from redis import Redis
from redis.commands.core import Script
from redis.exceptions import NoScriptError, ResponseError

from core.lua import script

Call = tuple[Sequence[str], Sequence[str | int]]  # of a script: keys and arguments
T = TypeVar("T")

CLAIM_LEASE = timedelta(minutes=3)  # longer than any redelivery within the visibility timeout
OPEN_TTL = timedelta(days=30)  # a flush is harmless, so an early expiry is too; no key leaks
CLOSED_TTL = timedelta(hours=1)
CHUNK = 1_000  # claims or slots a call: 1 to 2 ms of Redis' one thread; more is not cheaper
PIPELINED = 10  # seed calls of a round trip: some 300 KB
TYPES = ("set", "hash", "zset")  # of the keys of a batch, in the order of `_keys`

log = structlog.get_logger(__name__)


class Claim(NamedTuple):  # made for each content: a third of the cost of a frozen dataclass
    """The slot that a claimant may try. `essay_id` None: no slot is free in Redis."""

    claimant: str
    essay_id: str | None
    new: bool


class Slots:
    """The free slots and claims of every batch, on one Redis."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self._claim = client.register_script(script("claim"))
        self._release = client.register_script(script("release"))
        self._seed = client.register_script(script("seed"))

    def claim(self, claimants: Mapping[str, Sequence[str]]) -> dict[str, list[Claim]]:
        """Give each claimant of each batch the slot it already holds, or the next free one.

        One round trip; the claims stand in the order of their claimants. A claim without a slot
        means that the free set is empty, or that Redis knows nothing of the batch; only Postgres
        knows why. Safe to repeat; the client does so by itself when a reply is lost. Raises
        redis.ConnectionError (retry).
        """
        chunks = [(batch_id, c) for batch_id, those in claimants.items() for c in _chunks(those)]
        claims: dict[str, list[Claim]] = {batch_id: [] for batch_id in claimants}
        calls: list[Call] = [(_keys(batch_id), chunk) for batch_id, chunk in chunks]
        answers = self._healed(claimants, lambda: self._pipelined(self._claim, calls))
        for (batch_id, chunk), answer in zip(chunks, answers, strict=True):
            claims[batch_id] += _claims(chunk, answer)
        return claims

    def _pipelined(self, script: Script, calls: Sequence[Call]) -> list[Any]:  # Any: its answers
        """Make these calls in one round trip; one by one if Redis does not know the script yet."""
        if len(calls) == 1:
            return [script(*calls[0])]  # a plain call, which traces show
        with self.client.pipeline(transaction=False) as pipe:
            for keys, args in calls:
                pipe.evalsha(script.sha, len(keys), *keys, *args)
            try:
                return pipe.execute()
            except NoScriptError:
                return [script(keys, args) for keys, args in calls]

    def _healed(self, batches: Iterable[str], call: Callable[[], T]) -> T:
        """Call Redis; if somebody gave keys of these batches another type, drop them and repeat."""
        try:
            return call()
        except ResponseError as error:
            if not _is_wrong_type(error):
                raise
            self._drop_other_types(batches)
            return call()

    def _drop_other_types(self, batches: Iterable[str]) -> None:
        keys = [(key, own) for b in batches for key, own in zip(_keys(b), TYPES, strict=True)]
        with self.client.pipeline(transaction=False) as pipe:
            for key, _ in keys:
                pipe.type(key)
            found = pipe.execute()
        wrong = [k for (k, own), kind in zip(keys, found, strict=True) if kind not in (own, "none")]
        if wrong:  # else somebody was faster
            self.client.delete(*wrong)
            log.warning("keys_of_another_type_dropped", keys=wrong)

    def release(self, batch_id: str, claims: Iterable[Claim], *, still_open: bool) -> None:
        """Take claims back that still belong to these claimants.

        `still_open` puts the slots among the free ones again; otherwise they are forgotten.
        """
        pairs = [x for claim in claims if claim.essay_id for x in (claim.claimant, claim.essay_id)]
        if pairs:
            call: Call = (_keys(batch_id), [int(still_open), *pairs])
            self._healed([batch_id], lambda: self._release(*call))

    def seed(self, batch_id: str, open_slots: Iterable[str], *, fresh: bool = True) -> int:
        """Make exactly these slots claimable, except those claimed within `CLAIM_LEASE`.

        `fresh` forgets what Redis held as free. Returns how many slots became claimable. One round
        trip for each `CHUNK * PIPELINED`.
        """
        lease_ms = int(CLAIM_LEASE.total_seconds() * 1000)
        ttl_s = int(OPEN_TTL.total_seconds())
        chunks = _chunks(open_slots)
        seeded = 0
        while some := [*islice(chunks, PIPELINED)]:
            calls: list[Call] = [
                (_keys(batch_id), [int(fresh and number == 0), lease_ms, ttl_s, " ".join(chunk)])
                for number, chunk in enumerate(some)
            ]
            seeded += sum(self._healed([batch_id], partial(self._pipelined, self._seed, calls)))
            fresh = False
        return seeded

    def free(self, batch_id: str) -> set[str]:
        """Return the slots that Redis holds as free."""
        return cast("set[str]", _readable(self.client.smembers, _keys(batch_id)[0]) or set())

    def free_counts(self, batches: Sequence[str]) -> list[int]:
        """Count the free slots of many batches in one round trip."""
        with self.client.pipeline(transaction=False) as pipe:
            for batch_id in batches:
                pipe.scard(_keys(batch_id)[0])
            counts = pipe.execute(raise_on_error=False)
        return [cast("int", _readable(_given, count)) or 0 for count in counts]

    def recent_claims(self, batch_id: str, *, older_than_s: float = 0) -> set[str]:
        """Return the slots that were claimed so lately that their commit may be on its way."""
        seconds, _ = self.client.time()
        since = (seconds - CLAIM_LEASE.total_seconds()) * 1000
        until = (seconds - older_than_s) * 1000 if older_than_s else "+inf"
        found = _readable(self.client.zrangebyscore, _keys(batch_id)[2], since, until)
        return set(cast("list[str]", found or ()))

    def assignments(self, batch_id: str) -> dict[str, str]:
        """Return claimant to essay id, as Redis remembers it."""
        return cast("dict[str, str]", _readable(self.client.hgetall, _keys(batch_id)[1]) or {})

    def forget(self, batches: Iterable[str]) -> None:
        """Drop every key of these batches."""
        if keys := [key for batch_id in batches for key in _keys(batch_id)]:
            self.client.delete(*keys)

    def close(self, batches: Iterable[str]) -> None:
        """Offer no slot of closed batches any more, and let their keys run out."""
        with self.client.pipeline(transaction=False) as pipe:
            for batch_id in batches:
                free, *others = _keys(batch_id)
                pipe.delete(free)
                for key in others:
                    pipe.expire(key, CLOSED_TTL)
            pipe.execute()


def _claims(claimants: Sequence[str], answer: Any) -> Iterable[Claim]:  # Any: of `claim.lua`
    if answer == -1:
        return (Claim(claimant, None, new=False) for claimant in claimants)
    slots, new = answer
    return map(Claim, claimants, (slot or None for slot in slots), map(bool, new))


def _is_wrong_type(error: ResponseError) -> bool:
    return "WRONGTYPE" in str(error)  # Redis 6 has words before it


def _readable(read: Callable[..., object], *args: object) -> object:
    """Read a key; None if it has another type: then it holds nothing of ours."""
    try:
        return read(*args)
    except ResponseError as error:
        if not _is_wrong_type(error):
            raise
        return None


def _given(reply: object) -> object:
    """Return what a pipeline was answered, or raise it."""
    if isinstance(reply, Exception):
        raise reply
    return reply


def _keys(batch_id: str) -> list[str]:
    """Name the keys of a batch; the literal braces keep them in one cluster slot."""
    root = f"batch:{{{batch_id}}}"
    return [f"{root}:available_slots", f"{root}:assignments", f"{root}:claims"]


def _chunks(items: Iterable[str]) -> Iterator[list[str]]:
    """Cut into chunks of `CHUNK`; at least one, so that an empty seed still clears."""
    rest = iter(items)
    chunk = list(islice(rest, CHUNK))
    yield chunk
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
