"""What one batch waits for, or how it ended; with what may have become of what it lacks."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from core.catalogue import CANCEL_BATCH
from core.db.connection import Conn
from core.rules import Cause
from core.states import OPEN, BatchStatus, OnDeadline
from ops.explain import clues, of_one_batch
from ops.explain.causes import CAUSES
from ops.explain.clues import Clue, with_clues
from ops.wording import number, utc

NEAR = timedelta(minutes=10)  # a deadline this near is worth a word
FAR_DAYS = 30  # a deadline that is further away may be a mistake
LETTERS = 3  # shown of those that a batch still needs
MISSING = 5  # numbers of events that are shown
NO_CLUE = "no dead letter, pending content or similar id that is known here has one"
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
                yield CAUSES["claims_in_flight"].fill(
                    batch=batch_id, held=number(len(held), "slot is", "slots are")
                )
            yield _waiting_for_contents(conn, batch_id, facts)
        case BatchStatus.AWAITING_STUDENT_VALIDATION:
            yield _waiting_for_students(conn, batch_id, facts)
        case BatchStatus.CONTENT_INGESTION_FAILED:
            yield _without_essays(batch_id, facts)
        case BatchStatus.TIMED_OUT:
            yield _timed_out(conn, batch_id, facts)
        case BatchStatus.CANCELLED:
            reason = facts["closed_reason"]
            yield CAUSES["cancelled"].fill(facts["closed_at"], batch=batch_id, reason=reason)


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
        rows = of_one_batch.needed_letters(conn, batch_id, LETTERS)
        said = [f"{row['id']} ({row['task']}, {row['code']}): {row['message']}" for row in rows]
        if any(row["task"] == CANCEL_BATCH.name for row in rows):
            said.append("who replays a cancellation cancels the batch, whatever has come since")
        return with_clues(cause, [Clue("; ".join(said))]) if said else cause
    return cause


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
    if not found and not of_one_batch.needed_letters(conn, batch_id, 1):  # which another cause has
        found = [Clue(NO_CLUE)]
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
        deadline=utc(facts["deadline_at"]),
    )
    return with_clues(cause, found, keep=True)
