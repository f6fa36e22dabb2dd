"""Which schema a process finds, and whether this code works on it.

A database names its revision in `alembic_version`. The comment of that table says, for this
revision, how old the code may be that works on it; code is as old as the newest revision that it
knows. So older code recognises a schema of a newer release that only adds.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import psycopg

from core.db.connection import Conn

OLDEST_SCHEMA = "0006"  # before it, this code cannot keep all that it accepts
MIGRATIONS = Path(__file__).parents[1] / "migrations" / "versions"
READ = """
    SELECT version_num, obj_description('alembic_version'::regclass, 'pg_class') AS mark
    FROM alembic_version
"""


class State(StrEnum):
    EMPTY = "empty"
    BEHIND = "behind"
    HEAD = "head"
    AHEAD = "ahead"  # of a newer release, which says with which code it works
    UNKNOWN = "unknown"  # nobody says so


@dataclass(frozen=True)
class Standing:
    """Where a schema stands beside this code."""

    state: State
    revision: str | None
    head: str  # the newest revision that this code knows
    usable: bool
    oldest: str | None = None  # of an AHEAD schema: code that knows less must not use it
    waits: str | None = None  # a migration that deletes, and that nobody has asked for yet

    @property
    def wrong(self) -> str:
        if self.state is State.EMPTY:
            return "there is no schema where this URL looks (search_path)"
        more = {
            (State.HEAD, True): "",
            (State.BEHIND, True): f", and this version brings {self.head}",
            (State.BEHIND, False): f", and this version needs {OLDEST_SCHEMA}",
            (State.AHEAD, True): ", of a newer release than this one",
            (State.AHEAD, False): f", for code of {self.oldest} and newer; this is of {self.head}",
            (State.UNKNOWN, False): f", which this version, of {self.head}, does not know",
        }
        return f"the schema is at {self.revision}" + more[self.state, self.usable]

    @property
    def step(self) -> str:
        if self.state in {State.EMPTY, State.BEHIND}:
            return "els migrate"
        return "update this process to the release that made this schema"


def read_standing(conn: Conn) -> Standing:
    """Read where the schema stands. Raises psycopg.Error, InsufficientPrivilege above all."""
    try:
        row = conn.execute(READ).fetchone()
    except psycopg.errors.UndefinedTable:
        row = None
    return standing(row["version_num"], row["mark"]) if row else standing(None, None)


def standing(revision: str | None, comment: str | None) -> Standing:
    """Compare a revision, and what its database says of it, with this code."""
    known, newest = known_revisions(), head_revision()
    if revision is None:
        return Standing(State.EMPTY, None, newest, usable=False)
    mark = read_mark(comment, revision)
    if revision == newest:
        return Standing(State.HEAD, revision, newest, usable=True)
    if revision in known:
        usable = revision >= OLDEST_SCHEMA
        return Standing(State.BEHIND, revision, newest, usable, waits=mark.waits if mark else None)
    if mark is None:
        return Standing(State.UNKNOWN, revision, newest, usable=False)
    return Standing(State.AHEAD, revision, newest, mark.oldest <= newest, oldest=mark.oldest)


@dataclass(frozen=True)
class Mark:
    """What the comment of `alembic_version` says."""

    revision: str  # which it is about
    oldest: str  # code that works on this revision
    waits: str | None = None  # the migration that `els migrate` has stopped before

    def __str__(self) -> str:
        return json.dumps({name: each for name, each in asdict(self).items() if each})


def read_mark(comment: str | None, revision: str) -> Mark | None:
    """Read the comment of `alembic_version`; None where it is not about this revision."""
    try:
        said = json.loads(comment or "")
        mark = Mark(said["revision"], said["oldest"], said.get("waits"))
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return mark if mark.revision == revision and isinstance(mark.oldest, str) else None


def head_revision() -> str:
    """Return the newest revision that this code knows, without Alembic: workers stay small."""
    return max(known_revisions())


def known_revisions() -> set[str]:
    return {path.name.partition("_")[0] for path in MIGRATIONS.glob("[0-9]*_*.py")}
