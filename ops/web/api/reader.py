"""What the read API reads its answers from."""

from collections.abc import Mapping
from typing import Any

from core.db.connection import Conn
from core.events import cloud_event
from core.states import ClassType
from ops import pages
from ops.explain.asking import with_broker
from ops.explain.causes import Cause
from ops.explain.explanation import explain
from ops.queries.batches import board
from ops.web.api import models
from ops.web.api.cursors import MOMENT, read_cursor, write_cursor
from ops.web.api.parameters import (
    UUID_TEXT,
    OfBatch,
    OfBatches,
    OfBatchEssays,
    OfEssay,
    OfEvents,
    OfMessage,
)
from ops.web.api.problems import PossibleCause, not_found
from ops.web.stream import Stream
from ops.web.summary import StuckBatches

Row = Mapping[str, Any]  # Any: a database row
FIND = "ids are exact: capitals, blanks and similar letters count; `els find ID` looks everywhere"
NO_MESSAGE = (
    "no message with this event_id was executed or refused: it may wait in the queue or be in work"
    " (`els status` counts both), have another event_id, have been sent to another queue, or be"
    " purged with its batch; sent again with the same event_id, it takes effect once"
)
LETTERS = 100  # dead letters of one message
EVENT_KEY = r"[0-9]{1,18}", MOMENT, r"[0-9]{1,9}", UUID_TEXT


class Reader:
    """Reads answers; `conn` reads from the replica where there is one."""

    def __init__(self, conn: Conn, stream: Stream) -> None:
        self.conn = conn
        self.stream = stream

    def batches(self, wanted: OfBatches) -> models.Batches:
        stuck = self.stream.find_stuck()
        ids, following = self._page_of(wanted, [*stuck.violations])
        return models.Batches(
            items=[_batch(row, stuck) for row in board(self.conn, ids)],
            next=write_cursor(*following) if following else None,
            rules_checked_at=stuck.at,
            more_stuck=stuck.more,
        )

    def _page_of(self, wanted: OfBatches, stuck: list[str]) -> tuple[list[str], pages.Key | None]:
        after = None
        if wanted.after:
            since, batch_id = read_cursor(wanted.after, MOMENT, "[^\0\ud800-\udfff]{1,255}")
            after = since, batch_id
        filters = pages.Wanted(
            state=wanted.state,
            user_id=wanted.user_id,
            org_id=wanted.org_id,
            regular=None if wanted.class_type is None else wanted.class_type is ClassType.REGULAR,
            but=stuck if wanted.stuck is False else (),
        )
        if wanted.stuck:
            return pages.batches_among(self.conn, stuck, filters, after, wanted.limit)
        return pages.batches(self.conn, filters, after, wanted.limit)

    def batch(self, wanted: OfBatch) -> models.BatchExplained:
        connections, batch_id = self.stream.connections, wanted.batch_id
        heartbeat, receivers = connections.heartbeat(), connections.event_queues.receivers()
        with self.conn.transaction():
            self.conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            explanation = explain(self.conn, connections.slots, batch_id, heartbeat, receivers)
            [row] = board(self.conn, [batch_id])
        explanation = with_broker(explanation, connections.settings)
        if explanation.state == "unknown":
            raise not_found("batch", FIND, [_possible(each) for each in explanation.causes])
        return models.BatchExplained(
            **_batch_fields(row, self.stream.find_stuck()),
            **{name: row[name] for name in ("correlation_id", "on_deadline", "closed_reason")},
            manifest_sha256=row["manifest_sha256"],
            causes=[models.Cause(**_cause(each)) for each in explanation.causes],
            timeline=[models.Moment(at=at, what=what) for at, what in explanation.timeline],
            disagreements=explanation.disagreements,
        )

    def batch_essays(self, wanted: OfBatchEssays) -> models.BatchEssays:
        rows = pages.batch_essays(
            self.conn, wanted.batch_id, wanted.state, wanted.after, wanted.limit + 1
        )
        if not rows and not pages.is_registered(self.conn, wanted.batch_id):
            raise not_found("batch", f"nobody has registered it; {FIND}")
        items = [models.Essay(**row) for row in rows[: wanted.limit]]
        more = len(rows) > wanted.limit
        return models.BatchEssays(items=items, next=items[-1].essay_id if more else None)

    def essay(self, wanted: OfEssay) -> models.EssayInBatches:
        rows = pages.essays(self.conn, wanted.essay_id, wanted.after, wanted.limit + 1)
        if not rows and wanted.after is None:
            raise not_found("essay", f"no registered batch has it; {FIND}")
        items = [models.Essay(**row) for row in rows[: wanted.limit]]
        more = len(rows) > wanted.limit
        return models.EssayInBatches(items=items, next=items[-1].batch_id if more else None)

    def events(self, wanted: OfEvents) -> models.Events:
        after = None
        if wanted.after:
            xact_id, since, sequence, event_id = read_cursor(wanted.after, *EVENT_KEY)
            after = int(xact_id), since, int(sequence), event_id
        rows, key, more = pages.events(self.conn, after, wanted.limit)
        return models.Events(
            items=[models.Event(**cloud_event(row)) for row in rows],
            next=write_cursor(*map(str, key)) if key else None,
            more=more,
        )

    def message(self, wanted: OfMessage) -> models.MessageOutcome:
        done = pages.outcome(self.conn, wanted.event_id)
        letters = pages.letters_of(self.conn, wanted.event_id, LETTERS)
        if not done and not letters:
            raise not_found("message", NO_MESSAGE)
        return models.MessageOutcome(
            event_id=wanted.event_id,
            state="executed" if done else "dead_letter",
            **{name: (done or letters[0])[name] for name in ("task", "batch_id")},
            outcome=done["outcome"] if done else None,
            executed_at=done["created_at"] if done else None,
            dead_letters=[models.DeadLetter(**each) for each in letters],
        )


def _batch(row: Row, stuck: StuckBatches) -> models.Batch:
    return models.Batch(**_batch_fields(row, stuck))


def _batch_fields(row: Row, stuck: StuckBatches) -> Row:
    """Write a row of the board with the rules that its batch breaks."""
    broken = [
        models.Broken(
            code=each.rule.code,
            title=each.cause.fill(batch=row["batch_id"]).title,
            since=each.finding.since,
        )
        for each in stuck.violations.get(row["batch_id"], [])
    ]
    counts = {name: row[name] for name in models.Counts.model_fields if name in row}
    fields = {name: row[name] for name in models.Batch.model_fields if name in row}
    return {
        **fields,
        "state": row["status"],
        "counts": models.Counts(expected_count=row["slots"], **counts),
        "stuck": broken,
    }


def _cause(found: Cause) -> Row:
    return {name: getattr(found, name) for name in models.Cause.model_fields}


def _possible(found: Cause) -> PossibleCause:
    return PossibleCause(code=found.code, title=found.title, command=found.command)
