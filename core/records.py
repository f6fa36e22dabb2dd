"""Log records of libraries: what they say, without the values of which they say it.

Celery logs a whole message that it does not know, Kombu one that it cannot decode. So whatever a
library logs in this process, at any level and through any handler, keeps its level, its text as the
library's source has it, where it was logged, numbers and ids, and errors as `core.faults` describes
them. Everything else is "…".
"""

import ast
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from core.faults import describe
from core.redaction import HIDDEN, SHA256, UUID, trace_of

ROOT = Path(__file__).parents[1]
OURS = tuple(
    f"{ROOT / name}/"
    for name in ("bench", "core", "durable_redis", "examples", "migrations", "ops", "tasks")
)
SHOWN = re.compile(  # ids; processes of a pool, and how they ended
    rf"{UUID}|{SHA256}|\w+PoolWorker-\d+|MainProcess|signal \d+(?: \(\w+\))?|exitcode \d+"
)

_knows: list[Callable[[str], object]] = []


def know(contains: Callable[[str], object]) -> None:
    """Show also the words for which this is true, such as the names of our tasks."""
    _knows.append(contains)


def install() -> None:
    """Conceal what libraries log in this process from now on, and what ends it or a thread.

    Hooks that somebody else has set stay.
    """
    logging.setLogRecordFactory(_record)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _ended
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _ignored
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_ended
    if warnings.showwarning is getattr(warnings, "_showwarning_orig", None):
        warnings.showwarning = _show_warning


def _record(  # noqa: PLR0913, PLR0917 - as `logging` calls it
    name: str,
    level: int,
    path: str,
    line: int,
    msg: object,
    args: Any,  # Any: a tuple, or a tuple of one mapping, as `logging` has them
    exc_info: Any,  # Any: likewise; None, or a tuple of three
    func: str | None = None,
    sinfo: str | None = None,
    **more: Any,
) -> logging.LogRecord:
    record = logging.LogRecord(name, level, path, line, msg, args, None, func, sinfo, **more)
    if exc_info and exc_info[1]:
        record.exc_text = trace_of(exc_info[1])
    if path.startswith(OURS):
        record.args = _each(record.args, _described)
        record.msg = _described(msg)
    else:
        record.msg, record.args = f"{_text(record)} ({_place(path)}:{line})", ()
    return record


def _text(record: logging.LogRecord) -> str:
    """Return the text of a library, which its source must hold, with what may be shown."""
    if not isinstance(record.msg, str):
        return f"{_shown(record.msg)}"
    text = record.msg.strip()
    if not (_is_constant(record) or text in _literals(record.pathname)):
        return HIDDEN
    if not record.args:
        return text
    try:
        return str(text % _each(record.args, _shown))
    except (TypeError, ValueError, KeyError):
        return text


def _is_constant(record: logging.LogRecord) -> bool:
    """Tell whether the function that logs has this text in its code."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_code.co_filename != record.pathname:
        frame = frame.f_back
    return frame is not None and record.msg in frame.f_code.co_consts


@lru_cache(maxsize=200)
def _literals(path: str) -> frozenset[str]:
    """List the strings in a source file: what a program says without anybody's data."""
    try:
        nodes = ast.walk(ast.parse(Path(path).read_bytes()))
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    texts = (node.value for node in nodes if isinstance(node, ast.Constant))
    return frozenset(text.strip() for text in texts if isinstance(text, str))


def _each(args: Any, change: Callable[[object], object]) -> Any:  # Any: as `logging` has them
    if isinstance(args, Mapping):
        return {key: change(value) for key, value in args.items()}
    return tuple(change(value) for value in args or ())


def _described(value: object) -> object:
    return describe(value) if isinstance(value, BaseException) else value


def _shown(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case BaseException():
            return describe(value)
        case str() if SHOWN.fullmatch(value) or any(knows(value) for knows in _knows):
            return value
        case type():
            return value.__name__
    return HIDDEN


def _place(path: str) -> str:
    return path.rpartition("site-packages/")[2] if "site-packages/" in path else Path(path).name


# --- what Python itself writes -------------------------------------------------------------------


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _write(trace_of(error) if not issubclass(kind, KeyboardInterrupt) else kind.__name__)


def _thread_ended(about: threading.ExceptHookArgs) -> None:
    if about.exc_value is not None and about.exc_type is not SystemExit:
        name = about.thread.name if about.thread else "unknown"
        _write(f"thread {name} ended:\n{trace_of(about.exc_value)}")


def _ignored(about: "sys.UnraisableHookArgs") -> None:
    if about.exc_value is not None:
        _write(f"an error was ignored:\n{trace_of(about.exc_value)}")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = str(message).strip()
    said = text if text in _literals(filename) else HIDDEN
    _write(f"{category.__name__}: {said} ({_place(filename)}:{lineno})", file)


def _write(text: str, file: TextIO | None = None) -> None:
    if (file := file or sys.stderr) is not None:
        print(text, file=file)
