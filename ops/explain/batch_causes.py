"""What one batch waits for, or how it ended; with what may have become of what it lacks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from core.catalogue import CANCEL_BATCH
from core.db.connection import Conn
from core.servers.obstacles import policies
from core.states import OPEN, BatchStatus, OnDeadline
from ops.by_hand import of_others
from ops.explain import clues, of_one_batch
from ops.explain.causes import CAUSES, Cause
from ops.explain.clues import Clue, with_clues
from ops.installation import POSTGRES, command
from ops.wording import age, number, utc

NEAR = timedelta(minutes=10)  # a deadline this near is worth a word
FAR_DAYS = 30  # a deadline that is further away may be a mistake
LETTERS = 3  # shown of those that a batch still needs
MISSING = 5  # numbers of events that are shown
RECOUNT = "UPDATE batch_essay_trackers SET expected_count = {} WHERE batch_id = $${}$$"
SOUND = {  # codes of letters whose message may succeed unchanged
    "EXPIRED",
    "REVOKED",
    "RETRIES_EXHAUSTED",
    "POISON_MESSAGE",
    "INTERNAL_ERROR",
}
OF_ROWS = {"slot_missing", "counter_wrong", "event_missing"}  # causes by rows that are not there
UNSOUND = {"VALIDATION_ERROR", "IDEMPOTENCY_CONFLICT", "UNKNOWN_TASK", "MALFORMED_MESSAGE"}
NO_LIST = (
    "els env  # then redis-cli -u BROKER_URL RENAME QUEUE QUEUE.wrong; QUEUE is els.events, or that"
    " of a route (ELS_EVENT_ROUTES), of which TYPE QUEUE says no list"
)
NO_CLASS = {"null", "none", "nil", "undefined", "nan"}
CLAIMED_LONG = (
    "a worker has been at them for over 10 s, or it died, and the broker delivers their messages"
    " again"
)
CANCELLED_BY_HAND = "no message and no operator did so: somebody changed its row by hand"
NO_TASK = "header task:"  # how the refusal of a message begins that has no such header
NO_CLUE = (
    "no dead letter, pending content or similar id that is known here has one: if they were sent,"
    " it was to another broker, or under the event_id of one that has come, or they are lost, and"
    " their sender must repeat them, each under its own event_id, which is safe"
)
ENDINGS = {
    OnDeadline.FAIL: "is timed out",
    OnDeadline.PROCEED: "proceeds with what is there",
}
Row = Mapping[str, Any]  # Any: a database row


def plain_causes(conn: Conn, batch_id: str, facts: Row, redis_side: Row) -> Iterator[Cause]:
    """Name what a registered batch itself waits for, or how it ended."""
    status = BatchStatus(facts["status"])
    yield from _near_deadline(facts)
    match status:
        case BatchStatus.AWAITING_CONTENT_VALIDATION if facts["open"]:
            if held := set(facts["open_ids"]) & set(redis_side.get("recent_claims", ())):
                claims = CAUSES["claims_in_flight"].fill(
                    batch=batch_id, held=number(len(held), "slot is", "slots are")
                )
                long = held <= set(redis_side.get("old_claims", ()))
                yield replace(claims, reason=CLAIMED_LONG) if long else claims
            yield _waiting_for_contents(conn, batch_id, facts)
        case BatchStatus.AWAITING_STUDENT_VALIDATION:
            yield _waiting_for_students(conn, batch_id, facts)
        case BatchStatus.CONTENT_INGESTION_FAILED:
            yield _without_essays(batch_id, facts)
        case BatchStatus.TIMED_OUT:
            yield _timed_out(conn, batch_id, facts)
        case BatchStatus.CANCELLED:
            reason = facts["closed_reason"]
            cause = CAUSES["cancelled"].fill(facts["closed_at"], batch=batch_id, reason=reason)
            by_hand = not of_one_batch.was_cancelled(conn, batch_id)
            yield replace(cause, reason=CANCELLED_BY_HAND) if by_hand else cause


def unknown(conn: Conn, batch_id: str, redis_side: Row) -> Cause:
    """Say why there may be no batch with this id."""
    in_redis = redis_side.get("free", 0) + redis_side.get("claimed", 0)
    found = clues.of_unknown(conn, batch_id, in_redis)
    return with_clues(CAUSES["unknown_batch"].fill(batch=batch_id), found)


def with_evidence(conn: Conn, cause: Cause, batch_id: str) -> Cause:
    """Add to the cause of a rule what is known beyond its finding."""
    if cause.code == "pending_not_registered":
        return with_clues(cause, clues.of_unregistered(conn, batch_id))
    if cause.code == "dead_letter_waiting":
        return _with_letters(conn, cause, of_one_batch.needed_letters(conn, batch_id, LETTERS))
    if cause.code == "event_not_delivered" and "WRONGTYPE" in cause.title:
        why = "another program has written the key of that queue, which is no list now"
        return replace(cause, reason=f"{why}; {cause.reason}", command=NO_LIST)
    if cause.code in OF_ROWS and (hidden := policies(conn)):
        step = command(hidden.step)
        return replace(cause, reason=hidden.wrong, by_itself="nothing while it does", command=step)
    if cause.code in {"slot_missing", "slot_extra"}:
        return _of_slots(cause, of_one_batch.counted(conn, batch_id))
    return cause


def _with_letters(conn: Conn, cause: Cause, rows: Sequence[Row]) -> Cause:
    """Say what each letter lacks, and whether to replay it or to send it again."""
    if not rows:
        return cause
    said = [f"{row['id']} ({row['task']}, {row['code']}): {row['message']}" for row in rows]
    if any(row["message"].startswith(NO_TASK) for row in rows):
        said.append(
            "a message of Celery's protocol 1 has none: its sender must set task_protocol 2"
        )
    if any(row["task"] == CANCEL_BATCH.name for row in rows):
        said.append("who replays a cancellation cancels the batch, whatever has come since")
    elif all(row["code"] in SOUND for row in rows):
        numbers = " ".join(str(row["id"]) for row in rows)
        replay = f"els dead-letters replay {numbers} --reason WHY"
        found = (of_others(conn, row["message"]) for row in rows)
        if by_hand := next(filter(None, found), None):
            said.append(f"{by_hand.wrong}: undo that, and then {replay}")
            cause = replace(cause, command=command(by_hand.step))
        else:
            said.append("nothing is wrong with what was sent, so replay it")
            cause = replace(cause, command=replay)
    elif all(row["code"] in UNSOUND for row in rows):
        said.append("its sender must correct that and send it again; then discard the letter")
    return with_clues(cause, [Clue("; ".join(said))])


def _of_slots(cause: Cause, found: Row | None) -> Cause:
    """Tell a slot that is gone, or one too many, from a count that somebody has changed."""
    if not found or found["registered"] != found["slots"]:
        return cause
    expected, slots = found["expected_count"], number(found["slots"], "slot")
    update = RECOUNT.format(found["slots"], found["batch_id"])
    return replace(
        cause,
        title=f"Somebody has changed expected_count of the batch to {expected}",
        reason=f"{slots} were registered and are there, so the batch can never be complete",
        command=POSTGRES.format(update),
    )


def of_events(conn: Conn, batch_id: str, facts: Row, named: set[str]) -> Iterator[Cause]:
    """Name events that left no trace of their delivery; `named` has the codes named before."""
    if facts["events"] < facts["events_written"] and "event_missing" not in named:
        numbers = of_one_batch.missing_numbers(conn, batch_id, MISSING)
        yield CAUSES["event_deleted"].fill(
            batch=batch_id,
            gone=number(facts["events_written"] - facts["events"], "event"),
            numbers=", ".join(map(str, numbers)),
            written=facts["events_written"],
        )
    if marked := of_one_batch.never_sent(conn, batch_id):
        types = ", ".join(row["type"] for row in marked)
        yield replace(
            CAUSES["event_not_delivered"].fill(marked[0]["published_at"], batch=batch_id),
            title=f"An event of the batch was never sent ({types})",
            reason="somebody has set its published_at by hand, and no relay has ever taken it",
            by_itself="nothing: it counts as delivered",
            command=f"els outbox republish --batch {batch_id} --since 30d",
        )
    if facts["undelivered"] and not named:
        error = facts["undelivered_error"]
        cause = CAUSES["event_under_way"].fill(
            facts["undelivered_since"],
            waiting=number(facts["undelivered"], "event"),
            have="has" if facts["undelivered"] == 1 else "have",
        )
        yield replace(cause, reason=f"the last try failed: {error}") if error else cause


def _near_deadline(facts: Row) -> Iterator[Cause]:
    left = facts["time_left"]
    if facts["status"] in OPEN and left is not None and timedelta(0) < left < NEAR:
        cause = CAUSES["deadline_near"].fill(
            facts["deadline_at"] - NEAR, batch=facts["batch_id"], ending=_ending(facts)
        )
        sealed = facts["completed_at"] is not None  # then nobody can amend it
        yield replace(cause, command=f"els find {facts['batch_id']}") if sealed else cause


def _ending(facts: Row) -> str:
    """Say what the deadline does, or did: `at 2026-01-31 08:00:00 UTC it is timed out`."""
    ending = ENDINGS[OnDeadline(facts["on_deadline"])]
    if facts["time_left"] is None:
        return "its deadline never comes"
    if facts["time_left"] > timedelta(0):
        days = facts["time_left"].days
        far = f", in {days} days" if days > FAR_DAYS else ""
        return f"at {utc(facts['deadline_at'])}{far}, it {ending}"
    return f"its deadline passed at {utc(facts['deadline_at'])}, and the next sweep ends the wait"


def _waiting_for_contents(conn: Conn, batch_id: str, facts: Row) -> Cause:
    cause = CAUSES["waiting_for_contents"].fill(
        facts["last_arrival_at"] or facts["registered_at"],
        batch=batch_id,
        open=facts["open"],
        slots=number(facts["slots"], "slot is", "slots are"),
        lacking=_lacking(facts),
        ending=_ending(facts),
    )
    found = clues.of_missing_contents(conn, batch_id, facts["registered_at"])
    known = [each for each in found if not each.text.startswith(clues.SAME_ESSAYS)]
    if not known and not of_one_batch.needed_letters(conn, batch_id, 1):  # which another cause has
        found = [*found, Clue(NO_CLUE)]
    others = clues.of_others(conn, batch_id, facts["registered_at"])
    return with_clues(cause, [*found, *others], keep=True)


def _lacking(facts: Row) -> str:
    slots = number(facts["open"], "slot")
    have = f"{facts['slots'] - facts['open']} of {facts['slots']} are accounted for"
    since = "last arrival" if facts["last_arrival_at"] else "registration"
    return f"no text has been carried out for {slots} since the {since} ({have})"


def _waiting_for_students(conn: Conn, batch_id: str, facts: Row) -> Cause:
    cause = CAUSES["waiting_for_students"].fill(
        facts["completed_at"],
        batch=batch_id,
        class_id=facts["class_id"] or "",
        ending=_ending(facts),
    )
    found = clues.of_missing_students(conn, batch_id, facts["registered_at"])
    if (facts["class_id"] or "").strip().lower() in NO_CLASS:
        said = f"its class_id is the text {facts['class_id']}, so it is no guest batch"
        again = "if it should be one, register its essays again as another batch, without class_id"
        found = [Clue(f"{said}: {again}", f"els cancel {batch_id} --reason WHY"), *found]
    return with_clues(cause, found, keep=True)


def _without_essays(batch_id: str, facts: Row) -> Cause:
    """Tell files that were rejected from slots for which nothing came until the deadline."""
    never_came = facts["failed"] - facts["rejected"]
    cause = CAUSES["all_slots_failed"].fill(
        facts["completed_at"], batch=batch_id, rejections=facts["rejections"] or "no error code"
    )
    if never_came <= 0:
        return cause
    at = utc(facts["deadline_at"])
    slots = number(never_came, "slot")
    proceeded = f"its deadline passed at {at}, and it proceeded as on_deadline says"
    if not facts["rejected"]:
        return replace(
            cause,
            title="No text came for any slot until the deadline",
            reason=f"{proceeded}; no essay is there to be ready",
        )
    files = number(facts["rejected"], "file was", "files were")
    return replace(
        cause,
        title=f"{files} rejected, and nothing came for {slots} until the deadline",
        reason=f"{proceeded}; rejected: {facts['rejections']}",
    )


def _timed_out(conn: Conn, batch_id: str, facts: Row) -> Cause:
    never_came = facts["failed"] - facts["rejected"]
    lacked = "something was wrong with its slots"
    found: list[Clue] = []
    if facts["completed_at"]:
        lacked = "els.confirm_students had not come"
        found = clues.of_missing_students(conn, batch_id, facts["registered_at"])
    elif never_came:
        of = f"{never_came} of {number(facts['slots'], 'slot')}"
        lacked = f"no text had been carried out for {of}"
        found = clues.of_missing_contents(conn, batch_id, facts["registered_at"])
    cause = CAUSES["timed_out"].fill(
        facts["closed_at"],
        batch=batch_id,
        lacked=lacked,
        deadline=f"{utc(facts['deadline_at'])}, {_after_registration(facts)}",
    )
    if amended := of_one_batch.last_amended(conn, batch_id):
        why = f" ({amended['reason']})" if amended["reason"] else ""
        said = f"{amended['actor']} amended the batch at {utc(amended['at'])}{why}"
        found = [Clue(said), *found]
    return with_clues(cause, found, keep=True)


def _after_registration(facts: Row) -> str:
    """Say how long the deadline was: one of seconds is a mistake of its sender."""
    whole_s = (facts["deadline_at"] - facts["registered_at"]).total_seconds()
    return f"{age(whole_s)} after its registration"
