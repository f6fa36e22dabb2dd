"""Logs: structlog for our lines and everybody else's, JSON or for the console, on stderr."""

import json
import logging
import re
import sys
from typing import Any

import structlog

from core.settings import Settings
from core.tracing import traceparent

# Ends at the end of its line, or of the JSON string or Python string that holds it.
ROW = re.compile(r"Failing row contains \(.*?\)\.(?=[\\\n\"']|$)", re.DOTALL)

LINE = json.JSONEncoder(default=repr)  # made once: that takes as long as to write a line


class Lines(structlog.WriteLogger):
    """Writes our lines to stderr, under the name of their module."""

    def __init__(self, name: str = "") -> None:
        super().__init__(sys.stderr)
        self.name = name


def configure(settings: Settings, *, for_good: bool = False) -> None:
    """Give every log line of this process the same form. Safe to call again, unless `for_good`.

    Ours do not go through the standard library's loggers, which take more than twice as long.
    """
    shared: list[Any] = [  # Any: structlog types its processors so
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Any]  # Any: structlog types its processors so
    if settings.log_format == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_as_json)]
    else:
        plain = structlog.dev.plain_traceback  # the others show what variables hold
        colors = sys.stderr.isatty()
        last = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    last.append(_hide_rows)
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=Lines,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        cache_logger_on_first_use=for_good,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)  # libraries speak when something is wrong; we say outcomes


def _add_trace(logger: object, method: str, event: Any) -> Any:  # Any: as structlog types them
    """Name the trace and the span that a line belongs to."""
    if parent := traceparent.get():
        _, event["trace_id"], event["span_id"], _ = parent.split("-")
    return event


def _as_json(line: object, default: object) -> str:
    return LINE.encode(line)


def _hide_rows(logger: object, method: str, line: str) -> str:
    """Cut what Postgres quotes of a row that it refuses: files are often named after students."""
    return ROW.sub("Failing row contains (…).", line) if "Failing row" in line else line
