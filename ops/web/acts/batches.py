"""Cancel, amend and reconcile a batch."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from core.db.connection import Conn, Row
from core.states import BatchStatus, OnDeadline
from ops.moments import from_now
from ops.queries import actions, batches
from ops.queries.actions import By
from ops.web.acts.plan import Fields, Plan, Refused, Seen, Tools, wrong
from ops.web.rendering import NOT_REGISTERED, STATES, batch_url
from ops.wording import age, number, utc

OPEN = (BatchStatus.AWAITING_CONTENT_VALIDATION, BatchStatus.AWAITING_STUDENT_VALIDATION)


def plan_cancel(seen: Seen, given: Fields) -> Plan:
    row = _batch(seen.conn, given)
    _refuse_closed(row, "cancelled", sealed_too=False)
    will = [
        f"It takes no more contents: {number(row['open'], 'slot')} of it will stay empty.",
        f"It keeps the {number(row['assigned'], 'content')} that it has.",
        "Receivers get BatchCancelled, with the reason that you give.",
        "Nobody can undo this.",
    ]
    batch_id = row["batch_id"]
    title = f"Cancel batch {batch_id}"
    back = batch_url(batch_id)
    return Plan(title, back, {"batch": batch_id}, will, "Cancel the batch", needs_reason=True)


def cancel(tools: Tools, given: Fields, by: By) -> str:
    tools.acting.cancel(given["batch"], by)
    return "This batch was cancelled."


def plan_amend(seen: Seen, given: Fields) -> Plan:
    row = _batch(seen.conn, given)
    _refuse_closed(row, "amended", sealed_too=True)
    batch_id = row["batch_id"]
    terms = actions.terms(seen.conn, batch_id)
    left, at_deadline, prompt = _amendment(given)
    fields, will = {"batch": batch_id}, []
    if left is not None:
        moment = datetime.now(UTC) + left
        fields["deadline"] = moment.isoformat(timespec="seconds")
        will.append(
            f"The deadline {utc(row['deadline_at'])} becomes {utc(moment)},"
            f" in {age(left.total_seconds())}."
        )
    if at_deadline is not None:
        fields["on_deadline"] = at_deadline
        will.append(f"At the deadline: {terms['on_deadline']} becomes {at_deadline}.")
    if prompt is not None:
        fields["prompt_ref"] = json.dumps(prompt, ensure_ascii=False)
        before = json.dumps(terms["student_prompt_ref"], ensure_ascii=False)
        will.append(f"The prompt {before} becomes {fields['prompt_ref']}.")
    plan = Plan(f"Amend batch {batch_id}", batch_url(batch_id), fields, will, "Amend the batch")
    if not will:
        shown = {"deadline_at": row["deadline_at"], "on_deadline": terms["on_deadline"]}
        return replace(plan, asks="amend", shown=shown)
    return replace(plan, needs_reason=True)


def amend(tools: Tools, given: Fields, by: By) -> str:
    left, at_deadline, prompt = _amendment(given)
    changes = {
        "deadline_s": left.total_seconds() if left is not None else None,
        "on_deadline": at_deadline,
        "student_prompt_ref": prompt,
    }
    tools.acting.amend(
        given["batch"], by, **{name: value for name, value in changes.items() if value is not None}
    )
    return "This batch was amended."


def plan_reconcile(seen: Seen, given: Fields) -> Plan:
    batch_id = given.get("batch")
    if not batch_id:
        found = len(seen.broken)
        will = [
            f"The sweep runs now over every batch, and repairs what it can: {found} break a rule."
        ]
        return Plan("Run the sweep now", "/", {}, will, "Run the sweep")
    broken = seen.broken.get(batch_id, ())
    will = [
        "The sweep checks this batch now by every rule, and repairs what it can.",
        *(f"It breaks a rule now: {title}." for title in broken),
    ]
    if not broken:
        will.append("It breaks no rule now, so probably nothing changes.")
    title, back = f"Reconcile batch {batch_id}", batch_url(batch_id)
    return Plan(title, back, {"batch": batch_id}, will, "Run the sweep")


def reconcile(tools: Tools, given: Fields, by: By) -> str:
    results = tools.acting.reconcile(given.get("batch") or None, by)
    if results is None:
        raise Refused(
            409,
            "Another sweep is at work",
            "nothing was done",
            "go back, and try again in a moment",
        )
    mended = sum(each.mended for each in results)
    left = len(results) - mended
    return f"The sweep ran: it found {len(results)}, mended {mended}, and left {left}."


def _batch(conn: Conn, given: Fields) -> Row:
    batch_id = given.get("batch", "")
    (row,) = batches.board(conn, [batch_id])
    if row["status"] == NOT_REGISTERED:
        raise Refused(
            404,
            f"Batch {batch_id} is not registered",
            "there is nothing to change",
            "check the id on the board",
        )
    return row


def _refuse_closed(row: Row, word: str, *, sealed_too: bool) -> None:
    sealed = sealed_too and row["completed_at"]
    if row["status"] not in OPEN or sealed:
        state = "sealed" if sealed else STATES[row["status"]].lower()
        raise Refused(
            409,
            f"This batch cannot be {word}",
            f"batch {row['batch_id']} is {state}",
            "look at its page",
        )


def _amendment(
    given: Fields,
) -> tuple[timedelta | None, str | None, dict[str, Any] | None]:  # Any: JSON
    """Read what changes: the time to the deadline, what happens there, the prompt."""
    deadline, prompt = given.get("deadline", "").strip(), given.get("prompt_ref", "").strip()
    at_deadline = given.get("on_deadline") or None
    if at_deadline and at_deadline not in [each.value for each in OnDeadline]:
        raise wrong("the deadline", f"{at_deadline} is neither fail nor proceed")
    try:
        left = from_now(deadline) if deadline else None
    except ValueError as error:
        raise wrong("the deadline", f"{error}; write 3d, 12h, or 2026-12-01 12:00") from error
    return left, at_deadline, _json_object(prompt) if prompt else None


def _json_object(text: str) -> dict[str, Any]:  # Any: JSON
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong("the prompt", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise wrong("the prompt", "not a JSON object")
    return value
