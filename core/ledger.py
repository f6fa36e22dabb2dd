"""Postgres: every statement, one small function each. The long ones stand in `core/sql/`.

Each takes a connection first: an autocommitting one makes the statement a transaction of its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any, LiteralString, cast
from uuid import UUID

from psycopg import Rollback
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from core import connection
from core.crash import crashpoint
from core.events import Outgoing, outgoing_id, slot_assigned
from core.messages import Idempotency
from core.model import Location, Message, Submission
from core.states import BatchStatus, EssayStatus, ExcessReason, OnDeadline
from core.tracing import traceparent
from core.tracker import Tracker

Conn = connection.Conn  # opened by `connect` and `connect_once`, which callers find here
connect, connect_once = connection.connect, connection.connect_once
Row = Mapping[str, Any]  # Any: a value as Postgres has it
Bounds = tuple[str, str | None]  # of slots: from this essay id up to, not including, that one

HOPELESS = 2  # repairs in a row that did not help
RETRY_AFTER = timedelta(seconds=5)  # doubled with each failure from the second on
RETRY_AT_LATEST = timedelta(minutes=5)
FURTHEST_DEADLINE = timedelta(days=10 * 366 + 1)  # `deadline_s` is ten years at most


def sql(name: str) -> LiteralString:
    """Read a statement of `core/sql/`; these files are part of the program, so literals."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text()


PLACE = sql("place")
RECORD_EXCESS = sql("record_excess")
REGISTER = sql("register")
PARK_PENDING = sql("park_pending")
LOCATIONS = sql("locations")
ANNOUNCE = f"{sql('announce')} {sql('post')}"
POST = f"WITH told AS ({sql('number_events')}) {sql('post')}"
TAKE_UNPUBLISHED = sql("take_unpublished")
TRUE_STATUS = sql("true_status")
RESTORE_STATUS = f"{TRUE_STATUS} {sql('restore_status')}"
RECOUNT = sql("recount")
POST_AGAIN = sql("post_again")
OVERDUE = sql("overdue")


@dataclass(frozen=True)
class Overdue:
    """A batch whose deadline has passed, what it wants then, and how long it has waited."""

    tracker: Tracker
    on_deadline: OnDeadline
    waited_s: float


@dataclass(frozen=True)
class Unmended:
    """What the sweep could not mend: how often it tried, with which error, since when.

    `waits`: it is not tried again just now.
    """

    failures: int
    last_error: str | None
    since: datetime
    tried_at: datetime | None
    retry_at: datetime | None
    waits: bool

    @property
    def hopeless(self) -> bool:
        """The repair did not help twice in a row."""
        return self.failures >= HOPELESS


@dataclass(frozen=True)
class Holder:
    """The session that holds the lock of the sweep; what this role may not see is None."""

    pid: int
    application_name: str | None
    state: str | None
    since: datetime | None
    sweeping: bool

    def __str__(self) -> str:
        """Describe it for a person."""
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        name = self.application_name or "without a name"
        return f"pid {self.pid}, {name}, {self.state or 'state unknown'}{since}"


@dataclass(frozen=True)
class Stored:
    """What an idempotency key guards, and whether its batch still waits to be announced."""

    task: str
    fingerprint: bytes
    outcome: dict[str, Any]  # Any: JSON
    full: bool


@dataclass(frozen=True)
class Announcement:
    """What becomes of a batch that is complete, and what to tell of it."""

    status: BatchStatus
    provisioned_count: int
    manifest_sha256: str
    events: list[Outgoing]


@contextmanager
def transaction(pool: "ConnectionPool[Conn]") -> Iterator[Conn]:
    """Lend a connection inside one transaction."""
    with pool.connection() as conn, conn.transaction():
        yield conn
        crashpoint("before_commit")


# --- idempotency keys --------------------------------------------------------------------------


def stored_outcome(conn: Conn, key: UUID) -> Stored | None:
    """Look up what this event led to when it was seen first."""
    row = conn.execute(
        """
        SELECT k.task, k.fingerprint, k.outcome,
               coalesce(t.available_slots = 0 AND t.completed_at IS NULL
                        AND t.closed_at IS NULL, false) AS full
        FROM idempotency_keys k LEFT JOIN batch_essay_trackers t USING (batch_id)
        WHERE k.key = %s
        """,
        [key],
    ).fetchone()
    return Stored(**row) if row else None


def write_key(conn: Conn, idem: Idempotency, batch_id: str, outcome: Row) -> None:
    """Write the key with its outcome; raises UniqueViolation when another delivery was faster."""
    conn.execute(
        "INSERT INTO idempotency_keys (key, task, fingerprint, outcome, batch_id)"
        " VALUES (%s, %s, %s, %s, %s)",
        [idem.key, idem.task, idem.fingerprint, Jsonb(outcome), batch_id],
    )


# --- registration ------------------------------------------------------------------------------


def hold_registration_lock(conn: Conn, batch_id: str) -> None:
    """Keep others from registering this batch, or parking for it, until the transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('register/' || %s, 0))", [batch_id])


def share_registration_lock(conn: Conn, batch_id: str) -> None:
    """Keep this batch from being registered until the transaction ends."""
    conn.execute(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('register/' || %s, 0))", [batch_id]
    )


def tracker(conn: Conn, batch_id: str, *, lock: bool = False) -> Tracker | None:
    """Read a batch; None when it is not registered. `lock` keeps its row until the end."""
    return trackers(conn, [batch_id], lock=lock).get(batch_id)


def trackers(conn: Conn, batches: Sequence[str], *, lock: bool = False) -> dict[str, Tracker]:
    """Read some batches; those that are not registered are left out."""
    query: LiteralString = (
        "SELECT batch_id, status, class_id, org_id, user_id, course_code, correlation_id,"
        " expected_count, available_slots, essay_ids_sha256, completed_at, manifest_sha256,"
        " student_prompt_ref, metadata"
        " FROM batch_essay_trackers WHERE batch_id = ANY(%s) ORDER BY batch_id"
    )
    rows = conn.execute(query + " FOR UPDATE" if lock else query, [list(batches)])
    return {
        row["batch_id"]: Tracker(**{**row, "status": BatchStatus(row["status"])}) for row in rows
    }


def register(conn: Conn, batch: Row, essay_ids: Sequence[str]) -> tuple[int, int, list[Submission]]:
    """Write tracker and slots, and give the first slots to what waited.

    Returns the open slots left, the contents that were assigned, and what is over.
    """
    slots = {"essay_ids": "\n".join(essay_ids), "expected_count": len(essay_ids)}
    row = conn.execute(REGISTER, {**batch, **slots}).fetchone()
    assert row is not None
    over = [Submission(**submission) for submission in row["over"]]
    return row["available_slots"], row["pending_assigned"], over


def park_pending(conn: Conn, batch_id: str, submissions: Sequence[Submission]) -> None:
    """Keep submissions until their batch is registered; one that waits already stays as it is."""
    conn.execute(PARK_PENDING, {"batch_id": batch_id, "submissions": _recordset(submissions)})


# --- slots -------------------------------------------------------------------------------------


def place(
    conn: Conn,
    slots: Mapping[Message, Mapping[str, str]],
    *,
    with_keys: bool,
    slot_events: bool,
) -> dict[str, DictRow]:
    """Put submissions of some messages into slots, by claimant; write the messages' keys.

    Returns for each batch the `slots` taken, the `available_slots` left and the `expected_count`;
    a batch none of whose slots was open is left out. With keys it is all or nothing: fewer open
    slots than submissions raise NotNullViolation. Raises UniqueViolation when a key, or a slot of
    one of these contents, is there already. `slot_events` posts an `EssaySlotAssigned` for each.
    """
    batches: dict[str, list[Row]] = {}
    for message, slot_of in slots.items():
        slot_rows = _slot_rows(message, slot_of, slot_events)
        if with_keys:
            first = Location(slot_rows[0]["essay_id"])
            slot_rows[0] |= _key_row(message.idem, message.value(first))
        batches.setdefault(message.batch_id, []).extend(slot_rows)
    recordset = [{"batch_id": batch_id, "submissions": rows} for batch_id, rows in batches.items()]
    rows = conn.execute(PLACE, {"batches": Jsonb(recordset), "traceparent": traceparent.get()})
    return {row["batch_id"]: row for row in rows}


def _slot_rows(
    message: Message, slot_of: Mapping[str, str], slot_events: bool
) -> list[dict[str, Any]]:
    event = "EssaySlotAssigned" if slot_events else None
    return [
        {
            **vars(submission),
            "essay_id": slot_of[submission.claimant],
            "event_id": _content_event_id(message.batch_id, event, submission),
        }
        for submission in message.submissions
        if submission.claimant in slot_of
    ]


def _key_row(idem: Idempotency, outcome: Row) -> Row:
    return {
        "key": str(idem.key),
        "task": idem.task,
        "fingerprint": f"\\x{idem.fingerprint.hex()}",
        "outcome": outcome,
    }


def record_excess(
    conn: Conn, batch_id: str, submissions: Sequence[Submission], reason: ExcessReason
) -> bool:
    """Write submissions down as excess, with their events; False when a slot is open after all."""
    event = "ExcessContentProvisioned" if reason is ExcessReason.NO_AVAILABLE_SLOT else None
    rows = [
        {**vars(each), "event_id": _content_event_id(batch_id, event, each)} for each in submissions
    ]
    values = {
        "batch_id": batch_id,
        "submissions": Jsonb(rows),
        "reason": reason.value,
        "traceparent": traceparent.get(),
    }
    return conn.execute(RECORD_EXCESS, values).fetchone() is not None


def locations(conn: Conn, batch_id: str, submissions: Sequence[Submission]) -> dict[str, Location]:
    """Find which of these claimants have a place in a registered batch already."""
    rows = conn.execute(LOCATIONS, {"batch_id": batch_id, "submissions": _recordset(submissions)})
    return {
        row["claimant"]: Location(
            row["essay_id"], row["excess_reason"] and ExcessReason(row["excess_reason"])
        )
        for row in rows
    }


def open_slots(conn: Conn, batch_id: str) -> list[str]:
    """List the essay ids that await content, in their order; none of a batch that takes none."""
    rows = conn.execute(
        "SELECT essay_id FROM essay_states"
        " WHERE batch_id = %(batch_id)s AND current_status = 'awaiting_content'"
        " AND (SELECT status FROM batch_essay_trackers WHERE batch_id = %(batch_id)s)"
        " = 'awaiting_content_validation' ORDER BY essay_id",
        {"batch_id": batch_id},
    )
    return [row["essay_id"] for row in rows]


def close_open_slots(conn: Conn, batch_id: str) -> None:
    """Mark every essay of a cancelled batch. Before the tracker, in the order of the hot path."""
    conn.execute(
        "UPDATE essay_states SET current_status = 'cancelled' WHERE batch_id = %s", [batch_id]
    )


def cancel(conn: Conn, batch_id: str, reason: str, sources: Sequence[BatchStatus]) -> bool:
    """Mark the tracker as cancelled; False when its state does not allow it."""
    row = conn.execute(
        "UPDATE batch_essay_trackers SET status = 'cancelled', available_slots = 0,"
        " closed_at = now(), closed_reason = %s WHERE batch_id = %s AND status = ANY(%s)"
        " RETURNING batch_id",
        [reason, batch_id, list(sources)],
    ).fetchone()
    return row is not None


# --- sealing and announcing --------------------------------------------------------------------


def range_starts(conn: Conn, batch_id: str, size: int) -> list[str]:
    """List the essay id at which each range of `size` slots starts."""
    rows = conn.execute(
        "SELECT essay_id FROM (SELECT essay_id, row_number() OVER (ORDER BY essay_id) - 1 AS n"
        " FROM essay_states WHERE batch_id = %s) numbered WHERE n %% %s = 0 ORDER BY essay_id",
        [batch_id, size],
    )
    return [row["essay_id"] for row in rows]


def slot_ranges(conn: Conn, ranges: Mapping[str, Bounds]) -> dict[str, list[DictRow]]:
    """Read a range of the slots of some batches, each in order."""
    rows = conn.execute(
        """
        SELECT e.* FROM unnest(%s::text[], %s::text[], %s::text[]) AS r (batch_id, low, high),
        LATERAL (
            SELECT batch_id, essay_id, text_storage_id, current_status FROM essay_states
            WHERE batch_id = r.batch_id AND essay_id >= r.low
              AND (r.high IS NULL OR essay_id < r.high)
            ORDER BY essay_id OFFSET 0 -- kept apart, so a batch at a time is read by its key
        ) e
        """,
        [[*ranges], *map(list, zip(*ranges.values(), strict=True))],
    )
    return _by_batch(ranges, rows)


def books(conn: Conn, batches: Sequence[str]) -> dict[str, DictRow]:
    """Read the accounts of some batches: the counter, the slots by state, what waits."""
    rows = conn.execute(
        """
        SELECT t.batch_id, t.status, t.available_slots, t.expected_count, e.*,
               (SELECT count(*) FROM batch_pending_content p WHERE p.batch_id = t.batch_id)
                   AS pending
        FROM batch_essay_trackers t, LATERAL (
            SELECT count(*) AS slots,
                   count(*) FILTER (WHERE current_status = 'awaiting_content') AS open,
                   count(*) FILTER (WHERE current_status = 'ready_for_processing') AS assigned,
                   count(*) FILTER (WHERE current_status = 'content_ingestion_failed') AS failed,
                   count(*) FILTER (WHERE current_status = 'cancelled') AS cancelled
            FROM essay_states WHERE batch_id = t.batch_id
        ) e
        WHERE t.batch_id = ANY(%s)
        """,
        [list(batches)],
    )
    return {row["batch_id"]: row for row in rows}


def essays_in(conn: Conn, batch_id: str, *statuses: EssayStatus) -> list[DictRow]:
    """Read the essays of some states, in order, with what events and seals tell of them."""
    return essays_of(conn, [batch_id], *statuses)[batch_id]


def essays_of(
    conn: Conn, batches: Sequence[str], *statuses: EssayStatus
) -> dict[str, list[DictRow]]:
    """Do as `essays_in` for some batches."""
    rows = conn.execute(
        "SELECT batch_id, essay_id, current_status, text_storage_id, file_upload_id,"
        " original_file_name, student_id, validation_error_code FROM essay_states"
        " WHERE batch_id = ANY(%s) AND current_status = ANY(%s) ORDER BY batch_id, essay_id",
        [list(batches), list(statuses)],
    )
    return _by_batch(batches, rows)


def _by_batch(batches: Iterable[str], rows: Iterable[DictRow]) -> dict[str, list[DictRow]]:
    grouped: dict[str, list[DictRow]] = {batch_id: [] for batch_id in batches}
    for row in rows:
        grouped[row["batch_id"]].append(row)
    return grouped


def announce(conn: Conn, told: Mapping[str, Announcement]) -> dict[str, float | None]:
    """Give full batches their next state and write their events, once, by one statement.

    Returns the seconds to readiness of each (None: not ready). A batch that another call has
    announced, or that is not full, is left out.
    """
    batches = [
        {
            "batch_id": batch_id,
            "status": each.status,
            "provisioned_count": each.provisioned_count,
            "manifest_sha256": each.manifest_sha256,
            "events": _numbered(batch_id, each.events),
        }
        for batch_id, each in told.items()
    ]
    rows = conn.execute(ANNOUNCE, {"batches": Jsonb(batches), "traceparent": traceparent.get()})
    return {row["batch_id"]: row["seconds"] for row in rows}


def set_ready(conn: Conn, batch_id: str) -> float:
    """Make a regular batch ready, its students being known; return the seconds that it took."""
    row = conn.execute(
        "UPDATE batch_essay_trackers SET status = 'ready_for_pipeline_execution', ready_at = now()"
        " WHERE batch_id = %s"
        " RETURNING extract(epoch FROM ready_at"
        " - least(greatest(registered_at, '0001-01-01Z'), ready_at))::float8 AS seconds",
        [batch_id],
    ).fetchone()
    assert row is not None, f"batch {batch_id} was there a moment ago"
    return cast(float, row["seconds"])


def associate(conn: Conn, batch_id: str, associations: Sequence[Row]) -> set[str]:
    """Store on each essay whose it is; return the essay ids that the batch has."""
    rows = conn.execute(
        """
        UPDATE essay_states e
        SET student_id = a.student_id, confidence_score = a.confidence_score,
            validation_method = a.validation_method, validated_by = a.validated_by,
            validated_at = a.validated_at
        FROM jsonb_to_recordset(%s) AS a (
            essay_id text, student_id text, confidence_score double precision,
            validation_method text, validated_by text, validated_at timestamptz
        )
        WHERE e.batch_id = %s AND e.essay_id = a.essay_id
        RETURNING e.essay_id
        """,
        [Jsonb(associations), batch_id],
    )
    return {row["essay_id"] for row in rows}


def students(conn: Conn, batch_id: str) -> dict[str, str | None]:
    """Map every essay of a batch to its student."""
    rows = conn.execute(
        "SELECT essay_id, student_id FROM essay_states WHERE batch_id = %s", [batch_id]
    )
    return {row["essay_id"]: row["student_id"] for row in rows}


# --- what the sweep needs ------------------------------------------------------------------------


def try_sweep_lock(conn: Conn) -> bool:
    """Take the lock of the sweep for this session; False when another one has it.

    The session is renamed meanwhile, so that a sweep at work differs from a lock left behind.
    """
    row = conn.execute("SELECT pg_try_advisory_lock(hashtextextended('sweep', 0)) AS ours")
    ours = bool((row.fetchone() or {})["ours"])
    if ours:
        conn.execute(
            "SELECT set_config('application_name',"
            " left(current_setting('application_name'), 57) || ' sweep', false)"
        )
    return ours


def free_sweep_lock(conn: Conn) -> None:
    """Give the lock of the sweep back."""
    conn.execute("SELECT pg_advisory_unlock(hashtextextended('sweep', 0))")
    conn.execute("RESET application_name")


def sweep_holder(conn: Conn) -> Holder | None:
    """Find the session that holds the lock of the sweep."""
    row = conn.execute(
        """
        SELECT l.pid, a.application_name, a.state, a.state_change AS since,
               coalesce(a.application_name LIKE '%% sweep'
                        AND a.state_change > now() - interval '1 minute', false) AS sweeping
        FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
        WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended('sweep', 0)
        LIMIT 1
        """
    ).fetchone()
    return Holder(**row) if row else None


def open_batches(conn: Conn, after: str, limit: int) -> list[tuple[str, int]]:
    """Page through batches that await contents, by id: each with its count of open slots."""
    rows = conn.execute(
        "SELECT batch_id, available_slots FROM batch_essay_trackers"
        " WHERE status = 'awaiting_content_validation' AND batch_id > %s"
        " ORDER BY batch_id LIMIT %s",
        [after, limit],
    )
    return [(row["batch_id"], row["available_slots"]) for row in rows]


def page_to_count(conn: Conn, after: str, batches: int, slots: int) -> list[str]:
    """Page through batches that await contents, by id, for a look at their slots.

    At most so many, and no more than have so many slots together, but one at least.
    """
    rows = conn.execute(
        """
        WITH page AS (
            SELECT batch_id, expected_count FROM batch_essay_trackers
            WHERE status = 'awaiting_content_validation' AND batch_id > %(after)s
            ORDER BY batch_id LIMIT %(batches)s
        ), chosen AS (
            SELECT batch_id, sum(expected_count) OVER (ORDER BY batch_id) - expected_count AS before
            FROM page
        )
        SELECT batch_id FROM chosen WHERE before <= %(slots)s ORDER BY batch_id
        """,
        {"after": after, "batches": batches, "slots": slots},
    )
    return [row["batch_id"] for row in rows]


def page_of_all(conn: Conn, after: str, limit: int) -> list[str]:
    """Page through all batches, by id."""
    rows = conn.execute(
        "SELECT batch_id FROM batch_essay_trackers WHERE batch_id > %s ORDER BY batch_id LIMIT %s",
        [after, limit],
    )
    return [row["batch_id"] for row in rows]


def contradicted(conn: Conn, limit: int) -> list[str]:
    """List batches whose status contradicts their row, by the index that holds only these."""
    rows = conn.execute(
        """
        SELECT batch_id FROM batch_essay_trackers
        WHERE completed_at IS NOT NULL AND status = 'awaiting_content_validation'
           OR (closed_at IS NOT NULL) <> (status IN ('timed_out', 'cancelled'))
           OR (completed_at IS NULL) <> (manifest_sha256 IS NULL)
           OR status = 'awaiting_student_validation' AND class_id IS NULL
        ORDER BY batch_id LIMIT %s
        """,
        [limit],
    )
    return [row["batch_id"] for row in rows]


def wrong_statuses(conn: Conn, batches: Sequence[str]) -> list[DictRow]:
    """Tell which of these batches have a status that cannot be theirs, and the true one."""
    query: LiteralString = (
        " SELECT batch_id, status, true_status, available_slots FROM wrong ORDER BY batch_id"
    )
    return conn.execute(TRUE_STATUS + query, {"batches": list(batches)}).fetchall()


def restore_status(conn: Conn, batch_id: str) -> BatchStatus | None:
    """Give a batch the status that its events, its seal and its moments say; None: it has it.

    Locked first, and judged in a second statement, which sees what others have just committed.
    """
    conn.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch_id])
    row = conn.execute(RESTORE_STATUS, {"batches": [batch_id]}).fetchone()
    return BatchStatus(row["status"]) if row else None


def missing_events(conn: Conn, batches: Sequence[str]) -> list[DictRow]:
    """Tell which of these batches are sealed, or ready, without the event that says so."""
    return conn.execute(
        """
        SELECT batch_id, coalesce(ready_at, completed_at) AS since, types FROM (
            SELECT t.batch_id, t.completed_at, t.ready_at, array_remove(ARRAY[
                CASE WHEN t.completed_at IS NOT NULL AND NOT EXISTS (
                    SELECT FROM event_outbox o WHERE o.batch_id = t.batch_id
                    AND o.type = 'BatchContentProvisioningCompleted')
                THEN 'BatchContentProvisioningCompleted' END,
                CASE WHEN t.ready_at IS NOT NULL AND NOT EXISTS (
                    SELECT FROM event_outbox o WHERE o.batch_id = t.batch_id
                    AND o.type = 'BatchEssaysReady')
                THEN 'BatchEssaysReady' END], NULL) AS types
            FROM batch_essay_trackers t
            WHERE t.batch_id = ANY(%s) AND t.completed_at IS NOT NULL
        ) told WHERE types <> '{}' ORDER BY batch_id
        """,
        [list(batches)],
    ).fetchall()


def reopen_cancelled_slots(conn: Conn, batch_id: str) -> bool:
    """Undo slots that were cancelled by hand in an open batch; False when there is none.

    Slots before tracker, as always. A cancellation at the same time has both or none of its parts
    committed, so the second look, which sees it, undoes the first statement.
    """
    reopened = conn.execute(
        """
        UPDATE essay_states e
        SET current_status = CASE
            WHEN e.text_storage_id IS NOT NULL THEN 'ready_for_processing'
            WHEN e.validation_error_code IS NOT NULL OR t.completed_at IS NOT NULL
            THEN 'content_ingestion_failed' ELSE 'awaiting_content' END
        FROM batch_essay_trackers t
        WHERE t.batch_id = %s AND e.batch_id = t.batch_id AND e.current_status = 'cancelled'
        """,
        [batch_id],
    ).rowcount
    row = conn.execute(
        "SELECT FROM batch_essay_trackers WHERE batch_id = %s AND closed_at IS NULL"
        " AND status IN ('awaiting_content_validation', 'awaiting_student_validation') FOR UPDATE",
        [batch_id],
    ).fetchone()
    if row is None:
        raise Rollback
    return reopened > 0


def bring_deadline_near(conn: Conn, batch_id: str) -> bool:
    """Give a batch whose deadline never comes the usual one, a day from now."""
    return (
        conn.execute(
            "UPDATE batch_essay_trackers SET deadline_at = now() + interval '1 day'"
            " WHERE batch_id = %s AND deadline_at > now() + %s AND status IN"
            " ('awaiting_content_validation', 'awaiting_student_validation')",
            [batch_id, FURTHEST_DEADLINE],
        ).rowcount
        > 0
    )


def recount(conn: Conn, batch_id: str) -> bool:
    """Set a batch's counter to what is open; False when it was right, or its slots are wrong.

    A count of wrong slots says nothing: the batch would count as full, and could not be sealed.
    The tracker is locked first, and counted in a second statement: a submission that has its slot
    but waits for the tracker still counts as open here, and then counts itself down.
    """
    conn.execute("SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", [batch_id])
    row = conn.execute(RECOUNT, {"batch_id": batch_id}).fetchone()
    return row is not None


def note_repair(conn: Conn, batch_id: str, rule: str) -> None:
    """Write down that the sweep mended something."""
    conn.execute("INSERT INTO repairs (batch_id, rule) VALUES (%s, %s)", [batch_id, rule])


def unmended(conn: Conn, batch_id: str | None, limit: int) -> dict[tuple[str, str], Unmended]:
    """Read what could not be mended, of one batch or of all; the key is batch and rule."""
    rows = conn.execute(
        "SELECT batch_id, rule, failures, last_error, since, tried_at, retry_at,"
        " coalesce(retry_at > now(), false) AS waits FROM unmended"
        " WHERE %(batch_id)s::text IS NULL OR batch_id = %(batch_id)s"
        " ORDER BY since LIMIT %(limit)s",
        {"batch_id": batch_id, "limit": limit},
    )
    return {(row.pop("batch_id"), row.pop("rule")): Unmended(**row) for row in rows}


def unmended_by(conn: Conn, rule: str, limit: int) -> list[str]:
    """List the batches that one rule found and could not mend, the oldest first."""
    rows = conn.execute(
        "SELECT batch_id FROM unmended WHERE rule = %s ORDER BY since LIMIT %s", [rule, limit]
    )
    return [row["batch_id"] for row in rows]


def note_failure(conn: Conn, batch_id: str, rule: str, error: str) -> int:
    """Write down that a repair did not help; return how often by now.

    From the second time on it is tried less and less often, at the latest after `RETRY_AT_LATEST`.
    """
    row = conn.execute(
        """
        INSERT INTO unmended AS u (batch_id, rule, failures, last_error, tried_at)
        VALUES (%(batch_id)s, %(rule)s, 1, %(error)s, now())
        ON CONFLICT (batch_id, rule) DO UPDATE
        SET failures = u.failures + 1, last_error = %(error)s, tried_at = now(),
            retry_at = CASE WHEN u.failures + 1 >= %(hopeless)s
                            THEN now() + least(%(first)s * 2 ^ least(u.failures + 1, 20),
                                               %(latest)s) END
        RETURNING failures
        """,
        {
            "batch_id": batch_id,
            "rule": rule,
            "error": error[:1000],
            "hopeless": HOPELESS,
            "first": RETRY_AFTER,
            "latest": RETRY_AT_LATEST,
        },
    ).fetchone()
    assert row is not None
    return cast(int, row["failures"])


def note_alarm(conn: Conn, batch_id: str, rule: str) -> None:
    """Remember a batch that only a person can mend, so that each look at all batches shows it."""
    conn.execute(
        "INSERT INTO unmended (batch_id, rule) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        [batch_id, rule],
    )


def forget_unmended(conn: Conn, batch_id: str, rule: str) -> None:
    """Forget what no longer breaks this rule."""
    conn.execute("DELETE FROM unmended WHERE batch_id = %s AND rule = %s", [batch_id, rule])


def pending(conn: Conn, batch_id: str) -> list[tuple[int, Submission]]:
    """Read what waits for a batch, in its order: the row's id and the submission."""
    rows = conn.execute(
        "SELECT id, essay_file_id AS file_upload_id, original_file_name, text_storage_id,"
        " raw_file_storage_id, file_size_bytes, content_md5_hash, validation_error_code,"
        " validation_error_detail FROM batch_pending_content WHERE batch_id = %s"
        " ORDER BY received_at, id",
        [batch_id],
    )
    return [(row.pop("id"), Submission(**row)) for row in rows]


def unpark(conn: Conn, row_id: int) -> None:
    """Drop what waited, once it has a place."""
    conn.execute("DELETE FROM batch_pending_content WHERE id = %s", [row_id])


def overdue(conn: Conn, batch_id: str) -> Overdue | None:
    """Lock and read a batch whose deadline has passed, in the database's clock; else None.

    A batch that awaits contents and whose slots are wrong can never be sealed: it fails, full or
    not, whatever it wanted.
    """
    row = conn.execute(OVERDUE, {"batch_id": batch_id}).fetchone()
    found = tracker(conn, batch_id) if row else None
    if row is None or found is None:
        return None
    return Overdue(found, OnDeadline(row["on_deadline"]), row["waited_s"])


def fail_open_slots(conn: Conn, batch_id: str) -> list[str]:
    """Mark the slots that nothing came for as failed; return their essay ids, in order."""
    rows = conn.execute(
        "UPDATE essay_states SET current_status = 'content_ingestion_failed'"
        " WHERE batch_id = %s AND current_status = 'awaiting_content' RETURNING essay_id",
        [batch_id],
    )
    return sorted(row["essay_id"] for row in rows)


def time_out(conn: Conn, batch_id: str) -> None:
    """Close a batch whose deadline has passed."""
    conn.execute(
        "UPDATE batch_essay_trackers SET status = 'timed_out', available_slots = 0,"
        " closed_at = now(), closed_reason = 'deadline' WHERE batch_id = %s",
        [batch_id],
    )


def fill_up(conn: Conn, batch_id: str) -> None:
    """Count the slots that were failed at the deadline as accounted for."""
    conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 0, full_at = now() WHERE batch_id = %s",
        [batch_id],
    )


# --- outbox ------------------------------------------------------------------------------------


def post_slot_events(conn: Conn, batch_id: str) -> None:
    """Post `EssaySlotAssigned` for every content that a batch has already."""
    essays = essays_in(conn, batch_id, EssayStatus.READY_FOR_PROCESSING)
    post(conn, batch_id, [slot_assigned(batch_id, essay) for essay in essays])


def jsonb(value: object) -> Jsonb | None:
    """Wrap a JSON value for a jsonb column; None stays NULL."""
    return None if value is None else Jsonb(value)


def post(conn: Conn, batch_id: str, events: Sequence[Outgoing]) -> None:
    """Write events to the outbox, numbered after the batch's earlier ones."""
    numbered = {"batch_id": batch_id, "events": Jsonb(_numbered(batch_id, events))}
    posted = conn.execute(POST, {**numbered, "traceparent": traceparent.get()})
    assert posted.rowcount, f"batch {batch_id} has an event but is not registered"


def post_again(conn: Conn, batch_id: str, events: Sequence[Outgoing]) -> None:
    """Write events that the outbox lacks, with the ids, and the numbers, that they had."""
    conn.execute(POST_AGAIN, {"batch_id": batch_id, "events": Jsonb(_numbered(batch_id, events))})


def _numbered(batch_id: str, events: Sequence[Outgoing]) -> list[Row]:
    return [
        {
            "n": n,
            "id": str(outgoing_id(batch_id, event.type, event.generation)),
            "type": event.type,
            "generation": event.generation,
            "data": event.data,
        }
        for n, event in enumerate(events, start=1)
    ]


def was_posted(conn: Conn, batch_id: str, event_type: str) -> bool:
    """Tell whether the outbox has an event of this type."""
    row = conn.execute(
        "SELECT FROM event_outbox WHERE batch_id = %s AND type = %s LIMIT 1", [batch_id, event_type]
    ).fetchone()
    return row is not None


def take_unpublished(conn: Conn, batches: Sequence[str], limit: int) -> list[DictRow]:
    """Note the next events of some batches as published; return them, in the order of each.

    They are so by commit. Others who relay one of these batches wait until then, so events leave in
    their order.
    """
    rows = conn.execute(TAKE_UNPUBLISHED, {"batches": list(batches), "limit": limit})
    return sorted(rows, key=itemgetter("sequence"))


def untake(conn: Conn, events: Sequence[Row], error: str) -> None:
    """Note that the first of these events could not be handed to the broker, so none was."""
    ids = [event["id"] for event in events]
    conn.execute(
        "UPDATE event_outbox SET published_at = NULL, attempts = attempts - (id <> %(first)s)::int,"
        " last_error = CASE WHEN id = %(first)s THEN %(error)s END WHERE id = ANY(%(ids)s)",
        {"first": ids[0], "ids": ids, "error": error[:1000]},
    )


def batches_with_unpublished(conn: Conn, limit: int) -> list[str]:
    """List batches that have undelivered events; a batch whose events fail comes last."""
    rows = conn.execute(
        "SELECT batch_id FROM event_outbox WHERE published_at IS NULL"
        " GROUP BY batch_id ORDER BY max(attempts), min(created_at) LIMIT %s",
        [limit],
    )
    return [row["batch_id"] for row in rows]


# --- dead letters ------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be carried out, with everything needed to send it again."""

    task: str
    task_id: str
    batch_id: str | None
    body: str  # JSON text
    code: str
    message: str
    sqlstate: str | None = None
    deliveries: int = 1


def park(conn: Conn, letter: DeadLetter) -> int:
    """Keep a message as a dead letter; return its id. A redelivery counts up the first one."""
    row = conn.execute(
        """
        INSERT INTO dead_letters
            (task, task_id, batch_id, body, code, message, sqlstate, deliveries)
        VALUES (%(task)s, %(task_id)s, %(batch_id)s, %(body)s::json, %(code)s, %(message)s,
                %(sqlstate)s, %(deliveries)s)
        ON CONFLICT (task_id) DO UPDATE SET deliveries = dead_letters.deliveries + 1
        RETURNING id
        """,
        asdict(letter),
    ).fetchone()
    assert row is not None
    return cast(int, row["id"])


def _recordset(submissions: Sequence[Submission]) -> Jsonb:
    return Jsonb(
        [{**vars(submission), "claimant": submission.claimant} for submission in submissions]
    )


def _content_event_id(batch_id: str, event: str | None, submission: Submission) -> str | None:
    """Name the event of a content; None for a rejected file, or where no event is written."""
    if event is None or submission.text_storage_id is None:
        return None
    return str(outgoing_id(batch_id, event, submission.text_storage_id))
