"""What an action of the page is: a plan in words, and the doing."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.db.connection import Conn
from ops.acting import Acting
from ops.client import Sender
from ops.queries.actions import By

Fields = Mapping[str, str]  # of a form or an address


@dataclass(eq=False)
class Refused(Exception):
    """The page does not act; `step` says what a person can do, `back` is where."""

    status: int
    title: str
    reason: str
    step: str
    back: str = "/"


@dataclass(frozen=True)
class Plan:
    """What an action will do; `fields` are what its form sends back, unchanged.

    `asks` names what is still missing: the form asks for it first.
    """

    title: str
    back: str  # the address of what it changes
    fields: Fields
    will: Sequence[str] = ()
    button: str = ""
    needs_reason: bool = False
    asks: str = ""
    shown: Mapping[str, Any] = field(default_factory=dict)  # Any: what the form asks about


@dataclass(frozen=True)
class Seen:
    """What the page knows when it plans: Postgres, and which batches break which rules."""

    conn: Conn
    broken: Mapping[str, Collection[str]]  # titles of rules, by batch


@dataclass(frozen=True)
class Tools:
    """What the page acts with."""

    acting: Acting
    sender: Sender


@dataclass(frozen=True)
class Action:
    """`act` returns a line that says what was done. Both raise Refused; `act` also Refusal."""

    plan: Callable[[Seen, Fields], Plan]
    act: Callable[[Tools, Fields, By], str]


def wrong(what: str, reason: str) -> Refused:
    return Refused(400, f"The page does not understand {what}", reason, "go back and correct it")


def silently(done: int) -> None:
    """Report no progress: the browser waits."""
