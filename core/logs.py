"""Logs on stderr, as JSON or for the console: this service's lines and those of its libraries.

No line holds what a message says: docs/privacy.md.
"""

import json
import logging
import sys
from typing import Any

import structlog

from core import records, redaction
from core.settings import Settings
from core.tracing import traceparent

LINE = json.JSONEncoder(default=repr)  # made once: making it takes as long as writing a line


class Lines(structlog.WriteLogger):
    """Writes the lines of one module to stderr."""

    def __init__(self, name: str = "") -> None:
        super().__init__(sys.stderr)
        self.name = name


def configure(settings: Settings, *, for_good: bool = False) -> None:
    """Give every log line of this process the same form. Safe to call again, unless `for_good`.

    Our own lines bypass the loggers of the standard library, which take more than twice as long.
    """
    records.install()
    shared: list[Any] = [  # Any: structlog types its processors so
        structlog.contextvars.merge_contextvars,
        _add_trace,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.ExceptionRenderer(_trace),
        redaction.conceal,
    ]
    last: Any = structlog.processors.JSONRenderer(_as_json)  # Any: structlog types it so
    colors = sys.stderr.isatty()
    if settings.log_format == "console" or (colors and settings.log_format is None):
        plain = structlog.dev.plain_traceback  # ours is written by now
        last = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
    structlog.configure(
        processors=[*shared, last],
        logger_factory=Lines,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        cache_logger_on_first_use=for_good,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_add_exception, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)  # of libraries: only what is wrong


def _add_trace(logger: object, method: str, event: Any) -> Any:  # Any: as structlog types them
    if parent := traceparent.get():
        _, event["trace_id"], event["span_id"], _ = parent.split("-")
    return event


def _as_json(line: object, default: object) -> str:
    return LINE.encode(line)


def _trace(exc_info: Any) -> str:  # Any: a tuple as `sys.exc_info` returns it
    return redaction.trace_of(exc_info[1]) if exc_info[1] else ""


def _add_exception(logger: object, method: str, event: Any) -> Any:  # Any: as structlog types them
    if text := event["_record"].exc_text:
        event["exception"] = text
    return event
