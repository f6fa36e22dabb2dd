"""Why a batch is not ready: its causes, its timeline, Postgres beside Redis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from redis import RedisError

from core import db
from core.checks import CheckContext, Finding
from core.db.connection import Conn
from core.db.sweep import Unmended
from core.rules import Rule
from core.servers.finding import Severity
from core.servers.obstacles import hidden_rows
from core.slots import Slots
from core.states import OPEN
from ops.alarms import all_rules
from ops.by_hand import shadowed
from ops.explain.batch_causes import of_events, plain_causes, unknown, with_evidence
from ops.explain.causes import CAUSES, TITLES, Cause
from ops.explain.locks import locks
from ops.explain.notes import notes
from ops.explain.promises import last_try, promise
from ops.explain.receiver_causes import receiver_causes, taken_note
from ops.explain.service_causes import broker_lacks, service_causes
from ops.heartbeat import Heartbeat
from ops.installation import command
from ops.queries import batches, sweep
from ops.receivers import NO_RECEIVERS, Receivers
from ops.wording import number

LONG_S = 10.0  # for a claim: its commit takes milliseconds
Row = Mapping[str, Any]  # Any: a database row


@dataclass(frozen=True)
class Explanation:
    """All that is known of one batch."""

    batch_id: str
    state: str
    causes: list[Cause]
    timeline: list[tuple[datetime, str]]
    sides: dict[str, Row] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)  # servers that gave no answer, or an error
    notes: list[str] = field(default_factory=list)  # what holds nothing up


def explain(
    conn: Conn,
    slots: Slots,
    batch_id: str,
    heartbeat: Heartbeat,
    receivers: Receivers = NO_RECEIVERS,
    timeline: Sequence[Row] | None = None,
    *,
    redis_error: str | None = None,
) -> Explanation:
    """Explain one batch, whatever its state; also one that nobody has registered or seen.

    `timeline`: what `batches.timeline` returned to a caller that has read it. `redis_error`:
    Redis did not answer just now, so nobody knows who gives signs of life.
    """
    redis_side = {"error": redis_error} if redis_error else _redis_side(slots, batch_id)
    if hidden := hidden_rows(conn) or shadowed(conn):
        step = command(hidden.step)
        unread = CAUSES["cannot_read"].fill(error=hidden.wrong, step=step)
        others = service_causes(redis_side, heartbeat)
        return Explanation(batch_id, "unread", [unread, *others], [])
    moments = batches.timeline(conn, batch_id, TITLES) if timeline is None else timeline
    facts = batches.facts(conn, batch_id)
    broken = list(_rules_broken(conn, slots, batch_id, redis_side, heartbeat))
    if not facts:  # slots of a batch that is gone say nothing of Redis
        broken = [cause for cause in broken if cause.code != "slot_drift"]
    plain = list(plain_causes(conn, batch_id, facts, redis_side)) if facts else []
    if not facts and not any(cause.code == "pending_not_registered" for cause in broken):
        plain.append(unknown(conn, batch_id, redis_side))
    waits = broken or not facts or facts["status"] in OPEN
    holder = sweep.holder(conn) if heartbeat.beat_silent else None
    held = locks(conn, batch_id) if waits else []
    outages = list(service_causes(redis_side, heartbeat, holder, held)) if waits else []
    if not broken and not plain and facts["status"] in OPEN:
        plain.append(CAUSES["being_sealed"].fill(facts["full_at"], batch=batch_id))
    if facts:
        plain += of_events(conn, batch_id, facts, {cause.code for cause in [*broken, *plain]})
    # An outage keeps every batch waiting, so it comes first; but after a flush of Redis no
    # heartbeat is there, although everything may run.
    flushed = heartbeat.silent and not (heartbeat.others or heartbeat.beats.leader)
    flushed = flushed and "error" not in redis_side
    first = [*broken, *outages] if flushed else [*outages, *broken]
    warned = broker_lacks(heartbeat, Severity.WARNING) if waits else ()
    causes = [*first, *receiver_causes(conn, batch_id, facts, receivers), *plain, *warned]
    said = [*notes(conn, batch_id, facts)]
    if facts and not causes:
        said += taken_note(batch_id, facts, receivers)
    state = facts["status"] if facts else "not_registered" if broken else "unknown"
    return Explanation(
        batch_id,
        state,
        causes,
        [(row["at"], row["what"]) for row in moments],
        {"postgres": facts, "redis": redis_side},
        list(_disagreements(facts, redis_side)),
        notes=said,
    )


def _rules_broken(
    conn: Conn, slots: Slots, batch_id: str, redis_side: Row, heartbeat: Heartbeat
) -> Iterator[Cause]:
    rules = all_rules()
    unmended = db.sweep.unmended(conn, batch_id, len(rules))
    context = CheckContext(conn, slots, batch_id)
    for rule in rules:
        if "error" in redis_side and rule.code == "slot_drift":
            continue  # it would wait for Redis once more
        for finding in rule.find(context) or []:
            cause = _broken(rule, finding, unmended.get((batch_id, rule.code)), heartbeat)
            yield with_evidence(conn, cause, batch_id)


def _broken(rule: Rule, finding: Finding, failed: Unmended | None, heartbeat: Heartbeat) -> Cause:
    since = finding.since or (failed.since if failed else None)
    cause = CAUSES[rule.code].fill(since, batch=finding.batch_id)
    if finding.detail:
        cause = replace(cause, title=f"{cause.title} ({finding.detail})")
    reason = cause.reason + last_try(rule, failed, heartbeat)
    return replace(cause, reason=reason, by_itself=promise(rule, failed, heartbeat))


def _redis_side(slots: Slots, batch_id: str) -> Row:
    try:
        return {
            "free": len(slots.free(batch_id)),
            "claimed": len(slots.assignments(batch_id)),
            "recent_claims": sorted(slots.recent_claims(batch_id)),
            "old_claims": sorted(slots.recent_claims(batch_id, older_than_s=LONG_S)),
        }
    except RedisError as error:
        return {"error": str(error)}


def _disagreements(facts: Row, redis_side: Row) -> Iterator[str]:
    """Say where two places that should agree do not."""
    if not facts:
        return
    if facts["open"] != facts["available_slots"]:
        yield f"tracker: available_slots is {facts['available_slots']}, open slots: {facts['open']}"
    if facts["assigned"] + facts["failed"] + facts["open"] + facts["cancelled"] != facts["slots"]:
        yield "essays: their states do not add up to the expected count"
    if facts["pending"]:
        waiting = number(facts["pending"], "row waits", "rows wait")
        yield f"pending: {waiting} for a registered batch"
    if "error" in redis_side:
        return
    busy = len(set(facts["open_ids"]) & set(redis_side["recent_claims"]))
    if redis_side["free"] + busy != facts["open"]:
        free = f"{redis_side['free']} free and {busy} just claimed"
        yield f"redis: {free}, open slots: {facts['open']}"
