"""The load: batches sent the hard way, and what must have become of each message.

Early and excess contents, repeats, bulk uploads, rejected files, in any order. What the broker has
taken is remembered, so that nothing of it can get lost unseen.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from core.db.connection import Conn
from core.errors import StackError
from ops import client
from ops.client import Event, Sender, common
from ops.queries.invariants import Invariant

RATE = 50.0  # messages a second: below what two cores can carry
MOST_WAITING = 300  # at the broker: more only shows how long a backlog takes, not a recovery
ASKED_EVERY = 25  # messages sent before the broker is asked again how many wait
AHEAD = 60  # messages made and not sent yet: those of several batches, in any order
FINAL = ("ready_for_pipeline_execution", "content_ingestion_failed")
AWAITS_STUDENTS = "awaiting_student_validation"

Message = tuple[str, Event]


@dataclass
class Load:
    """What was sent, and is known to have arrived at the broker."""

    sender: Sender
    random: Random
    rate: float = RATE  # messages a second
    batches: dict[str, str | None] = field(default_factory=dict)  # batch -> class id
    messages: list[Message] = field(default_factory=list)
    made: int = 0  # batches of the load
    given_up: threading.Event = field(default_factory=threading.Event)  # nothing is sent any more
    _answered: set[str] = field(default_factory=set)  # event ids
    _confirmed: set[str] = field(default_factory=set)  # batches

    def run(self, most: int, ended: threading.Event, at_broker: Callable[[], int]) -> None:
        """Send batches, several at once, until the end; then the rest of those begun.

        `at_broker` counts the messages that wait there: while they are many, none is added.
        """
        waiting: list[Message] = []
        while not self.given_up.is_set() and (waiting or not ended.is_set()):
            if len(self.messages) % ASKED_EVERY == 0 and at_broker() > MOST_WAITING:
                ended.wait(0.1)
                if not ended.is_set():
                    continue
            if not ended.is_set() and self.made < most and len(waiting) < AHEAD:
                waiting += self._batch(f"torture-{self.made:05d}")
                self.random.shuffle(waiting)
            if waiting:
                self.send(*waiting.pop())
            time.sleep(1 / self.rate)

    def send(self, task: str, event: Event) -> None:
        """Send until the broker takes it, as every upstream service must."""
        while not self.given_up.is_set():
            try:
                self.sender.send(task, event)
            except StackError:
                time.sleep(0.2)
            else:
                self.messages.append((task, event))
                return

    def probe(self, batch_id: str) -> None:
        """Send a batch of one."""
        self.batches[batch_id] = None
        self.send("els.register_batch", _registration(batch_id, 1))
        self.send(*_arrival(batch_id, 0, rejected=False))

    def replay(self, count: int, random: Random) -> None:
        """Send old messages again."""
        for task, event in random.choices(self.messages, k=count) if self.messages else []:
            self.send(task, event)

    def confirm_students(self, batch_id: str) -> None:
        """Say once that nobody knows whose essays they are, as for a teacher who never answers."""
        if batch_id not in self._confirmed:
            self._confirmed.add(batch_id)
            event = common(
                batch_id, class_id=self.batches[batch_id], associations=[], timeout_triggered=True
            )
            self.send("els.confirm_students", event)

    def unanswered(self, conn: Conn) -> list[str]:
        """List the events that have led to no outcome and to no dead letter, each with its task."""
        tasks = {event["event_id"]: task for task, event in list(self.messages)}
        asked = sorted(tasks.keys() - self._answered)
        rows = conn.execute(
            "SELECT key::text AS id FROM idempotency_keys WHERE key = ANY(%(ids)s::uuid[])"
            " UNION SELECT body ->> 'event_id' FROM dead_letters"
            " WHERE json_typeof(body) = 'object' AND body ->> 'event_id' = ANY(%(ids)s::text[])",
            {"ids": asked},
        ).fetchall()
        self._answered |= {row["id"] for row in rows}
        return [f"{each} ({tasks[each]})" for each in asked if each not in self._answered]

    def check(self, conn: Conn) -> list[Invariant]:
        """Check that nothing sent is lost, and that nothing was given up without need."""
        self._answered.clear()  # what was there once may be gone
        return [
            Invariant("Every message has its outcome or its dead letter", self.unanswered(conn)),
            Invariant(
                "Every content sent is in a slot, pending or in excess", self._homeless(conn)
            ),
            *(_given_up(conn, code, title) for code, title in UNFOUNDED.items()),
        ]

    def _homeless(self, conn: Conn) -> list[str]:
        """List the contents and rejected files that are nowhere, dead letters aside."""
        sent = {each for message in list(self.messages) for each in _submissions(message)}
        names = sorted({batch for batch, _ in sent})
        rows = conn.execute(KEPT, {"batches": names}).fetchall()
        kept = {(row["batch_id"], row["claimant"]) for row in rows}
        given_up = conn.execute(
            "SELECT body FROM dead_letters WHERE batch_id = ANY(%s)", [names]
        ).fetchall()
        kept |= {submission for row in given_up for submission in _submissions(("", row["body"]))}
        return sorted(f"{batch}: {claimant}" for batch, claimant in sent - kept)

    def _batch(self, batch_id: str) -> list[Message]:
        """Make the messages of a batch: its upload, some repeats, and one or two too many."""
        random = self.random
        slots = random.choice([1, 2, 3, 5, 25, 25, 60])
        class_id = random.choice([None, None, "class-1"])
        numbers = range(slots + random.choice([0, 0, 1, 2]))
        rejected = {n for n in numbers if random.random() < 0.05}
        bulk = [n for n in numbers if n not in rejected] if random.random() < 0.3 else []
        messages = [("els.register_batch", _registration(batch_id, slots, class_id))]
        messages += [_arrival(batch_id, n, n in rejected) for n in numbers if n not in bulk]
        if bulk:
            entries = [client.content(n, f"text-{n:03d}.txt", 1000) for n in bulk]
            messages.append(("els.assign_contents", common(batch_id, contents=entries)))
        messages += random.choices(messages, k=max(1, len(messages) // 5))
        self.batches[batch_id] = class_id
        self.made += 1
        return messages


# Why a message may be given up, but none of the load: all of it is right, and no server's refusal
# is its fault. A worker that is killed takes no message five times.
UNFOUNDED = {
    "INTERNAL_ERROR": "No message was given up for a refusal (INTERNAL_ERROR)",
    "POISON_MESSAGE": "No message was taken for one that kills workers (POISON_MESSAGE)",
    "RETRIES_EXHAUSTED": "No message was given up for having waited (RETRIES_EXHAUSTED)",
}

KEPT = """
SELECT batch_id, coalesce(text_storage_id, file_upload_id) AS claimant FROM essay_states
WHERE file_upload_id IS NOT NULL AND batch_id = ANY(%(batches)s)
UNION ALL
SELECT batch_id, coalesce(text_storage_id, essay_file_id) FROM batch_pending_content
WHERE batch_id = ANY(%(batches)s)
UNION ALL
SELECT batch_id, coalesce(text_storage_id, file_upload_id) FROM excess_content
WHERE batch_id = ANY(%(batches)s)
"""


def statuses(conn: Conn, batches: Sequence[str]) -> dict[str, str]:
    """Read the status of these batches, as far as they are registered."""
    rows = conn.execute(
        "SELECT batch_id, status FROM batch_essay_trackers WHERE batch_id = ANY(%s)",
        [list(batches)],
    ).fetchall()
    return {row["batch_id"]: row["status"] for row in rows}


def _given_up(conn: Conn, code: str, title: str) -> Invariant:
    rows = conn.execute(
        "SELECT task, task_id, batch_id, sqlstate, left(message, 80) AS message"
        " FROM dead_letters WHERE code = %s ORDER BY id",
        [code],
    ).fetchall()
    line = "{task} {task_id} of {batch_id}: {sqlstate} {message}"
    return Invariant(title, [line.format(**row) for row in rows])


def _submissions(message: Message) -> list[tuple[str, str]]:
    """List whatever wants a slot in a message: a batch, and a text or a rejected file."""
    _, event = message
    if not isinstance(event, dict):
        return []
    entries = event.get("contents") or ([event] if "file_upload_id" in event else [])
    return [
        (event["batch_id"], entry.get("text_storage_id") or entry["file_upload_id"])
        for entry in entries
    ]


def _arrival(batch_id: str, number: int, rejected: bool) -> Message:
    name = f"text-{number:03d}.txt"
    if rejected:
        return "els.reject_content", client.rejection(batch_id, number, name, 0, "EMPTY_CONTENT")
    return "els.assign_content", common(batch_id, **client.content(number, name, 1000))


def _registration(batch_id: str, slots: int, class_id: str | None = None) -> Event:
    ids = [f"essay-{n:03d}" for n in range(slots)]
    return client.registration(batch_id, ids, class_id)
