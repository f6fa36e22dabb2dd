"""What it says of a batch that messages of it lie somewhere in the broker."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ops.explain.batch_causes import CLAIMED_LONG, NO_CLUE
from ops.explain.causes import CAUSES, Cause
from ops.explain.clues import NAMELESS, SAME_ESSAYS, Clue, with_clues
from ops.explain.messages import Lying
from ops.wording import number, utc

KINDS = {"zset": "sorted set", "string": "key"}  # the others are called so
LOOKS = {
    "list": "LRANGE {} 0 9",
    "stream": "XREVRANGE {} + - COUNT 9",
    "zset": "ZRANGE {} 0 9",
    "string": "GET {}",
    "hash": "HSCAN {} 0",
    "set": "SSCAN {} 0",
}
GONE_WORKER = "a worker that is gone held"
LACKING = {  # causes of a batch that waits for a message
    "waiting_for_contents",
    "waiting_for_students",
    "unknown_batch",
    "pending_not_registered",
}


def lacks_messages(causes: Sequence[Cause]) -> bool:
    """Tell whether a batch lacks a message that may lie somewhere."""
    return any(cause.code in LACKING for cause in causes)


def with_messages(
    causes: Sequence[Cause], found: Sequence[Clue], otherwise: Sequence[Clue] = ()
) -> list[Cause]:
    """Add to what the batch lacks what is known of messages; nothing else is then unknown.

    `otherwise`: what may be so where nothing at all is known.
    """
    return [_with(each, found, otherwise) if each.code in LACKING else each for each in causes]


def with_lost(causes: Sequence[Cause]) -> list[Cause]:
    """Say that the messages of long claims are lost, unless a letter may have them."""
    if not any(NO_CLUE in each.reason for each in causes):
        return [*causes]
    return [_lost(each) if each.reason == CLAIMED_LONG else each for each in causes]


def _lost(cause: Cause) -> Cause:
    return replace(
        cause,
        title=cause.title.replace("are in work", "were in work"),
        reason="their messages are neither in the queue nor with a worker: somebody has deleted"
        " what the broker kept for it (the key unacked), or its Redis has lost it",
        by_itself="the slots are free 3 minutes after their claim; the messages do not come back",
        command="els submit FILE  # or let their sender send them again",
    )


def _with(cause: Cause, found: Sequence[Clue], otherwise: Sequence[Clue]) -> Cause:
    if not found:
        unknown = any(words in cause.reason for words in (NO_CLUE, NAMELESS, SAME_ESSAYS))
        return with_clues(cause, otherwise, keep=True) if unknown else cause
    nothing_known = cause.reason == CAUSES[cause.code].reason
    lacking, _, known = cause.reason.replace(f"; {NO_CLUE}", "").partition("; ")
    said = with_clues(replace(cause, reason=lacking), found, keep=not nothing_known)
    return replace(said, reason=f"{said.reason}; {known}") if known else said


def message_clues(lying: Sequence[Lying], queue: str, broker: str) -> Iterator[Clue]:
    """Say where messages of a batch lie; `broker`: its kind and database."""
    for each in lying:
        if each.key is None:
            yield Clue(_held(each))
        elif each.key == queue and each.database is None:
            among = f" among the {each.looked} oldest" if each.looked > each.messages else ""
            yield Clue(f"{_naming(each)} the batch in the queue {queue}{among}")
        else:
            yield _elsewhere(each, queue, broker)


def _held(each: Lying) -> str:
    those = number(each.messages, "message that names", "messages that name")
    if each.left:
        return (
            f"{GONE_WORKER} {those} the batch, and has not renewed it since"
            f" {utc(each.left)}: the broker delivers it again ELS_VISIBILITY_TIMEOUT after that; it"
            " is safe to send it again before"
        )
    if each.until is None:
        return f"a worker holds {those} the batch, and has not finished"
    first = "" if each.messages == 1 else ", the first"
    if each.tried:
        times = number(each.tried, "time", "times")
        return (
            f"a worker holds {those} the batch{first} until {utc(each.until)}, when it tries again"
            f" (it has tried {times}: a lock, or slots in flight)"
        )
    return (
        f"a worker holds {those} the batch{first} until {utc(each.until)}, because its sender gave"
        " that moment (`eta`, or `countdown` in seconds)"
    )


def _elsewhere(each: Lying, queue: str, broker: str) -> Clue:
    """Name a list that this service takes nothing from, and a command that helps."""
    key = str(each.key)
    where = f"the {KINDS.get(each.kind, each.kind)} {key}"
    command = LOOKS[each.kind].format(shlex.quote(key))
    if each.database is not None:
        where += f" of database {each.database}"
        command = f"-n {each.database} {command}"
    elif each.ours:
        command = f"RPOPLPUSH {shlex.quote(key)} {queue}"
    lies = "message for the batch lies", "messages for the batch lie"
    return Clue(
        f"{number(each.messages, *lies)} in {where}, and workers take from the queue {queue} of"
        f" {broker}: its sender must send to that one",
        f"els env  # then redis-cli -u BROKER_URL {command}",
    )


def _naming(each: Lying) -> str:
    return number(each.messages, "message names", "messages name")
