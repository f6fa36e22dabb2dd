"""What is known of an id that is nearly the id of a batch, or of something else.

For people who ask about one id. Each statement reads by an index, or at most so many rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from psycopg.errors import QueryCanceled
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow

from core.catalogue import ASSIGN_CONTENT
from core.db.connection import Conn
from ops.explain.lookalikes import LEAST_PART, LONG, bare, fold
from ops.queries.statements import sql

NEWEST = 50_000  # batches whose ids are compared one by one
LETTERS = 2_000  # newest dead letters that wait
BODIES = 200  # of these, bodies that are read, because the letter names no batch
LARGEST_BODY = 256 * 1024  # bytes, as Postgres keeps it
PENDING = 10_000  # newest contents that wait for a registration
FEW = 20  # ids of each kind
SHARED = 3  # batches; an essay id that more have tells nothing
SCAN_S = 1.0  # for whole tables
SIMILAR_IDS = sql("similar_ids")
NAMED_ELSEWHERE = sql("named_elsewhere")
OTHER_KINDS = sql("other_kinds")
OTHER_KINDS_IN_ESSAYS = sql("other_kinds_in_essays")


@dataclass(frozen=True)
class Tombstone:
    """What is left of a purged batch."""

    status: str
    registered_at: datetime
    ended_at: datetime
    purged_at: datetime
    purged_by: str


@dataclass(frozen=True)
class OtherKind:
    """What an id is instead of a batch's, and the batch that it belongs to, if there is one."""

    kind: str
    batch_id: str | None


def tombstone(conn: Conn, batch_id: str) -> Tombstone | None:
    """Find what is left of a purged batch. Raises UndefinedTable on an older schema."""
    row = conn.execute(
        "SELECT status, registered_at, ended_at, purged_at, purged_by FROM purged_batches"
        " WHERE batch_id = %s",
        [batch_id],
    ).fetchone()
    return Tombstone(**row) if row else None


def purged_like(conn: Conn, given: str, ids: Sequence[str]) -> list[str]:
    """Find purged batches: those among these ids, and those whose id may be like this one."""
    rows = conn.execute(
        "(SELECT batch_id FROM purged_batches WHERE batch_id = ANY(%(ids)s) LIMIT %(few)s) UNION"
        " (SELECT batch_id FROM (SELECT batch_id FROM purged_batches LIMIT %(newest)s) purged"
        "  WHERE translate(lower(batch_id), 'oil-_', '011') = %(folded)s LIMIT %(few)s)",
        {"ids": list(ids), "folded": fold(given), "newest": NEWEST, "few": FEW},
    )
    return [row["batch_id"] for row in rows]


def registered_like(conn: Conn, given: str, ids: Sequence[str]) -> list[str]:
    """Find registered batches: those among these ids, and those whose id may be like this one.

    Of the newest ones also those that differ in more than one character in which people mix up
    ids, or that this is the end of.
    """
    meant = bare(given)
    is_part = len(meant) >= LEAST_PART
    rows = conn.execute(
        SIMILAR_IDS,
        {
            "ids": list(ids),
            "is_part": is_part,
            "bare": meant,
            "beyond": meant + "\U0010ffff",
            "length": len(meant),
            "folded": fold(given),
            "is_long": len(fold(given)) >= LONG,
            "newest": NEWEST,
            "few": FEW,
        },
    )
    return [row["batch_id"] for row in rows if row["batch_id"] != given]


def pending_batches(conn: Conn) -> list[DictRow]:
    """List the batches that contents wait for and nobody has registered: id, number, since."""
    return conn.execute(
        """
        SELECT batch_id, count(*) AS contents, min(received_at) AS since FROM (
            SELECT batch_id, received_at FROM batch_pending_content
            ORDER BY received_at DESC LIMIT %s
        ) newest
        WHERE (SELECT true FROM batch_essay_trackers t WHERE t.batch_id = newest.batch_id) IS NULL
        GROUP BY batch_id
        """,
        [PENDING],
    ).fetchall()


def pending_for_its_essays(conn: Conn, batch_id: str) -> list[DictRow]:
    """Count the contents that wait for a batch with the id of an essay of this one: id, number."""
    return conn.execute(
        "SELECT p.batch_id, count(*) AS contents FROM essay_states e"
        " JOIN batch_pending_content p ON p.batch_id = e.essay_id"
        " WHERE e.batch_id = %s GROUP BY 1 ORDER BY 1 LIMIT %s",
        [batch_id, FEW],
    ).fetchall()


def pending_for_its_other_ids(conn: Conn, batch_id: str) -> list[DictRow]:
    """Count the contents that wait for a batch with another id of this one: id, field, number."""
    return conn.execute(
        """
        SELECT p.batch_id, ids.field, count(*) AS contents FROM batch_essay_trackers t
        CROSS JOIN LATERAL (VALUES
            ('org_id', org_id), ('user_id', user_id), ('class_id', class_id),
            ('course_code', course_code), ('correlation_id', correlation_id::text)
        ) AS ids (field, id)
        JOIN batch_pending_content p ON p.batch_id = ids.id
        WHERE t.batch_id = %s GROUP BY 1, 2 ORDER BY 1, 2 LIMIT %s
        """,
        [batch_id, FEW],
    ).fetchall()


def excess_since(conn: Conn, batch_id: str, since: datetime) -> list[DictRow]:
    """Count the contents that found no slot in other batches since a moment: id, number.

    Among the newest ones that found none.
    """
    return conn.execute(
        """
        SELECT batch_id, count(*) AS contents FROM (
            SELECT batch_id, received_at, reason FROM excess_content ORDER BY id DESC LIMIT %s
        ) newest
        WHERE batch_id <> %s AND received_at > %s AND reason = 'NO_AVAILABLE_SLOT'
        GROUP BY 1 ORDER BY 1 LIMIT %s
        """,
        [PENDING, batch_id, since, FEW],
    ).fetchall()


def with_excess(conn: Conn, batches: Sequence[str]) -> list[DictRow]:
    """Count what found no slot in these batches: id, number, the newest's moment."""
    return conn.execute(
        "SELECT batch_id, count(*) AS contents, max(received_at) AS since FROM excess_content"
        " WHERE batch_id = ANY(%s) GROUP BY batch_id",
        [list(batches)],
    ).fetchall()


def waiting_letters(conn: Conn) -> list[DictRow]:
    """List the newest dead letters that wait; with the body of those that name no batch.

    `body` None: the letter has a batch, its body is large, or there are too many before it.
    """
    return conn.execute(
        """
        SELECT id, task, code, batch_id, parked_at,
               CASE WHEN batch_id IS NULL AND nth <= %(bodies)s
                    AND pg_column_size(body) <= %(largest)s THEN body::text END AS body
        FROM (
            SELECT *, count(*) FILTER (WHERE batch_id IS NULL) OVER (ORDER BY parked_at DESC, id)
                AS nth
            FROM (
                SELECT * FROM dead_letters WHERE replayed_at IS NULL AND discarded_at IS NULL
                ORDER BY parked_at DESC LIMIT %(letters)s
            ) newest
        ) numbered
        ORDER BY id
        """,
        {"bodies": BODIES, "largest": LARGEST_BODY, "letters": LETTERS},
    ).fetchall()


def discarded_letters(conn: Conn, batch_id: str, tasks: Iterable[str]) -> list[DictRow]:
    """List the newest dead letters of a batch that somebody has discarded, of these tasks."""
    return conn.execute(
        "SELECT id, task, code, discarded_at FROM dead_letters WHERE batch_id = %s"
        " AND discarded_at IS NOT NULL AND task = ANY(%s) ORDER BY discarded_at DESC LIMIT %s",
        [batch_id, list(tasks), FEW],
    ).fetchall()


def executed(conn: Conn, batch_id: str) -> list[DictRow]:
    """Count the messages of a batch that were executed: task, outcome, number, first moment."""
    return conn.execute(
        "SELECT task, outcome ->> 'outcome' AS outcome, count(*) AS messages,"
        " min(created_at) AS since FROM idempotency_keys WHERE batch_id = %s"
        " GROUP BY 1, 2 ORDER BY since",
        [batch_id],
    ).fetchall()


def answered_twice(conn: Conn, batch_id: str) -> list[DictRow]:
    """List the slots that several contents were answered with, or that are open again."""
    return conn.execute(
        """
        SELECT essay_id, k.messages, k.since, e.text_storage_id, e.original_file_name,
               CASE WHEN validation_error_code IS NOT NULL THEN file_upload_id END AS rejected
        FROM (
            SELECT outcome ->> 'essay_id' AS essay_id, count(*) AS messages,
                   max(created_at) AS since
            FROM idempotency_keys
            WHERE batch_id = %(batch)s AND outcome ->> 'outcome' IN ('assigned', 'failed_slot')
            GROUP BY 1
        ) k
        JOIN essay_states e USING (essay_id)
        WHERE e.batch_id = %(batch)s
          AND (k.messages > 1 OR e.text_storage_id IS NULL AND e.validation_error_code IS NULL)
        ORDER BY e.text_storage_id IS NOT NULL, k.since DESC LIMIT %(few)s
        """,
        {"batch": batch_id, "few": FEW},
    ).fetchall()


def answered_pending(conn: Conn, batch_id: str) -> int:
    """Count the contents answered with `pending` for which a registered batch has nothing now."""
    row = conn.execute(
        """
        SELECT count(*) FILTER (WHERE outcome ->> 'outcome' = 'pending')
             - (SELECT count(*) FROM essay_states e WHERE batch_id = %(batch)s
                AND text_storage_id IS NOT NULL AND NOT EXISTS (
                    SELECT FROM idempotency_keys k WHERE k.batch_id = %(batch)s
                    AND k.outcome ->> 'essay_id' = e.essay_id))
             - (SELECT count(*) FROM batch_pending_content WHERE batch_id = %(batch)s)
             - (SELECT count(*) FROM excess_content WHERE batch_id = %(batch)s) AS lost
        FROM idempotency_keys WHERE batch_id = %(batch)s AND task = %(task)s
        """,
        {"batch": batch_id, "task": ASSIGN_CONTENT.name},
    ).fetchone()
    return max(0, int((row or {"lost": 0})["lost"]))


def named_elsewhere(conn: Conn, batch_id: str) -> list[DictRow]:
    """Count the contents of other batches whose file or storage ids name this one: where, number.

    Of pending and excess contents it looks at the newest, of slots at those of the 200 batches that
    were registered next to this one.
    """
    return conn.execute(
        NAMED_ELSEWHERE, {"batch": batch_id, "newest": PENDING, "few": FEW}
    ).fetchall()


def with_the_same_essays(conn: Conn, batch_id: str) -> list[DictRow]:
    """List the few other batches that were registered with the same essays as this one."""
    rows = conn.execute(
        """
        SELECT t.batch_id, t.status, t.essay_ids_sha256 = mine.essay_ids_sha256 AS same FROM (
            SELECT essay_id, essay_ids_sha256 FROM essay_states JOIN batch_essay_trackers
            USING (batch_id)
            WHERE batch_id = %(batch)s AND text_storage_id IS NULL
              AND validation_error_code IS NULL LIMIT 1
        ) mine
        JOIN essay_states other ON other.essay_id = mine.essay_id AND other.batch_id <> %(batch)s
        JOIN batch_essay_trackers t ON t.batch_id = other.batch_id LIMIT %(many)s
        """,
        {"batch": batch_id, "many": SHARED + 1},
    ).fetchall()
    return [row for row in rows if row["same"]] if len(rows) <= SHARED else []


def confirmed_of_class(conn: Conn, batch_id: str) -> list[DictRow]:
    """List the newest other batches of its class that became ready since its registration."""
    return conn.execute(
        """
        SELECT other.batch_id, other.ready_at FROM batch_essay_trackers mine
        CROSS JOIN LATERAL (
            SELECT batch_id, class_id, ready_at FROM batch_essay_trackers
            WHERE ready_at > mine.registered_at ORDER BY ready_at LIMIT %(newest)s
        ) other
        WHERE mine.batch_id = %(batch)s AND other.class_id = mine.class_id
        ORDER BY other.ready_at DESC LIMIT %(few)s
        """,
        {"batch": batch_id, "newest": NEWEST, "few": SHARED},
    ).fetchall()


def other_kinds(conn: Conn, given: str) -> list[OtherKind]:
    """Find what else has this id. Reads whole tables for at most `SCAN_S`, then gives up.

    Inside a transaction of the caller, the limit is that of its connection.
    """
    meant = given.strip()
    parameters = {"id": meant, "uuid": _uuid(meant), "number": _number(meant), "few": FEW}
    found = [OtherKind(**row) for row in conn.execute(OTHER_KINDS, parameters)]
    if found:
        return found
    if in_transaction(conn):
        return [OtherKind(**row) for row in conn.execute(OTHER_KINDS_IN_ESSAYS, parameters)]
    try:
        with conn.transaction():
            limit = f"{int(SCAN_S * 1000)}ms"
            conn.execute("SELECT set_config('statement_timeout', %s, true)", [limit])
            rows = conn.execute(OTHER_KINDS_IN_ESSAYS, parameters).fetchall()
    except QueryCanceled:
        return []
    return [OtherKind(**row) for row in rows]


def in_transaction(conn: Conn) -> bool:
    """Tell whether a statement that fails would end what the caller has begun."""
    return conn.info.transaction_status is not TransactionStatus.IDLE


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _number(text: str) -> int | None:
    digits = text.removeprefix("#")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None
