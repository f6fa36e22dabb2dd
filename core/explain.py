"""Why a batch is not ready: the sweep's rules told for one batch, and the plain reasons besides.

`causes` is what programs read; each code has its section in docs/runbook.md and is never renamed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from redis import RedisError

from core import db
from core.db.connection import Conn
from core.db.sweep import Holder, Unmended
from core.heartbeat import Pulse
from core.pauses import Pause
from core.slots import Slots
from core.states import BatchStatus, OnDeadline
from core.sweep import RULES, CheckContext, Shared

NEAR = timedelta(minutes=10)  # a deadline this near is worth a word
BACKLOG = 1_000  # waiting messages that take the worker more than a second or two
SERVERS = {"postgres": "Postgres", "redis": "Redis", "broker": "The broker"}
Row = Mapping[str, Any]  # Any: a database row


@dataclass(frozen=True)
class Cause:
    """One reason why a batch is not ready: since when, what happens by itself, what helps."""

    code: str
    title: str
    since: datetime | None
    reason: str
    by_itself: str
    command: str


@dataclass(frozen=True)
class Explanation:
    """All that is known of one batch."""

    batch_id: str
    state: str
    causes: list[Cause]
    timeline: list[tuple[datetime, str]]
    sides: dict[str, Row] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)


def explain(conn: Conn, slots: Slots, batch_id: str, pulse: Pulse) -> Explanation:
    """Explain one batch, whatever its state; also one that nobody has registered or seen."""
    facts = db.batches.facts(conn, batch_id)
    redis_side = _redis_side(slots, batch_id)
    broken = list(_rules_broken(conn, slots, batch_id, redis_side))
    plain = list(_plain_causes(batch_id, facts, redis_side))
    if not facts and not any(cause.code == "pending_not_registered" for cause in broken):
        plain.append(_cause("unknown_batch", None, batch=batch_id))
    waits = broken or not facts or facts["status"] in OPEN
    holder = db.sweep.sweep_holder(conn) if pulse.beat_silent else None
    outages = list(service_causes(redis_side, pulse, holder)) if waits else []
    if not broken and not plain and facts["status"] in OPEN:
        plain.append(_cause("being_sealed", facts["full_at"], batch=batch_id))
    # What keeps every batch waiting comes first; but the signs of life may just have been flushed.
    flushed = pulse.silent and "error" not in redis_side
    first = [*broken, *outages] if flushed else [*outages, *broken]
    state = facts["status"] if facts else "not_registered" if broken else "unknown"
    return Explanation(
        batch_id,
        state,
        [*first, *plain],
        [(row["at"], row["what"]) for row in db.batches.timeline(conn, batch_id)],
        {"postgres": facts, "redis": redis_side},
        list(_disagreements(facts, redis_side)),
    )


def _rules_broken(conn: Conn, slots: Slots, batch_id: str, redis_side: Row) -> Iterator[Cause]:
    """Ask every rule about this batch; without Redis, those that do not need it."""
    unmended = db.sweep.unmended(conn, batch_id, len(RULES))
    look = CheckContext(conn, slots, batch_id, shared=Shared())
    for rule in RULES:
        if "error" in redis_side and rule.code == "slot_drift":
            continue
        for finding in rule.check(look):
            title = f"{rule.title} ({finding.detail})" if finding.detail else rule.title
            command = rule.command.replace("{batch}", batch_id)
            failed = unmended.get((batch_id, rule.code))
            since = finding.since or (failed.since if failed else None)
            by_itself = not_mending(failed) if failed and failed.hopeless else rule.by_itself
            yield Cause(rule.code, title, since, rule.reason, by_itself, command)


def not_mending(failed: Unmended) -> str:
    """Say that the sweep cannot mend something: how often it tried, since when, the last error."""
    tried = (
        f"the sweep has tried {failed.failures} times since {failed.since:%Y-%m-%d %H:%M:%S} UTC"
    )
    return (
        f"not mending itself: {tried}, and tries again less and less often, at the latest every 5"
        f" minutes; last error: {failed.last_error}"
    )


def _redis_side(slots: Slots, batch_id: str) -> Row:
    try:
        return {
            "free": len(slots.free(batch_id)),
            "claimed": len(slots.assignments(batch_id)),
            "recent_claims": sorted(slots.recent_claims(batch_id)),
        }
    except RedisError as error:
        return {"error": str(error)}


# code: title, reason, what happens by itself, what a person could do; filled in from the facts
PLAIN = {
    "unknown_batch": (
        "Nobody has registered this batch, and no content waits for it",
        "the id is mistyped, or its messages did not arrive or could not be carried out",
        "nothing",
        "els dead-letters list --task els.register_batch",
    ),
    "redis_unreachable": (
        "Redis does not answer",
        "it is down, or not reachable from here",
        "messages are retried until it is back",
        "els env",
    ),
    "broker_unreachable": (
        "The broker does not answer",
        "it is down, or not reachable from here",
        "senders keep their messages, and events wait in the outbox, until it is back",
        "els env",
    ),
    "server_refuses": (
        "{server} refuses writes",
        "{error}",
        "workers keep their messages, ask again every 10 s at most, and go on once it takes writes",
        "els env",
    ),
    "no_worker": (
        "No worker is running",
        "no worker has given a sign of life for 15 s",
        "messages wait in the queue",
        "els run",
    ),
    "sweep_lock_held": (
        "Another session holds the lock of the sweep ({holder})",
        "a worker or a command that swept hangs, or somebody took the lock by hand",
        "the sweep goes on once that session ends or gives the lock back",
        "els reconcile",
    ),
    "beat_silent": (
        "The sweep has not run for a while",
        "beat is not running, or no worker takes its messages",
        "nothing that the sweep mends is mended meanwhile",
        "els reconcile",
    ),
    "queue_backlog": (
        "Many messages wait in the queue",
        "more is sent than the workers carry out",
        "they are carried out in turn",
        "els status",
    ),
    "claims_in_flight": (
        "Slots are claimed, but their contents are not committed",
        "a worker is at it this moment, or died and its message is delivered again",
        "the message is redelivered within the visibility timeout; the claim ends after 3 minutes",
        "els status {batch}",
    ),
    "deadline_near": (
        "The deadline is near",
        "contents, or students, are still missing",
        "at {deadline} the batch {ending}",
        "els status {batch}",
    ),
    "being_sealed": (
        "Every slot is accounted for, and the batch is being sealed at this moment",
        "its last content has just come",
        "it is announced within seconds",
        "els status {batch}",
    ),
    "waiting_for_contents": (
        "The batch waits for contents ({open} of {slots} slots are open)",
        "the file service has not announced a text for every slot",
        "it goes on with the next content; at {deadline} it {ending}",
        "els status {batch}",
    ),
    "waiting_for_students": (
        "The batch waits for the confirmation of its students",
        "els.confirm_students has not come",
        "it goes on with that message; at {deadline} it {ending}",
        "els status {batch}",
    ),
    "all_slots_failed": (
        "Every file of the batch was rejected",
        "no essay is left to be ready",
        "nothing: this is its last state",
        "els status {batch}",
    ),
    "timed_out": (
        "The batch was timed out at its deadline",
        "on_deadline is `fail`, and not everything had come",
        "nothing: this is its last state",
        "els status {batch}",
    ),
    "cancelled": (
        "The batch was cancelled",
        "els.cancel_batch was sent",
        "nothing: this is its last state",
        "els status {batch}",
    ),
}
OPEN = {BatchStatus.AWAITING_CONTENT_VALIDATION, BatchStatus.AWAITING_STUDENT_VALIDATION}
ENDINGS = {
    OnDeadline.FAIL: "is timed out",
    OnDeadline.PROCEED: "proceeds with what is there",
}
BY_STATE = {
    BatchStatus.AWAITING_STUDENT_VALIDATION: "waiting_for_students",
    BatchStatus.CONTENT_INGESTION_FAILED: "all_slots_failed",
    BatchStatus.TIMED_OUT: "timed_out",
    BatchStatus.CANCELLED: "cancelled",
}


def _plain_causes(batch_id: str, facts: Row, redis_side: Row) -> Iterator[Cause]:
    """Name what the batch itself waits for, or how it ended."""
    if not facts:
        return
    status, told = BatchStatus(facts["status"]), _words(batch_id, facts)
    left = facts["time_left"]
    if status in OPEN and left is not None and timedelta(0) < left < NEAR:
        yield _cause("deadline_near", None, **told)
    if status is BatchStatus.AWAITING_CONTENT_VALIDATION and facts["open"]:
        if set(facts["open_ids"]) & set(redis_side.get("recent_claims", ())):
            yield _cause("claims_in_flight", None, **told)
        since = facts["last_arrival_at"] or facts["registered_at"]
        yield _cause("waiting_for_contents", since, **told)
    elif status in BY_STATE:
        yield _cause(BY_STATE[status], facts["closed_at"] or facts["completed_at"], **told)


def _words(batch_id: str, facts: Row) -> dict[str, object]:
    """Gather what the sentences of `PLAIN` leave open."""
    return {
        "batch": batch_id,
        "open": facts["open"],
        "slots": facts["slots"],
        "deadline": f"{facts['deadline_at']:%Y-%m-%d %H:%M:%S} UTC",
        "ending": ENDINGS[OnDeadline(facts["on_deadline"])],
    }


def service_causes(redis_side: Row, pulse: Pulse, holder: Holder | None = None) -> Iterator[Cause]:
    """Name what keeps every batch waiting; `redis_side` has an "error" if Redis is away.

    `holder` has the lock of the sweep, which has not run for a while.
    """
    if "error" in redis_side:
        yield _cause("redis_unreachable", None)
        return
    yield from _refusals(pulse.pauses)
    if pulse.waiting is None:
        yield _cause("broker_unreachable", None)
    if not pulse.workers:
        yield _cause("no_worker", None)
    if pulse.beat_silent and holder is not None and not holder.sweeping:
        yield _cause("sweep_lock_held", holder.since, holder=holder)
    if pulse.beat_silent:
        yield _cause("beat_silent", pulse.swept_at)
    if (pulse.waiting or 0) > BACKLOG:
        yield _cause("queue_backlog", None)


def _refusals(pauses: Sequence[Pause]) -> Iterator[Cause]:
    """Name each server that processes wait for, since the first of them does."""
    first = {pause.outage.server: pause for pause in reversed(pauses)}
    for server, pause in first.items():
        name = SERVERS[server]
        yield _cause("server_refuses", pause.since, server=name, error=pause.outage.error)


def _cause(code: str, since: datetime | None, **told: object) -> Cause:
    title, *others = [text.format(**told) for text in PLAIN[code]]
    return Cause(code, title, since, *others)


def _disagreements(facts: Row, redis_side: Row) -> Iterator[str]:
    """Say where two places that should agree do not."""
    if not facts:
        return
    if facts["open"] != facts["available_slots"]:
        yield f"tracker: available_slots is {facts['available_slots']}, open slots: {facts['open']}"
    if facts["assigned"] + facts["failed"] + facts["open"] + facts["cancelled"] != facts["slots"]:
        yield "essays: their states do not add up to the expected count"
    if facts["pending"]:
        yield f"pending: {facts['pending']} rows wait for a registered batch"
    if "error" in redis_side:
        return
    busy = len(set(facts["open_ids"]) & set(redis_side["recent_claims"]))
    if redis_side["free"] + busy != facts["open"]:
        seen = f"{redis_side['free']} free and {busy} just claimed"
        yield f"redis: {seen}, open slots: {facts['open']}"
