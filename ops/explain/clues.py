"""What may have become of the messages of a batch: letters, similar ids, tombstones, other kinds.

Each clue is a fact, and the command that follows it up. The most certain one comes first.
"""

import json
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

from psycopg.errors import UndefinedTable

from core.catalogue import (
    AMEND_BATCH,
    BATCHED,
    CANCEL_BATCH,
    CONFIRM_STUDENTS,
    REGISTER_BATCH,
    TASKS,
)
from core.db.connection import Conn
from core.db.moments import EARLIEST
from core.named_batch import batch_ids
from ops.explain import queries
from ops.explain.causes import Cause
from ops.explain.locks import UNREADABLE
from ops.explain.lookalikes import alike, variants
from ops.wording import number, utc

SHOWN = 3  # of a list
NAMELESS = "no batch: "  # of letters that may be of any batch
SAME_ESSAYS = "its essays are registered as "
PATIENCE = timedelta(seconds=10)  # for a registration that comes after the first contents
LONG = 8  # characters of an id that is part of another one by no chance
EARLY = timedelta(days=1)  # a message may come so long before the registration of its batch
OF_BATCHES = {REGISTER_BATCH.name, CANCEL_BATCH.name, AMEND_BATCH.name}
Row = Mapping[str, Any]  # Any: a database row


@dataclass(frozen=True)
class Clue:
    """A fact in words; `title` replaces that of the cause, `command` its step."""

    text: str
    command: str | None = None
    title: str | None = None
    since: datetime | None = None
    weak: bool = False  # it may have nothing to do with the batch, so a command of another wins


def with_clues(cause: Cause, clues: Sequence[Clue], *, keep: bool = False) -> Cause:
    """Let clues take the place of a reason, or follow it (`keep`).

    The first clue with a title, a command or a moment gives it to the cause.
    """
    if not clues:
        return cause
    titles = [clue.title for clue in clues if clue.title]
    commands = [clue.command for clue in sorted(clues, key=attrgetter("weak")) if clue.command]
    times = [clue.since for clue in clues if clue.since]
    return replace(
        cause,
        title=next(iter(titles), cause.title),
        reason="; ".join([cause.reason] * keep + [clue.text for clue in clues]),
        command=next(iter(commands), cause.command),
        since=cause.since or next(iter(times), None),
    )


def of_unknown(conn: Conn, batch_id: str, in_redis: int = 0) -> list[Clue]:
    """Look for an id that no row has as the id of a batch; `in_redis`: slots that Redis has."""
    ids = variants(batch_id)
    found = _collect(
        conn,
        lambda: _tombstone(conn, batch_id, ids),
        lambda: _executed(conn, batch_id),
        lambda: _registered(conn, batch_id, ids),
        lambda: _pending(conn, batch_id),
        lambda: _letters(conn, batch_id, skip=set()),
        lambda: _discarded(conn, batch_id, TASKS),
        lambda: _other_kind(conn, batch_id),
    )
    if not found and in_redis:
        text = (
            f"Redis still has {number(in_redis, 'slot')} of it, so somebody deleted its rows by"
            " hand, or restored an older backup of Postgres: its senders must send everything again"
        )
        gone = "The batch was registered, but its rows are gone"
        found.append(Clue(text, "els submit FILE", gone))
    return found


def of_unregistered(conn: Conn, batch_id: str) -> list[Clue]:
    """Look for the registration of a batch for which contents wait."""
    ids = variants(batch_id)
    return _collect(
        conn,
        lambda: _tombstone(conn, batch_id, ids),
        lambda: _executed(conn, batch_id),
        lambda: _registered(conn, batch_id, ids),
        lambda: _letters(conn, batch_id, skip={*BATCHED, CONFIRM_STUDENTS.name}),
        lambda: _discarded(conn, batch_id, [REGISTER_BATCH.name]),
    )


def of_missing_contents(conn: Conn, batch_id: str, registered_at: datetime) -> list[Clue]:
    """Look for the contents of a registered batch that have no slot."""
    skip, since = OF_BATCHES | {CONFIRM_STUDENTS.name}, _early(registered_at)
    return _collect(
        conn,
        lambda: _pending(conn, batch_id),
        lambda: _for_its_essays(conn, batch_id),
        lambda: _for_its_other_ids(conn, batch_id),
        lambda: _excess(conn, batch_id),
        lambda: _named_elsewhere(conn, batch_id),
        lambda: _letters(conn, batch_id, skip=skip, since=since),
        lambda: _discarded(conn, batch_id, BATCHED),
        lambda: _answered(conn, batch_id),
        lambda: _same_essays(conn, batch_id),
    )


def of_others(conn: Conn, batch_id: str, registered_at: datetime) -> list[Clue]:
    """Name the ids that contents came for since, and found no batch or no slot, if they are few."""
    return _collect(
        conn,
        lambda: _unregistered(conn, batch_id, registered_at),
        lambda: _excess_since(conn, batch_id, registered_at),
    )


def of_missing_students(conn: Conn, batch_id: str, registered_at: datetime) -> list[Clue]:
    """Look for the confirmation of the students of a batch."""
    skip, since = OF_BATCHES | {*BATCHED}, _early(registered_at)
    return _collect(
        conn,
        lambda: _letters(conn, batch_id, skip=skip, since=since),
        lambda: _discarded(conn, batch_id, [CONFIRM_STUDENTS.name]),
        lambda: _class_mates(conn, batch_id),
    )


def _early(registered_at: datetime) -> datetime:
    """Return the moment from which on a message may be of this batch."""
    return registered_at - EARLY if registered_at - EARLIEST > EARLY else EARLIEST


def _collect(conn: Conn, *looks: Callable[[], Iterable[Clue]]) -> list[Clue]:
    """Look everywhere; go on where a table is locked, slow, not there, or may not be read."""
    found: list[Clue] = []
    guard = conn.transaction if queries.in_transaction(conn) else nullcontext
    for look in looks:
        with suppress(*UNREADABLE, UndefinedTable), guard():
            found += look()
    return found


def _tombstone(conn: Conn, batch_id: str, ids: Sequence[str]) -> Iterator[Clue]:
    if stone := queries.tombstone(conn, batch_id):
        yield Clue(
            f"it ended as {stone.status} at {utc(stone.ended_at)}; {stone.purged_by} deleted it"
            f" at {utc(stone.purged_at)} with all that belonged to it",
            title=f"The batch was purged at {utc(stone.purged_at)}",
            command=f"els find {shlex.quote(batch_id)}",
            since=stone.purged_at,
        )
        return
    for other, how in _first(alike(batch_id, queries.purged_like(conn, batch_id, ids))):
        text = f"{other}, which is this id {how}, was registered once and is purged"
        yield Clue(text, f"els explain {other}")


def _executed(conn: Conn, batch_id: str) -> Iterator[Clue]:
    """Tell of a batch of which only the outcomes of its messages are left."""
    done = queries.executed(conn, batch_id)
    registered = [each for each in done if each["outcome"] == "registered"]
    if not registered:
        return
    yield Clue(
        f"els.register_batch was executed at {utc(registered[0]['since'])}, so somebody deleted its"
        " rows by hand, or restored a backup without them: restore them, or register it again under"
        " a new event_id",
        "els submit FILE",
        "The batch was registered, but its rows are gone",
        registered[0]["since"],
    )


def _registered(conn: Conn, batch_id: str, ids: Sequence[str]) -> Iterator[Clue]:
    found = alike(batch_id, queries.registered_like(conn, batch_id, ids))
    for other, how in _first(found):
        yield Clue(f"{other} is registered, which is this id {how}", f"els explain {other}")
    yield from _more(found, "registered ids are nearly the same")


def _pending(conn: Conn, batch_id: str) -> Iterator[Clue]:
    pending = {row["batch_id"]: row for row in queries.pending_batches(conn)}
    found = alike(batch_id, pending)
    for other, how in _first(found):
        row = pending[other]
        waiting = number(row["contents"], "content waits", "contents wait")
        text = f"{waiting} for {other}, which is this id {how}, and nobody has registered it"
        yield Clue(text, f"els explain {other}")
    yield from _more(found, "ids with pending contents are nearly the same")


def _for_its_essays(conn: Conn, batch_id: str) -> Iterator[Clue]:
    for row in queries.pending_for_its_essays(conn, batch_id)[:SHOWN]:
        waiting = number(row["contents"], "content waits", "contents wait")
        other = row["batch_id"]
        yield Clue(
            f"{waiting} for {other}, which is an essay of this batch and no batch",
            f"els explain {other}",
        )


def _for_its_other_ids(conn: Conn, batch_id: str) -> Iterator[Clue]:
    for row in queries.pending_for_its_other_ids(conn, batch_id):
        waiting = number(row["contents"], "content waits", "contents wait")
        other = row["batch_id"]
        yield Clue(
            f"{waiting} for {other}, which is the {row['field']} of this batch and no batch: their"
            " sender must send them again with its batch_id",
            f"els explain {other}",
        )


def _excess_since(conn: Conn, batch_id: str, registered_at: datetime) -> Iterator[Clue]:
    rows = queries.excess_since(conn, batch_id, registered_at)
    if rows and len(rows) <= SHOWN:
        each = [f"{row['batch_id']} ({number(row['contents'], 'content')})" for row in rows]
        yield Clue(f"since then contents found no slot in {', '.join(each)}")


def _unregistered(conn: Conn, batch_id: str, registered_at: datetime) -> Iterator[Clue]:
    late = datetime.now(UTC) - PATIENCE
    rows = [row for row in queries.pending_batches(conn) if registered_at < row["since"] < late]
    if not rows or len(rows) > SHOWN or alike(batch_id, [row["batch_id"] for row in rows]):
        return
    each = [f"{row['batch_id']} ({number(row['contents'], 'content')})" for row in rows]
    one = f"els explain {rows[0]['batch_id']}" if len(rows) == 1 else None
    ids = "an id that nobody has" if len(rows) == 1 else "ids that nobody has"
    yield Clue(f"since then contents came for {ids} registered: {', '.join(each)}", one)


def _excess(conn: Conn, batch_id: str) -> Iterator[Clue]:
    like = alike(batch_id, queries.registered_like(conn, batch_id, variants(batch_id)))
    for row in queries.with_excess(conn, list(like))[:SHOWN] if like else ():
        other = row["batch_id"]
        came = number(row["contents"], "content")
        text = f"{came} found no slot in {other}, which is this id {like[other]}"
        yield Clue(text, f"els find {other}")


def _named_elsewhere(conn: Conn, batch_id: str) -> Iterator[Clue]:
    """Tell of contents that went to another batch, although their own ids name this one."""
    where = {
        "pending": ("came for", ", which nobody has registered", "els explain"),
        "excess": ("found no slot in", "", "els find"),
        "slot": ("got slots of", "", "els find"),
    }
    rows = queries.named_elsewhere(conn, batch_id) if len(batch_id) >= LONG else []
    for row in rows[:SHOWN]:
        verb, end, command = where[row["place"]]
        contents = number(row["contents"], "content")
        other = row["batch_id"]
        yield Clue(
            f"{contents} whose file or storage ids name this batch {verb} {other}{end}",
            f"{command} {other}",
        )


def _answered(conn: Conn, batch_id: str) -> Iterator[Clue]:
    """Tell of contents that were carried out, and left no slot less open."""
    if lost := queries.answered_pending(conn, batch_id):
        yield Clue(
            f"{number(lost, 'message')} came before the registration, and left neither a slot nor a"
            " pending content: its text came twice, or somebody deleted it by hand; a repeat of"
            " its event changes nothing, so send it under a new event_id"
        )
    for row in queries.answered_twice(conn, batch_id)[:SHOWN]:
        essay, at = row["essay_id"], utc(row["since"])
        if row["rejected"]:
            yield Clue(
                f"{row['messages']} messages rejected the file {row['rejected']}, which takes one"
                f" slot ({essay}): rejections of other files name their own file_upload_id"
            )
            continue
        if row["text_storage_id"] is None:
            yield Clue(
                f"a content was assigned to {essay} at {at}, and that slot is open: somebody"
                " emptied it by hand; a repeat of its event changes nothing, so send it under a"
                " new event_id"
            )
            continue
        name = row["original_file_name"]
        yield Clue(
            f"{row['messages']} messages named the text {row['text_storage_id']}, which holds one"
            f" slot ({essay}, from {name}): two files with one text_storage_id fill one slot"
        )


def _same_essays(conn: Conn, batch_id: str) -> Iterator[Clue]:
    for row in queries.with_the_same_essays(conn, batch_id):
        other = row["batch_id"]
        yield Clue(
            f"{SAME_ESSAYS}{other} too ({row['status']})",
            f"els find {other}",
            weak=True,
        )


def _class_mates(conn: Conn, batch_id: str) -> Iterator[Clue]:
    for row in queries.confirmed_of_class(conn, batch_id):
        yield Clue(
            f"the students of {row['batch_id']}, of the same class, were confirmed at"
            f" {utc(row['ready_at'])}"
        )


def _letters(
    conn: Conn, batch_id: str, *, skip: Collection[str], since: datetime | None = None
) -> Iterator[Clue]:
    """Tell of letters that name this batch in their body, a look-alike, or no batch at all."""
    naming: list[Row] = []
    nameless: list[Row] = []
    near: list[tuple[Row, str]] = []
    for letter in queries.waiting_letters(conn):
        if letter["task"] in skip or (since and letter["parked_at"] < since):
            continue
        ids = [letter["batch_id"]] if letter["batch_id"] else _named_in(letter)
        if letter["batch_id"] == batch_id:
            continue  # the rule dead_letter_waiting names it
        if batch_id in {each.strip() for each in ids}:
            naming.append(letter)
        elif like := alike(batch_id, ids):
            other, how = next(iter(like.items()))
            near.append((letter, f"{other}, which is this id {how}"))
        elif not ids:
            nameless.append(letter)
    if naming:
        yield Clue(f"{_each(naming)} names this batch in its body", _show(naming))
    for row, named in near[:SHOWN]:
        yield Clue(f"{_each([row])} names {named}", _show([row]))
    if nameless:
        count = number(len(nameless), "dead letter names", "dead letters name")
        yield Clue(f"{count} {NAMELESS}{_listed(nameless)}", _show(nameless), weak=True)


def _discarded(conn: Conn, batch_id: str, tasks: Iterable[str]) -> Iterator[Clue]:
    for row in queries.discarded_letters(conn, batch_id, tasks)[:SHOWN]:
        yield Clue(
            f"dead letter {row['id']} ({row['task']}, {row['code']}) was discarded at"
            f" {utc(row['discarded_at'])}",
            f"els dead-letters show {row['id']}",
        )


def _named_in(letter: Row) -> list[str]:
    try:
        return batch_ids(json.loads(letter["body"] or "null"))
    except (ValueError, RecursionError):
        return []


def _other_kind(conn: Conn, given: str) -> Iterator[Clue]:
    kinds: dict[str, list[str]] = {}
    for found in queries.other_kinds(conn, given):
        batches = kinds.setdefault(found.kind, [])
        if found.batch_id and found.batch_id not in batches:
            batches.append(found.batch_id)
    for kind, batches in kinds.items():
        listed = f", of {_names(batches)}" if batches else ""
        find = f"els find {shlex.quote(given.strip())}"
        yield Clue(
            f"it is {kind}{listed} (`{find}` lists all that has this id)",
            f"els explain {batches[0]}" if len(batches) == 1 else find,
            f"This is {kind}, not the id of a batch",
        )


def _first(found: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return list(found.items())[:SHOWN]


def _more(found: Mapping[str, str], what: str) -> Iterator[Clue]:
    if len(found) > SHOWN:
        yield Clue(f"{len(found) - SHOWN} more {what}")


def _each(letters: Sequence[Row]) -> str:
    word = "dead letter" if len(letters) == 1 else "each of the dead letters"
    return f"{word} {_listed(letters)}"


def _listed(letters: Sequence[Row]) -> str:
    shown = [f"{row['id']} ({row['task']}, {row['code']})" for row in letters[-SHOWN:]]
    more = f" and {len(letters) - SHOWN} more" if len(letters) > SHOWN else ""
    return ", ".join(shown) + more


def _show(letters: Sequence[Row]) -> str:
    one = len(letters) == 1
    return f"els dead-letters show {letters[0]['id']}" if one else "els dead-letters list"


def _names(batches: Sequence[str]) -> str:
    more = " and others" if len(batches) > SHOWN else ""
    return ", ".join(batches[:SHOWN]) + more
