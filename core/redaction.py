"""What may be shown of what others sent: in logs, to monitors, in traces.

An id is shown if it has the form that the contract gives it: no other text comes through it.
docs/privacy.md lists what is shown.
"""

import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from core.catalogue import EVENTS
from core.faults import describe
from core.messages import IDENTIFIER

HIDDEN = "…"
UUID = "[0-9a-fA-F-]{36}"  # the exact form takes longer to match, and hides no more
SHA256 = "[0-9a-f]{64}"
TASK_ID = re.compile(f"{UUID}|{SHA256}").fullmatch
FORMS = {
    **dict.fromkeys(("batch_id", "essay_id", "subject"), re.compile(IDENTIFIER).fullmatch),
    **dict.fromkeys(("event_id", "correlation_id", "id"), re.compile(UUID).fullmatch),
    "type": re.compile("|".join(EVENTS)).fullmatch,
}
IN_LINES = {**FORMS, "task_id": TASK_ID}
DETAIL = "\nDETAIL:"  # what follows in an error of Postgres quotes a row

Line = Any  # a line as structlog has it: a dict that processors change


def field(name: str, value: object) -> str:
    """Return a field of a message as text if it has its form, else "…"."""
    text = str(value)
    return text if name in FORMS and FORMS[name](text) else HIDDEN


def task_id(given: object) -> str:
    """Return the id of a message; for one that is no UUID, a UUID made of it.

    Senders choose ids. The dead letter has the id itself.
    """
    text = str(given)
    return (
        text if TASK_ID(text) else str(uuid5(NAMESPACE_OID, text.encode("utf-8", "replace").hex()))
    )


def conceal(logger: object, method: str, line: Line) -> Line:
    """Hide each field of our log line that does not have its form. A processor of structlog."""
    for name, value in line.items():
        if form := IN_LINES.get(name):
            if type(value) is not str or not form(value):
                line[name] = task_id(value) if name == "task_id" else field(name, value)
        elif type(value) is str:
            if DETAIL in value:
                line[name] = value.partition(DETAIL)[0]
        elif name == "batches":
            line[name] = [field("batch_id", each) for each in value]
        elif isinstance(value, BaseException):
            line[name] = describe(value)
    return line


def trace_of(error: BaseException) -> str:
    """Write the traceback of an error and its causes: lines of code, and no values."""
    return "\n".join(_lines(error)).rstrip()


def _lines(error: BaseException) -> Iterator[str]:
    for each, link in reversed(list(_causes(error))):
        yield "Traceback (most recent call last):"
        frames = traceback.extract_tb(each.__traceback__)
        yield "".join(frames.format()).rstrip() or "  (no frames)"
        yield describe(each)
        for nested in getattr(each, "exceptions", ()):  # of an exception group
            yield trace_of(nested)
        if link:
            yield f"\n{link}\n"


def _causes(error: BaseException) -> Iterable[tuple[BaseException, str]]:
    """Go from an error to what it came of, with the words that link them."""
    seen: set[int] = set()
    link, each = "", error
    while id(each) not in seen:
        seen.add(id(each))
        yield each, link
        if each.__cause__ is not None:
            link, each = "It caused the following error:", each.__cause__
        elif each.__context__ is not None and not each.__suppress_context__:
            link, each = "While it was handled, another error occurred:", each.__context__
