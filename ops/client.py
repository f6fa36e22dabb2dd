"""Send events as an upstream service does, and read their outcomes."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from uuid import uuid4

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from core.catalogue import TASKS
from core.db.connection import Conn
from core.errors import StackError
from core.servers.away import away
from core.servers.urls import is_amqp
from tasks.servers import set_broker
from tasks.worker import amqp

POLL_S = 0.1
Event = dict[str, Any]  # Any: a message's JSON


@dataclass(frozen=True)
class Sent:
    task: str
    task_id: str
    event: Event


class Sender:
    """An upstream service: knows a task name, a queue and a JSON body. A context manager."""

    def __init__(self, broker_url: str, queue: str) -> None:
        self.app = Celery("els-sender")
        self.app.conf.task_default_queue = queue
        if is_amqp(broker_url):  # as workers declare it, or RabbitMQ refuses
            self.app.conf.task_default_queue_type = "quorum"
            self.app.conf.task_default_exchange_type = "topic"
            self.app.conf.broker_transport_options = amqp.OPTIONS
        set_broker(self.app, broker_url)
        self.queue, self.broker_url = queue, broker_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.app.close()

    def send(self, task: str, event: Event) -> Sent:
        """Enqueue an event. Raises StackError when the broker does not take it."""
        task_id = str(uuid4())
        try:
            self.app.send_task(
                task, kwargs={"event": event}, queue=self.queue, task_id=task_id, ignore_result=True
            )
        except (OperationalError, redis.RedisError) as error:
            found = away("broker", self.broker_url, error)
            raise StackError(f"broker: {found.wrong.rstrip('.')}. Next: {found.step}") from error
        return Sent(task, task_id, event)


def common(batch_id: str, **fields: Any) -> Event:  # Any: a message's JSON
    """Begin an event: a new id, now, schema 1."""
    return {
        "event_id": str(uuid4()),
        "correlation_id": str(uuid4()),
        "timestamp": datetime.now(UTC).isoformat(),
        "schema_version": 1,
        "batch_id": batch_id,
        **fields,
    }


def registration(batch_id: str, essay_ids: Sequence[str], class_id: str | None = None) -> Event:
    """Announce a batch, as the batch orchestrator does."""
    event = common(
        batch_id,
        essay_ids=list(essay_ids),
        expected_essay_count=len(essay_ids),
        course_code="ENG5",
        user_id="teacher-1",
    )
    return event | ({"class_id": class_id} if class_id else {})


def content(number: int, file_name: str, size: int, md5: str | None = None) -> Event:
    """Describe a stored text, as the file service does, alone or in a bulk message."""
    described = {
        "text_storage_id": f"text-{number:03d}",
        "file_upload_id": f"file-{number:03d}",
        "original_file_name": file_name,
        "file_size_bytes": size,
    }
    return described | ({"content_md5_hash": md5} if md5 else {})


def rejection(batch_id: str, number: int, file_name: str, size: int, error_code: str) -> Event:
    """Announce a file that failed validation, as the file service does."""
    return common(
        batch_id,
        file_upload_id=f"file-{number:03d}",
        original_file_name=file_name,
        validation_error_code=error_code,
        file_size_bytes=size,
    )


def read_events(text: str) -> Iterator[tuple[str, Event]]:
    """Yield tasks and events from JSON (one, or an array) or JSON Lines.

    An entry is `{"task": …, "event": {…}}`, or an event alone, whose fields show its task. Raises
    ValueError that names the entry.
    """
    for number, entry in enumerate(_entries(text), start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {number} is not a JSON object")  # noqa: TRY004 - of the file
        if entry.keys() == {"task", "event"}:
            if not isinstance(entry["task"], str) or not isinstance(entry["event"], dict):
                raise ValueError(
                    f"entry {number}: its task must be a text, and its event an object"
                )
            yield entry["task"], entry["event"]
            continue
        task = next((task.name for task in TASKS.values() if entry.keys() & task.known_by), None)
        if task is None:
            raise ValueError(
                f"entry {number} fits no task: write it as"
                ' {"task": "els.assign_content", "event": {…}}'
            )
        yield task, entry


def _entries(text: str) -> list[object]:
    text = text.removeprefix("\ufeff")  # as editors on Windows write it
    if not text.strip():
        return []
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        # Not `splitlines`: it also splits at characters that JSON strings may hold.
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        if len(lines) < 2:
            raise ValueError(f"not JSON: {error}") from error
        return [_line(number, line) for number, line in enumerate(lines, start=1)]
    return whole if isinstance(whole, list) else [whole]


def _line(number: int, line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error


def outcome_of(conn: Conn, sent: Sent) -> Mapping[str, Any] | None:  # Any: JSON
    """Look up the outcome of a message; None until it has one."""
    letter = conn.execute(
        "SELECT code, message FROM dead_letters WHERE task_id = %s", [sent.task_id]
    ).fetchone()
    if letter:
        return {"outcome": "dead_letter", **letter}
    row = conn.execute(
        "SELECT outcome FROM idempotency_keys WHERE key::text = %s",
        [str(sent.event.get("event_id"))],
    ).fetchone()
    return row["outcome"] if row else None


def outcomes(
    conn: Conn, sent: Sequence[Sent], timeout_s: float
) -> list[Mapping[str, Any] | None]:  # Any: JSON
    """Wait for the outcome of each message; None for one that has none after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    found = [outcome_of(conn, message) for message in sent]
    while None in found and time.monotonic() < deadline:
        time.sleep(POLL_S)
        found = [
            known or outcome_of(conn, message) for known, message in zip(found, sent, strict=True)
        ]
    return found
