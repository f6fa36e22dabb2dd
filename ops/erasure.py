"""Erase a person: in every row, in every JSON, and in Redis, `erased` stands instead.

What identifies texts and batches stays, so manifests still verify. A second run changes nothing.
"""

import base64
import binascii
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import psycopg
import redis
from psycopg.sql import SQL, Identifier
from psycopg.sql import Literal as Value
from psycopg.types.json import Json, Jsonb

from core.db.actions import By
from core.db.connection import Conn, Row
from core.servers.rights import RIGHTS

MARKER = "erased"
AT_ONCE = 100  # rows of one transaction
PASSES = 5  # over a table: a row that others change meanwhile is found by the next one
KINDS = {"user": {"user_id", "validated_by"}, "student": {"student_id"}}
# What goes with the person where these stand side by side: a batch of the user, a student's file.
WITH_PERSON = {"user": {"metadata"}, "student": {"original_file_name"}}
PEOPLE = frozenset().union(*KINDS.values())
# Ids of things, which others know: the service needs them, and the manifest is made of them.
KEPT = frozenset(
    {
        *("batch_id", "essay_id", "text_storage_id", "file_upload_id", "raw_file_storage_id"),
        *("essay_file_id", "event_id", "correlation_id", "manifest_sha256", "content_md5_hash"),
        *("class_id", "org_id", "type", "generation", "status", "current_status", "task", "code"),
        *("rule", "kind", "traceparent", "replay_task_id", "on_deadline", "outcome", "sqlstate"),
    }
)
IS_ID = re.compile(r"[A-Za-z0-9_-]+")
JsonAny = Any  # a JSON value


@dataclass(frozen=True)
class Person:
    """Whom to erase: the id of a user (a teacher) or of a student."""

    kind: Literal["user", "student"]
    id: str

    @property
    def forms(self) -> list[str]:
        """How the id may be written in text or JSON, ASCII in lower case as Postgres has it."""
        quoted = {json.dumps(self.id)[1:-1], json.dumps(self.id, ensure_ascii=False)[1:-1]}
        return sorted({_lower(each) for each in {self.id, *quoted}})

    @property
    def word(self) -> re.Pattern[str]:
        """The id as a word of its own: `user-1` is in `user-1.docx`, and not in `user-10`."""
        return re.compile(rf"(?<![^\W_]){re.escape(self.id)}(?![^\W_])")

    def within(self, text: str) -> bool:
        """Tell whether a text, or JSON as text, names the person."""
        forms = "|".join(map(re.escape, self.forms))
        return bool(re.search(rf"(?<![^\W_])(?:{forms})(?![^\W_])", _lower(text)))


@dataclass
class Erasure:
    """What was, or would be, changed: rows by table, entries of Redis, and messages that wait."""

    rows: Counter[str] = field(default_factory=Counter)
    redis: int = 0
    waiting: Counter[str] = field(default_factory=Counter)


class Scrub:
    """Writes the marker over a person in a row or a JSON value."""

    def __init__(self, person: Person, contents: Mapping[str, set[str]]) -> None:
        """`contents` has the student's texts and essays, by batch."""
        self.person, self.contents = person, contents
        self.own, self.private = KINDS[person.kind], WITH_PERSON[person.kind]

    def value(self, value: JsonAny, name: str = "", batch_id: str = "") -> JsonAny:
        match value:
            case dict():
                return self._mapping(value, batch_id)
            case list():
                return [self.value(each, name, batch_id) for each in value]
            case str() if name in self.own:
                return MARKER if value == self.person.id else value
            case str() if name in KEPT or name in PEOPLE:
                return value
            case str():
                return self._text(value, name)
        return value

    def _mapping(self, value: Mapping[str, JsonAny], batch_id: str) -> dict[str, JsonAny]:
        batch_id = str(value.get("batch_id") or batch_id)
        encoded = value.get("base64") or value.get("beginning_base64")
        if encoded and self._is_in_bytes(encoded):
            return {MARKER: True}
        mine = any(value.get(name) == self.person.id for name in self.own) or bool(
            self.contents.get(batch_id, set())
            & {str(value.get(name)) for name in ("text_storage_id", "essay_id", "file_upload_id")}
        )
        return {
            self._text(name, ""): self._private(each)
            if mine and name in self.private
            else self.value(each, name, batch_id)
            for name, each in value.items()
        }

    def _private(self, value: JsonAny) -> JsonAny:
        return None if value is None else {} if isinstance(value, dict) else MARKER

    def _text(self, text: str, name: str) -> str:
        if text == self.person.id:
            return f"{MARKER} {uuid4()}" if name == "task_id" else MARKER
        if IS_ID.fullmatch(text) and name != "original_file_name":
            return text  # another id, which only looks alike
        return self.person.word.sub(MARKER, text)

    def _is_in_bytes(self, encoded: object) -> bool:
        try:
            raw = base64.b64decode(str(encoded))
        except (binascii.Error, ValueError):
            return False
        return self.person.within(raw.decode("utf-8", "replace"))


def _lower(text: str) -> str:
    """Write ASCII letters in lower case, and no others: `\\u00E5` is `\\u00e5`."""
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def open_batches(conn: Conn, person: Person) -> list[str]:
    """List batches that still need the person: open ones, and those with undelivered events."""
    rows = conn.execute(
        """
        SELECT batch_id FROM batch_essay_trackers
        WHERE status IN ('awaiting_content_validation', 'awaiting_student_validation')
          AND (%(kind)s = 'user' AND user_id = %(id)s OR EXISTS (
              SELECT FROM unnest(%(forms)s::text[]) AS form
              WHERE strpos(lower(metadata::text COLLATE "C"), form) > 0))
        UNION
        SELECT coalesce(batch_id, 'of no batch') FROM event_outbox
        WHERE published_at IS NULL AND EXISTS (
            SELECT FROM unnest(%(forms)s::text[]) AS form
            WHERE strpos(lower(data::text COLLATE "C"), form) > 0)
        ORDER BY 1
        """,
        {"kind": person.kind, "id": person.id, "forms": person.forms},
    )
    return [row["batch_id"] for row in rows]


def erase_rows(conn: Conn, person: Person, *, dry_run: bool = False) -> Counter[str]:
    """Erase a person in every table; return how many rows changed, by table."""
    contents = _contents(conn, person) if person.kind == "student" else {}
    scrub = Scrub(person, contents)
    changed: Counter[str] = Counter()
    for table, columns in _columns(conn).items():
        for _ in range(1 if dry_run else PASSES):
            found = _erase_table(conn, table, columns, scrub, dry_run=dry_run)
            changed[table] += found
            if not found:
                break
    return +changed


def erase_reason(person: Person, by: By) -> By:
    """Take the person out of the reason, which is recorded."""
    scrubbed = Scrub(person, {}).value({"reason": by.reason})["reason"]
    return by._replace(reason=scrubbed)


def clean_up(conn: Conn, tables: Sequence[str]) -> str | None:
    """Let Postgres forget the old rows, in tables, indexes and statistics; return why it did not.

    Must run outside of a transaction.
    """
    notices: list[str] = []
    conn.add_notice_handler(lambda each: notices.append(str(each.message_primary)))
    try:
        conn.execute("SET statement_timeout = 0")
        for table in tables:
            conn.execute(SQL("VACUUM (ANALYZE) {}").format(Identifier(table)))
    except psycopg.Error as error:
        return str(error).splitlines()[0]
    return notices[0] if notices else None


def _contents(conn: Conn, person: Person) -> dict[str, set[str]]:
    """Read which texts, files and essays are the student's, by batch."""
    rows = conn.execute(
        "SELECT batch_id, essay_id, text_storage_id, file_upload_id FROM essay_states"
        " WHERE student_id = %s",
        [person.id],
    )
    contents: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        contents[row["batch_id"]] |= {v for k, v in row.items() if v and k != "batch_id"}
    return contents


def _columns(conn: Conn) -> dict[str, dict[str, str]]:
    """Read the columns that hold text or JSON, with their types, of every table."""
    rows = conn.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = ANY(%s)"
        " AND data_type IN ('text', 'json', 'jsonb') ORDER BY table_name, ordinal_position",
        [list(RIGHTS)],
    )
    tables: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        tables[row["table_name"]][row["column_name"]] = row["data_type"]
    return tables


def _erase_table(
    conn: Conn, table: str, columns: Mapping[str, str], scrub: Scrub, *, dry_run: bool
) -> int:
    named = SQL(", ").join(map(Identifier, columns))
    texts = SQL(" || ' ' || ").join(
        SQL("coalesce({}::text, '')").format(Identifier(name)) for name in columns
    )
    encoded = SQL("OR body::text LIKE '%%base64%%'") if "body" in columns else SQL("")
    of_batch = SQL("OR batch_id = ANY(%(batches)s)") if "batch_id" in columns else SQL("")
    query = SQL(
        "SELECT ctid::text AS at FROM {table} WHERE EXISTS (SELECT FROM unnest(%(forms)s::text[])"
        ' AS form WHERE strpos(lower(({texts}) COLLATE "C"), form) > 0) {encoded} {of_batch}'
    ).format(table=Identifier(table), texts=texts, encoded=encoded, of_batch=of_batch)
    parameters = {"forms": scrub.person.forms, "batches": list(scrub.contents)}
    places = [row["at"] for row in conn.execute(query, parameters)]
    one = SQL("SELECT ctid::text AS at, {} FROM {} WHERE ctid = ANY(%s::tid[]) FOR UPDATE")
    read = one.format(named, Identifier(table))
    changed = 0
    for start in range(0, len(places), AT_ONCE):
        with conn.transaction(force_rollback=dry_run):
            for row in conn.execute(read, [places[start : start + AT_ONCE]]).fetchall():
                changed += _erase_row(conn, table, columns, row, scrub)
    return changed


def _erase_row(conn: Conn, table: str, columns: Mapping[str, str], row: Row, scrub: Scrub) -> bool:
    before = {name: row[name] for name in columns}
    after = scrub.value(before)
    wrap = {"json": Json, "jsonb": Jsonb}
    new = {
        name: wrap[columns[name]](value) if columns[name] in wrap and value is not None else value
        for name, value in after.items()
        if value != before[name]
    }
    if not new:
        return False
    sets = SQL(", ").join(SQL("{} = {}").format(Identifier(name), SQL("%s")) for name in new)
    statement = SQL("UPDATE {} SET {} WHERE ctid = {}::tid").format(
        Identifier(table), sets, Value(row["at"])
    )
    conn.execute(statement, list(new.values()))
    return True


# --- Redis ---------------------------------------------------------------------------------------


def erase_redis(
    client: redis.Redis, person: Person, queues: Sequence[str], *, dry_run: bool = False
) -> Erasure:
    """Delete results and notes that name the person; count messages that wait and do so.

    A message that waits is not touched: it is its sender's, or its receiver's.
    """
    done = Erasure()
    for pattern in ("els:*", "{els:metrics}*", "celery-task-meta-*", "celery-taskset-meta-*"):
        for key in client.scan_iter(match=pattern, count=1_000):
            done.redis += _erase_key(client, str(key), person, dry_run=dry_run)
    for queue in queues:
        for name in (queue, f"{queue}.malformed"):
            for key in (name, *client.scan_iter(match=f"{name}\x06\x16*")):
                done.waiting[queue] += _naming(client, str(key), person)
    done.waiting["unacked"] += _naming(client, "unacked", person)
    done.waiting = +done.waiting
    return done


def _erase_key(client: redis.Redis, key: str, person: Person, *, dry_run: bool) -> int:
    kind = str(client.type(key))
    if kind == "string":
        found = [key] if person.within(key + str(client.get(key))) else []
        if found and not dry_run:
            client.delete(key)
        return len(found)
    if kind == "hash":
        pairs: Mapping[str, str] = client.hgetall(key)  # type: ignore[assignment] # not awaited
        fields = [name for name, value in pairs.items() if person.within(f"{name} {value}")]
        if fields and not dry_run:
            client.hdel(key, *fields)
        return len(fields)
    return 0


def _naming(client: redis.Redis, key: str, person: Person) -> int:
    """Count the messages of a list or hash that name the person."""
    return sum(any(map(person.within, _texts(each))) for each in _entries(client, key))


def _entries(client: redis.Redis, key: str) -> Iterator[str]:
    match str(client.type(key)):
        case "list":
            for start in range(0, int(client.llen(key)), 500):
                yield from map(str, client.lrange(key, start, start + 499))
        case "hash":
            for _, value in client.hscan_iter(key):
                yield str(value)


def _texts(entry: str) -> Iterator[str]:
    """Give a message and, after it, its decoded body."""
    yield entry
    try:
        message = json.loads(entry)
        body = (message[0] if isinstance(message, list) else message)["body"]
        yield base64.b64decode(body).decode("utf-8", "replace")
    except (ValueError, TypeError, LookupError):
        return
