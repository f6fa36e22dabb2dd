"""Logs on stderr, as JSON or for the console: this service's lines and those of its libraries."""

import json
import logging
import re
import sys
from typing import Any

import structlog

from core.settings import Settings
from core.tracing import traceparent

# It ends with its line, or with the JSON or Python string that holds it.
ROW = re.compile(r"Failing row contains \(.*?\)\.(?=[\\\n\"']|$)", re.DOTALL)

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
        plain = structlog.dev.plain_traceback  # the other formatters print the values of variables
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
    root.setLevel(logging.WARNING)  # of libraries: only what is wrong


def _add_trace(logger: object, method: str, event: Any) -> Any:  # Any: as structlog types them
    if parent := traceparent.get():
        _, event["trace_id"], event["span_id"], _ = parent.split("-")
    return event


def _as_json(line: object, default: object) -> str:
    return LINE.encode(line)


def _hide_rows(logger: object, method: str, line: str) -> str:
    """Cut the row that Postgres quotes when it refuses one: file names often name students."""
    return ROW.sub("Failing row contains (…).", line) if "Failing row" in line else line
