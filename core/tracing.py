"""The `traceparent` (W3C) of the current work, and spans for its parts.

Core has no tracer: it traces nothing until `tasks/tracing.py` sets one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

# Starts a span: its name, its parent (None: a new trace), whether it sends a message, its ids.
Tracer = Callable[[str, str | None, bool, dict[str, str]], AbstractContextManager[object]]

traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)
_tracers: list[Tracer] = []  # none or one


def span(
    name: str, parent: str | None = None, *, sends: bool = False, **ids: str
) -> AbstractContextManager[object]:
    """Trace what the context does as one span, if this process has a tracer."""
    return _tracers[0](name, parent, sends, ids) if _tracers else nullcontext()


def use(*tracers: Tracer) -> None:
    """Trace with this tracer in this process from now on; without one, stop tracing."""
    _tracers[:] = tracers
