"""Messages on disk, in order, until the broker takes them: an SQLite file.

A message that `append` returned for survives `kill -9` and the loss of power. Several processes may
share a file; one of them at a time drains it. The file must be on a local disk.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import NamedTuple
from uuid import UUID

from els_client.errors import SpoolFull, SpoolUnusable
from els_client.upstream import Message

# The triggers keep the size, because to add it up takes longer the more there is.
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    task TEXT NOT NULL, task_id TEXT NOT NULL, event_id TEXT NOT NULL,
    body TEXT NOT NULL, fingerprint BLOB NOT NULL, spooled_at REAL NOT NULL,
    UNIQUE (event_id, task, fingerprint)
);
CREATE TABLE IF NOT EXISTS size (
    one INTEGER PRIMARY KEY CHECK (one = 1), messages INTEGER NOT NULL, bytes INTEGER NOT NULL
);
INSERT OR IGNORE INTO size VALUES (1, 0, 0);
CREATE TRIGGER IF NOT EXISTS grown AFTER INSERT ON messages BEGIN
    UPDATE size SET messages = messages + 1, bytes = bytes + length(CAST(NEW.body AS BLOB));
END;
CREATE TRIGGER IF NOT EXISTS shrunk AFTER DELETE ON messages BEGIN
    UPDATE size SET messages = messages - 1, bytes = bytes - length(CAST(OLD.body AS BLOB));
END;
"""
COLUMNS = "task, task_id, event_id, body, fingerprint"
BUSY_S = 10  # for another process to end its transaction
_inherited: list[sqlite3.Connection] = []  # of a parent process: SQLite forbids even to close them


@dataclass(frozen=True)
class Spooled:
    """What waits on disk, and why; `oldest_s` None: nothing waits."""

    messages: int
    bytes: int
    oldest_s: float | None
    last_error: str | None = None


class Entry(NamedTuple):
    """A message of the spool, and its number there."""

    number: int
    message: Message


class Spool:
    """A file of messages. Raises SpoolUnusable where SQLite fails."""

    def __init__(self, path: Path, most_messages: int, most_bytes: int) -> None:
        self.path, self.most_messages, self.most_bytes = path, most_messages, most_bytes
        self._pid, self._lock, self._connection = os.getpid(), RLock(), self._open()

    def append(self, message: Message) -> Message:
        """Add a message; return the one that waits: a repeat of one that does is not added.

        Raises SpoolFull.
        """
        key = [str(message.event_id), message.task, message.fingerprint]
        with self._transaction("; the message is not sent") as db:
            found = db.execute(
                f"SELECT number, {COLUMNS} FROM messages"  # noqa: S608 - fixed
                " WHERE event_id = ? AND task = ? AND fingerprint = ?",
                key,
            ).fetchone()
            if found:
                return _entry(found).message
            messages, size = db.execute("SELECT messages, bytes FROM size").fetchone()
            if messages >= self.most_messages or size + len(message.body) > self.most_bytes:
                raise SpoolFull(
                    f"{self.path} is full: {messages} of at most {self.most_messages} messages,"
                    f" {size} of at most {self.most_bytes} bytes; the message is not sent"
                )
            db.execute(
                f"INSERT INTO messages ({COLUMNS}, spooled_at)"  # noqa: S608 - fixed
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    message.task,
                    message.task_id,
                    str(message.event_id),
                    message.body,
                    message.fingerprint,
                    time.time(),
                ],
            )
        return message

    def first(self, count: int) -> list[Entry]:
        """Read the oldest messages."""
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT number, {COLUMNS} FROM messages ORDER BY number LIMIT ?",  # noqa: S608
                [count],
            )
            return [_entry(row) for row in rows]

    def remove(self, entries: Sequence[Entry]) -> None:
        """Remove messages that the broker has."""
        with self._transaction() as db:
            db.executemany("DELETE FROM messages WHERE number = ?", [[e.number] for e in entries])

    def is_empty(self) -> bool:
        with self._reading() as db:
            return db.execute("SELECT 1 FROM messages LIMIT 1").fetchone() is None

    def size(self) -> Spooled:
        """Count what waits."""
        with self._reading() as db:
            messages, size, oldest = db.execute(
                "SELECT messages, bytes, (SELECT spooled_at FROM messages ORDER BY number LIMIT 1)"
                " FROM size"
            ).fetchone()
        return Spooled(messages, size, None if oldest is None else max(0.0, time.time() - oldest))

    @contextmanager
    def draining(self) -> Iterator[bool]:
        """Be the one who drains; yield False where another process or thread is."""
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
            fcntl.flock(lock, fcntl.LOCK_UN)  # for good, though a child may have inherited it
        finally:
            os.close(lock)

    def close(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                self._connection.close()

    @contextmanager
    def _transaction(self, consequence: str = "") -> Iterator[sqlite3.Connection]:
        with self._reading(consequence) as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def _reading(self, consequence: str = "") -> Iterator[sqlite3.Connection]:
        self._renew_after_a_fork()
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise SpoolUnusable(f"{self.path}: {error}{consequence}") from error

    def _renew_after_a_fork(self) -> None:
        if self._pid != os.getpid():
            _inherited.append(self._connection)
            self._lock, self._connection = RLock(), self._open()
            self._pid = os.getpid()

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds names of files
            db = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a commit is on the disk
            db.executescript(SCHEMA)
            db.execute(f"SELECT number, {COLUMNS}, spooled_at FROM messages LIMIT 0")  # noqa: S608
        except (OSError, sqlite3.Error) as error:
            raise SpoolUnusable(
                f"{self.path}: {error}; give another file, or move this one away"
            ) from error
        return db


def _entry(row: tuple[int, str, str, str, str, bytes]) -> Entry:
    number, task, task_id, event_id, body, fingerprint = row
    return Entry(number, Message(task, task_id, UUID(event_id), body, fingerprint))
