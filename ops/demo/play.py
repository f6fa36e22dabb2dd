"""The demo: a reference orchestrator and file service, played against a stack of its own.

They send real work the hard way: out of order, with repeats, a content before its batch, a
rejected file and one too many. At the end every invariant is checked in Postgres, in Redis and in
what a downstream service received.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TextIO
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import examples
from core import db
from core.db.connection import Conn
from core.errors import StackError
from core.events import manifest_sha256
from core.invariants import Invariant, check_batches, check_slots
from core.settings import Settings
from core.slots import Slots, connect
from migrations import upgrade
from ops import client, queries
from ops.client import Event, Sender, Sent, common
from ops.stack.supervisor import Stack, procfile

ESSAYS = Path(examples.__file__).parent / "essays"
SHORTEST, LONGEST = 50, 200_000  # characters of an essay that the demo's file service accepts
REGULAR_ESSAYS = 5
REPEATS = 6
POLL_S = 0.1
CONSUMER = (
    'DOWNSTREAM_BROKER_URL="$ELS_BROKER_URL" DOWNSTREAM_DB="$ELS_HOME/downstream.sqlite"'
    " exec celery -A examples.consumer worker --pool solo -n downstream@%h --loglevel WARNING -Q "
)
FINAL = {"ready_for_pipeline_execution", "content_ingestion_failed"}


@dataclass(frozen=True)
class Text:
    """A file of the upload; `error_code` says why the file service rejects it."""

    name: str
    size: int
    md5: str
    error_code: str | None


@dataclass(frozen=True)
class Message:
    """One enqueued event, and what it stands for in the demo."""

    what: str
    sent: Sent


@dataclass
class Batch:
    """A batch of the demo: its id and what its upload is made of."""

    batch_id: str
    texts: Sequence[Text]
    class_id: str | None = None
    essay_ids: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.essay_ids = [f"essay-{n:03d}" for n in range(1, len(self.texts) + 1)]


@dataclass(frozen=True)
class Played:
    """What the demo saw."""

    messages: list[Message]
    outcomes: list[Any]  # Any: JSON
    slots: list[str | None]
    events: list[Event]
    invariants: list[Invariant]

    @property
    def ok(self) -> bool:
        """Every invariant held."""
        return all(invariant.holds for invariant in self.invariants)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        """Tell everything to a program."""
        return {
            "ok": self.ok,
            "sent": [
                {"what": m.what, "task": m.sent.task, "event": m.sent.event}
                | {"outcome": outcome, "slot": slot}
                for m, outcome, slot in self._rows()
            ],
            "events": self.events,
            "readiness": [e for e in self.events if e["type"] == "BatchEssaysReady"],
            "invariants": [
                {"title": i.title, "holds": i.holds, "broken": i.broken} for i in self.invariants
            ],
        }

    def show(self, out: Console) -> None:
        """Tell everything to a person."""
        out.print(self._table())
        out.print("\nEvents received downstream, repeats dropped\n", style="bold")
        for event in self.events:
            count = event["data"].get("ready_count", event["data"].get("provisioned_count", ""))
            line = f"  {event['sequence']:>2}  {event['subject']}  {event['type']}  {count}"
            out.print(line, markup=False, soft_wrap=True)
        for event in self.events:
            if event["type"] == "BatchEssaysReady":
                out.print(f"\nBatchEssaysReady of {event['subject']}\n", style="bold")
                out.print(_event_lines(event), markup=False, soft_wrap=True)
        show_invariants(self.invariants, out)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("WHAT WAS SENT", "TASK", "WHAT BECAME OF IT", "SLOT"):
            table.add_column(name, no_wrap=True)
        for message, outcome, slot in self._rows():
            became = outcome["outcome"] if outcome else "?"
            table.add_row(message.what, message.sent.task.removeprefix("els."), became, slot)
        return table

    def _rows(self) -> Iterable[tuple[Message, Any, str | None]]:  # Any: JSON
        return zip(self.messages, self.outcomes, self.slots, strict=True)


def show_invariants(invariants: Sequence[Invariant], out: Console) -> None:
    """Print a line for each invariant, and the verdict."""
    out.print("\nInvariants\n", style="bold")
    for invariant in invariants:
        mark = "[green]✔[/]" if invariant.holds else "[red]✘[/]"
        broken = "" if invariant.holds else f": broken by {', '.join(invariant.broken)}"
        out.print(f"  {mark} {invariant.title}{broken}", soft_wrap=True)
    held = all(invariant.holds for invariant in invariants)
    verdict = "Every invariant held." if held else "An invariant is broken."
    out.print(f"\n{verdict}\n", style="bold green" if held else "bold red")


def texts_of(folder: Path) -> list[Text]:
    """Read a folder as a file service would: every visible file, rejected ones with their code.

    Raises StackError when there is nothing to upload.
    """
    try:
        files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise StackError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not files:
        raise StackError(f"{folder} holds no files; give a folder of text files")
    return [_text(file) for file in files]


def play(
    settings: Settings, texts: Sequence[Text] | None, timeout_s: float, say: Callable[[str], None]
) -> Played:
    """Run a stack on the home of these settings, play the demo against it, stop it.

    `texts` None plays the essays that ship with the service, and a regular batch besides.
    """
    commands = {**procfile(), "downstream": CONSUMER + settings.events_queue}
    with (
        open(os.devnull, "w") as silence,  # the processes' lines stand in the home's log folder
        _stack(settings, commands, say, silence) as stack,
        db.connect(stack.endpoints.database_url, size=1) as pool,
        pool.connection() as conn,
        Sender(stack.endpoints.broker_url, settings.queue) as sender,
    ):
        received = Path(stack.environ["ELS_HOME"]) / "downstream.sqlite"
        slots = Slots(connect(stack.endpoints.redis_url))
        return Play(conn, sender, received, time.monotonic() + timeout_s).act(texts, slots)


def _stack(
    settings: Settings, commands: dict[str, str], say: Callable[[str], None], output: TextIO
) -> Stack:
    return Stack(settings, echo=say, migrate=upgrade, processes=commands, output=output)


class Play:
    """One performance: who sends, where the outcome is read, and until when it must be there."""

    def __init__(self, conn: Conn, sender: Sender, received: Path, deadline: float) -> None:
        self.conn = conn
        self.sender = sender
        self.received = received
        self.deadline = deadline
        self.random = Random(25)  # the same order at every performance
        self.messages: list[Message] = []

    def act(self, texts: Sequence[Text] | None, slots: Slots) -> Played:
        """Send everything, wait until all is quiet, check."""
        shipped = texts_of(ESSAYS)
        guest = Batch(f"guest-{uuid4().hex[:8]}", texts or shipped)
        batches = [guest]
        if texts is None:
            scan = Text("blank scan.txt", 0, hashlib.md5(b"").hexdigest(), "EMPTY_CONTENT")  # noqa: S324 - the contract's checksum
            upload = [*shipped[: REGULAR_ESSAYS - 1], scan]
            batches.append(Batch(f"regular-{uuid4().hex[:8]}", upload, class_id="class-9B"))
        with Progress(
            TextColumn("  slots accounted for"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as progress:
            bar = progress.add_task("", total=sum(len(batch.texts) for batch in batches))

            def accounted() -> int:
                rows = [self._status(batch) for batch in batches]
                done = int(sum(row["assigned"] + row["failed"] for row in rows if row))
                progress.update(bar, completed=done)
                return done

            for batch in batches:
                self._upload(batch)
            total = sum(len(batch.texts) for batch in batches)
            self._until("every slot is accounted for", lambda: accounted() == total)
        if texts is None:
            self._until("the guest batch is ready", partial(self._is_final, guest))
            late = Text("one too many.txt", 900, hashlib.md5(b"late").hexdigest(), None)  # noqa: S324
            self._send("excess content", "els.assign_content", _content(guest, late, 99))
            self._confirm(batches[1])
        return self._look(batches, slots)

    def _upload(self, batch: Batch) -> None:
        """Announce one content early, then the batch, then the rest in any order with repeats."""
        announced = [
            (_what(text), *_announcement(batch, text, n))
            for n, text in enumerate(batch.texts, start=1)
        ]
        early = next((a for a in announced if a[1] == "els.assign_content"), announced[0])
        self._send(f"{early[0]}, early", early[1], early[2])
        self._until(
            f"the early content of {batch.batch_id} is parked",
            lambda: client.outcome_of(self.conn, self.messages[-1].sent) is not None,
        )
        registration = client.registration(batch.batch_id, batch.essay_ids, batch.class_id)
        self._send(f"{batch.batch_id.split('-')[0]} batch", "els.register_batch", registration)
        rest = [a for a in announced if a is not early]
        self.random.shuffle(rest)
        for what, task, event in rest:
            self._send(what, task, event)
        for what, task, event in self.random.sample(announced, min(REPEATS, len(announced))):
            self._send(f"{what}, again", task, event)
        self._send("registration, again", "els.register_batch", registration)

    def _confirm(self, batch: Batch) -> None:
        """Play the teacher of a regular batch, once its contents are complete."""
        self._until(
            f"batch {batch.batch_id} waits for its students",
            lambda: self._status(batch).get("status") == "awaiting_student_validation",
        )
        associations = [
            {
                "essay_id": essay_id,
                "student_id": f"student-{n}",
                "confidence_score": 0.95,
                "validation_method": "human",
                "validated_by": "teacher-1",
                "validated_at": common(batch.batch_id)["timestamp"],
            }
            for n, essay_id in enumerate(batch.essay_ids, start=1)
        ]
        event = common(
            batch.batch_id,
            class_id=batch.class_id,
            associations=associations,
            timeout_triggered=False,
        )
        self._send("students confirmed", "els.confirm_students", event)

    def _look(self, batches: Sequence[Batch], slots: Slots) -> Played:
        """Wait for the last state, outcome and delivery; then check every invariant."""
        ids = [batch.batch_id for batch in batches]
        sent = [message.sent for message in self.messages]
        self._until(
            "every message led to something",
            lambda: all(client.outcome_of(self.conn, message) for message in sent),
        )
        for batch in batches:
            self._until(
                f"batch {batch.batch_id} is ready",
                partial(self._is_final, batch),
            )
        posted = self._posted(ids)
        self._until(
            "every event was delivered",
            lambda: {event["id"] for event in self._received(ids)} == posted,
        )
        events = self._received(ids)
        checked = check_batches(self.conn, ids)
        checked.append(check_slots(self.conn, slots, ids))
        checked += _check_received(events, posted, self._status)
        found = client.outcomes(self.conn, sent, 0)
        places = [self._slot(message.event) for message in sent]
        return Played(self.messages, found, places, events, checked)

    def _slot(self, event: Event) -> str | None:
        """Look up the slot that a content or a rejected file ended in."""
        row = self.conn.execute(
            "SELECT essay_id FROM essay_states WHERE batch_id = %s AND (text_storage_id = %s"
            " OR (validation_error_code IS NOT NULL AND file_upload_id = %s))",
            [event["batch_id"], event.get("text_storage_id"), event.get("file_upload_id")],
        ).fetchone()
        return row["essay_id"] if row else None

    def _send(self, what: str, task: str, event: Event) -> None:
        self.messages.append(Message(what, self.sender.send(task, event)))

    def _status(self, batch: Batch) -> dict[str, Any]:  # Any: a database row
        rows = queries.statuses(self.conn, batch.batch_id, 1)
        return rows[0] if rows else {}

    def _is_final(self, batch: Batch) -> bool:
        return self._status(batch).get("status") in FINAL

    def _posted(self, ids: list[str]) -> set[str]:
        rows = self.conn.execute("SELECT id FROM event_outbox WHERE batch_id = ANY(%s)", [ids])
        return {str(row["id"]) for row in rows}

    def _received(self, ids: list[str]) -> list[Event]:
        """Read what the downstream service took, in order."""
        if not self.received.exists():
            return []
        with closing(sqlite3.connect(self.received, timeout=10)) as opened:
            marks = ", ".join("?" * len(ids))
            query = f"SELECT body FROM received_events WHERE batch_id IN ({marks})"  # noqa: S608
            try:
                rows = opened.execute(query + " ORDER BY batch_id, sequence", ids).fetchall()
            except sqlite3.OperationalError:  # the consumer is about to make its tables
                return []
        return [json.loads(body) for (body,) in rows]

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition. Raises StackError that names it."""
        while not condition():
            if time.monotonic() > self.deadline:
                raise StackError(
                    f"the demo's time is over before {what}; the logs are in the folder `log`"
                    " of the home, and --timeout-s gives it longer"
                )
            time.sleep(POLL_S)


def _check_received(
    events: Sequence[Event], posted: set[str], status: Callable[[Batch], Any]
) -> list[Invariant]:
    """Check what arrived downstream."""
    ready = [event for event in events if event["type"] == "BatchEssaysReady"]
    subjects = [event["subject"] for event in ready]
    missing = posted - {event["id"] for event in events}
    wrong = [
        event["subject"]
        for event in ready
        if manifest_sha256(event["data"]["ready_essays"]) != event["data"]["manifest_sha256"]
    ]
    return [
        Invariant("Every event arrived downstream", sorted(missing)),
        Invariant("Readiness arrived once a batch", [s for s in subjects if subjects.count(s) > 1]),
        Invariant("The essays that arrived are those of the manifest", wrong),
    ]


def _text(file: Path) -> Text:
    """Read and check a file."""
    body = file.read_bytes()
    try:
        length = len(body.decode("utf-8").strip())
    except UnicodeDecodeError:
        code: str | None = "TEXT_EXTRACTION_FAILED"
    else:
        code = "EMPTY_CONTENT" if length == 0 else None
        code = "CONTENT_TOO_SHORT" if 0 < length < SHORTEST else code
        code = "CONTENT_TOO_LONG" if length > LONGEST else code
    return Text(file.name, len(body), hashlib.md5(body).hexdigest(), code)  # noqa: S324 - as above


def _what(text: Text) -> str:
    return f"{text.name}, rejected" if text.error_code else text.name


def _announcement(batch: Batch, text: Text, number: int) -> tuple[str, Event]:
    if code := text.error_code:
        event = client.rejection(batch.batch_id, number, text.name, text.size, code)
        return "els.reject_content", event
    return "els.assign_content", _content(batch, text, number)


def _content(batch: Batch, text: Text, number: int) -> Event:
    return common(batch.batch_id, **client.content(number, text.name, text.size, text.md5))


def _event_lines(event: Event) -> str:
    """Write an event as JSON, one essay a line."""
    essays: Iterable[Event] = event["data"].get("ready_essays", [])
    shown = {**event, "data": {**event["data"], "ready_essays": "ESSAYS"}}
    listed = ",\n".join(f"      {json.dumps(essay, ensure_ascii=False)}" for essay in essays)
    return json.dumps(shown, indent=2, ensure_ascii=False).replace(
        '"ESSAYS"', f"[\n{listed}\n    ]"
    )
