"""What is worth knowing of a batch, although it holds nothing up."""

from collections.abc import Iterator, Mapping
from typing import Any

from core.db.connection import Conn
from core.states import ExcessReason
from ops.by_hand import added
from ops.explain import of_one_batch
from ops.explain.held_back import held_back
from ops.wording import number

SHOWN = 5  # of a list
WHY = {
    ExcessReason.NO_AVAILABLE_SLOT: "came when every slot was taken",
    ExcessReason.BATCH_CANCELLED: "came after the batch was cancelled",
    ExcessReason.BATCH_TIMED_OUT: "came after the batch was timed out",
}
Row = Mapping[str, Any]  # Any: a database row


def notes(conn: Conn, batch_id: str, facts: Row) -> Iterator[str]:
    """Tell of excess contents, files that hold several slots, letters, and events held back."""
    if facts.get("excess"):
        for row in of_one_batch.excess_by_reason(conn, batch_id, SHOWN):
            files = number(row["files"], "file")
            why = WHY[ExcessReason(row["reason"])]
            yield f"{files} {why}: {_listed(row['names'], row['files'])}"
    for row in of_one_batch.held_twice(conn, batch_id, SHOWN) if facts else ():
        yield f"file {row['name']} holds {row['slots']} slots: {', '.join(row['held'])}"
    for row in of_one_batch.letters_left(conn, batch_id, SHOWN) if facts else ():
        yield (
            f"dead letter {row['id']} ({row['task']}, {row['code']}) waits, and the batch no longer"
            f" needs it: els dead-letters discard {row['id']}"
        )
    if strange := added(conn):
        yield f"{strange.wrong}; to undo that, in psql: {strange.step}"
    if facts and (held := held_back(conn, batch_id)):
        said, step = held
        yield f"{said}, to end it, in psql: {step}"


def _listed(names: list[str], count: int) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return ", ".join(names) + more
