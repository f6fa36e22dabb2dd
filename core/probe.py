"""The probe: does each server take the writes of this service just now?

It runs the service's own statements on a batch of its own and rolls them back. So what stops the
writes of the service (a read-only server, a full disk, a missing table or right) stops the probe.
"""

from collections.abc import Sized
from secrets import token_hex
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb

from core import db
from core.catalogue import BATCH_CONTENT_PROVISIONING_COMPLETED
from core.db.completion import Announcement
from core.db.connection import Conn, Row
from core.db.dead_letters import DeadLetter
from core.errors import ELSError
from core.events import Outgoing
from core.messages import Idempotency
from core.model import Message, Submission
from core.signs.pauses import Outage
from core.slots import Slots
from core.states import BatchStatus, ExcessReason

TASK = "probe"
LOCK_TIMEOUT_S = 2  # for a lock on a whole table; nobody else locks the rows of the probe


class NoEffect(ELSError):
    """Postgres has taken a write, and nothing was written: a trigger of others drops rows."""


def _insist(rows: Sized, table: str) -> None:
    if not rows:
        raise NoEffect(f"a write to {table} has no effect")


def probe_postgres(
    conn: Conn, *, size: int = 0, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> Outage | None:
    """Write to every table that messages need, and roll back; None: all is well.

    What a commit would check is checked before, as far as Postgres can do that.
    `size` adds random bytes to write: on a full disk, a row still fits into an existing page.
    """
    batch_id = f"probe-{uuid4().hex}"
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(
                "SELECT set_config('lock_timeout', %s, true)", [f"{lock_timeout_s * 1000:.0f}ms"]
            )
            _write_everything(conn, batch_id, size)
            conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
    except psycopg.Error as error:
        return Outage.of("postgres", error)
    except NoEffect as error:
        return Outage("postgres", str(error))
    return None


def probe_redis(slots: Slots) -> Outage | None:
    """Seed a slot, claim it, and drop the keys; None: all is well.

    The script does not delete first: a Redis without memory lets one that has written go on. No
    batch has such an id.
    """
    batch_id = f"els.probe-{uuid4().hex}"
    try:
        slots.seed(batch_id, ["essay"], fresh=False)
        slots.claim({batch_id: ["text"]})
        slots.forget([batch_id])
    except Exception as error:  # noqa: BLE001 - a reply that makes no sense fails anywhere
        return Outage.of("redis", error)
    return None


def _write_everything(conn: Conn, batch_id: str, size: int) -> None:
    """Take a batch from pending contents to its announcement, by the statements of the service."""
    content = Submission("file-1", "probe", text_storage_id="text-1")
    rejected = Submission("file-2", "probe", validation_error_code="EMPTY_CONTENT")
    late = Submission("file-3", "probe", text_storage_id="text-3")
    more = Submission("file-4", "probe", text_storage_id="text-4")
    message = Message(Idempotency(uuid4(), TASK, b""), batch_id, [late])
    db.batches.hold_registration_lock(conn, batch_id)
    db.slots.park_pending(conn, batch_id, [content, rejected])
    db.batches.register(conn, _batch(batch_id), ["essay-1", "essay-2", "essay-3"])
    slot_of = {late.claimant: "essay-3"}
    placed = db.slots.place(conn, {message: slot_of}, with_keys=True, slot_events=True)
    _insist(placed, "essay_states")
    db.slots.record_excess(conn, batch_id, [more], ExcessReason.NO_AVAILABLE_SLOT)
    completed = Outgoing(BATCH_CONTENT_PROVISIONING_COMPLETED.name, {})
    announcement = Announcement(BatchStatus.READY_FOR_PIPELINE_EXECUTION, 2, "", 0, [completed])
    _insist(db.completion.announce(conn, {batch_id: announcement}), "batch_essay_trackers")
    _insist(db.outbox.take_unpublished(conn, [batch_id], 10), "event_outbox")
    db.dead_letters.add(
        conn, DeadLetter(TASK, batch_id, batch_id, f'"{token_hex(size)}"', "PROBE", "")
    )
    db.sweep.note_repair(conn, batch_id, TASK)
    db.sweep.note_failure(conn, batch_id, TASK, "")


def _batch(batch_id: str) -> Row:
    return {
        "batch_id": batch_id,
        "class_id": None,
        "org_id": None,
        "user_id": TASK,
        "course_code": TASK,
        "course_language": None,
        "correlation_id": uuid4(),
        "on_deadline": "fail",
        "deadline_s": 3600,
        "student_prompt_ref": None,
        "metadata": Jsonb({}),
        "essay_ids_sha256": b"",
    }
