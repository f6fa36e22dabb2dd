"""Traces, as core knows them: the `traceparent` (W3C) of the work at hand, and spans for its parts.

Core has no tracer and needs none: nothing is traced until `tasks/tracing.py` sets one.
"""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Protocol

traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


class Tracer(Protocol):
    """Starts a span that ends with the context; with `parent` None, a trace of its own."""

    def __call__(
        self, name: str, parent: str | None, sends: bool, about: dict[str, str]
    ) -> AbstractContextManager[object]:
        """Name it by a word or two; `sends` marks a message; `about` are ids."""


_tracers: list[Tracer] = []  # none or one


def span(
    name: str, parent: str | None = None, *, sends: bool = False, **about: str
) -> AbstractContextManager[object]:
    """Do a part of the work under a span, where there is a tracer."""
    for tracer in _tracers:
        return tracer(name, parent, sends, about)
    return nullcontext()


def use(*tracers: Tracer) -> None:
    """Trace with this tracer from now on, in this process; with none, not at all."""
    _tracers[:] = tracers
