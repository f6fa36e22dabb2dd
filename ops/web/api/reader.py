"""What the read API reads its answers from."""

from collections.abc import Mapping
from typing import Any

from core.db.connection import Conn
from core.explain import explain
from core.rules import Cause
from core.states import ClassType
from ops import pages, queries
from ops.web.api import models
from ops.web.api.cursors import MOMENT, read_cursor, write_cursor
from ops.web.api.parameters import OfBatch, OfBatches, OfBatchEssays
from ops.web.api.problems import PossibleCause, not_found
from ops.web.stream import Stream
from ops.web.summary import StuckBatches

Row = Mapping[str, Any]  # Any: a database row
FIND = "ids are exact: capitals, blanks and similar letters count; `els find ID` looks everywhere"


class Reader:
    """Reads answers; `conn` reads from the replica where there is one."""

    def __init__(self, conn: Conn, stream: Stream) -> None:
        self.conn = conn
        self.stream = stream

    def batches(self, wanted: OfBatches) -> models.Batches:
        stuck = self.stream.find_stuck()
        ids, following = self._page_of(wanted, [*stuck.violations])
        return models.Batches(
            items=[_batch(row, stuck) for row in queries.board(self.conn, ids)],
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
        connections = self.stream.connections
        with self.conn.transaction():
            self.conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            explanation = explain(
                self.conn, connections.slots, wanted.batch_id, connections.heartbeat()
            )
            [row] = queries.board(self.conn, [wanted.batch_id])
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


def _batch(row: Row, stuck: StuckBatches) -> models.Batch:
    return models.Batch(**_batch_fields(row, stuck))


def _batch_fields(row: Row, stuck: StuckBatches) -> Row:
    """Write a row of the board with the rules that its batch breaks."""
    broken = [
        models.Broken(
            code=each.rule.code,
            title=each.rule.fill(batch=row["batch_id"]).title,
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
