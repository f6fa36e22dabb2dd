"""A person in the tables: found, erased, and forgotten by Postgres."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import psycopg
from psycopg.sql import SQL, Identifier
from psycopg.sql import Literal as Value
from psycopg.types.json import Json, Jsonb

from core.db.connection import Conn, Row
from core.servers.rights import RIGHTS
from ops.erasure.scrub import Person, Scrub
from ops.queries.actions import By

AT_ONCE = 100  # rows of one transaction
PASSES = 5  # over a table: a row that others change meanwhile is found by the next one


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
