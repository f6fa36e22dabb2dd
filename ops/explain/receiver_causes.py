"""Events that were delivered and not taken: the queues of the receivers, and what waits in them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from core.catalogue import BATCH_ESSAYS_READY
from core.db.connection import Conn
from core.states import BatchStatus
from ops.explain import of_one_batch
from ops.explain.causes import CAUSES, Cause
from ops.queues import EventQueue
from ops.receivers import Receivers

PATIENCE = timedelta(minutes=1)  # for a receiver to take an event
Row = Mapping[str, Any]  # Any: a database row


def receiver_causes(conn: Conn, batch_id: str, facts: Row, receivers: Receivers) -> Iterator[Cause]:
    """Name each queue in which an event of the batch waits, and readiness that goes nowhere.

    Costs nothing while no event waits.
    """
    for queue in receivers.queues:
        newest = queue.messages and of_one_batch.newest_event(conn, batch_id, queue.types, PATIENCE)
        if newest and _waits(conn, queue, newest):
            yield CAUSES["event_not_taken"].fill(
                newest["published_at"],
                type=newest["type"],
                queue=queue.name,
                messages=queue.messages,
                why=_why(queue),
            )
    if facts.get("status") == BatchStatus.READY_FOR_PIPELINE_EXECUTION and (
        BATCH_ESSAYS_READY.name in receivers.nowhere
    ):
        yield CAUSES["readiness_goes_nowhere"].fill(facts["ready_at"], batch=batch_id)


def taken_note(batch_id: str, facts: Row, receivers: Receivers) -> Iterator[str]:
    """Say of a ready batch, whose event waits nowhere, that receivers took it, and what is left."""
    if facts.get("status") != BatchStatus.READY_FOR_PIPELINE_EXECUTION or not facts.get("ready_at"):
        return
    event = BATCH_ESSAYS_READY.name
    queues = ", ".join(queue.name for queue in receivers.queues if event in queue.types)
    if queues and datetime.now(UTC) - facts["ready_at"] > PATIENCE:
        yield (
            f"{event} was delivered to {queues} and is there no more; where nothing has come of it,"
            " the log of that receiver says why (no task of this name, an error), and this sends it"
            f" again: els outbox republish --batch {batch_id} --since 30d"
        )


def _waits(conn: Conn, queue: EventQueue, event: Row) -> bool:
    """Tell whether an event is still in its queue, which receivers take in its order."""
    if queue.oldest and (head := of_one_batch.published_at(conn, queue.oldest)):
        return bool(event["published_at"] >= head)
    after = of_one_batch.published_after(conn, event["published_at"], queue.types, queue.messages)
    return after < queue.messages


def _why(queue: EventQueue) -> str:
    if queue.receivers is None:
        return "its receiver is down, too slow, or consumes another queue"
    if queue.receivers == 0:
        return "no receiver consumes this queue"
    return "its receivers are connected, but they are too slow or hang"
