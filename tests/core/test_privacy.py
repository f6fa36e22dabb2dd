"""What is written of an error, of a line of a library and of an id names nobody, and says why."""

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
import redis

from core import records, redaction
from core.errors import UnknownBatch
from core.faults import describe, safe_message

ROOT = Path(__file__).parents[2]
NAME = "Åsa (A) 'Öberg'.docx"


def raised(step):
    try:
        step()
    except Exception as error:  # noqa: BLE001 - it is what is tested
        return error
    raise AssertionError("nothing was raised")


def caused(error, cause):
    error.__cause__ = cause
    return error


def reply(text):
    """Make the error that redis-py raises at this reply of a server."""
    return redis.connection.DefaultParser.parse_error(text)


# --- errors --------------------------------------------------------------------------------------

STATEMENTS = {
    "a row that is refused": (
        f"INSERT INTO t VALUES (2, $${NAME}$$)",
        "CheckViolation: new row for relation"
        ' "t" violates check constraint "small"; Failing row contains (…)',
    ),
    "a key that is there": (
        f"INSERT INTO t VALUES (0, $${NAME}$$)",
        'UniqueViolation: duplicate key value violates unique constraint "t_pkey"; Key (…)',
    ),
    "a value that is none": (
        f"SELECT $${NAME}$$::int",
        "InvalidTextRepresentation: SQLSTATE 22P02",
    ),
    "what a function says": (
        f"DO $a$ BEGIN RAISE EXCEPTION $${NAME}$$; END $a$",
        "RaiseException: SQLSTATE P0001",
    ),
    "what it says under another code": (
        f"DO $a$ BEGIN RAISE EXCEPTION $${NAME}$$ USING ERRCODE = '53100'; END $a$",
        "DiskFull: SQLSTATE 53100",
    ),
    "a table that is missing": (
        "SELECT FROM nowhere",
        'UndefinedTable: relation "nowhere" does not exist',
    ),
    "a server that takes no writes": (
        "SET TRANSACTION READ ONLY; INSERT INTO t VALUES (0, 'x')",
        "ReadOnlySqlTransaction: cannot execute INSERT in a read-only transaction",
    ),
}


@pytest.fixture(scope="module")
def refuse(database_url):
    """Run a statement that Postgres refuses; return its error."""

    def error_of(statement):
        with psycopg.connect(database_url) as conn, conn.transaction(force_rollback=True):
            conn.execute("CREATE TABLE t (n int, name text PRIMARY KEY)")
            conn.execute("ALTER TABLE t ADD CONSTRAINT small CHECK (n < 1)")
            conn.execute("INSERT INTO t VALUES (0, %s)", [NAME])
            with conn.transaction() as inner:
                error = raised(lambda: conn.execute(statement))
                raise psycopg.Rollback(inner)
        return error

    return error_of


@pytest.mark.parametrize(("statement", "text"), STATEMENTS.values(), ids=STATEMENTS)
def test_an_error_of_postgres_is_written_without_a_row(refuse, statement, text):
    error = refuse(statement)

    assert describe(error).endswith(text)
    assert NAME not in redaction.trace_of(error)


OTHERS = {
    "ours": (UnknownBatch("batch b is unknown"), "UnknownBatch: batch b is unknown"),
    "a bug": (KeyError(NAME), "KeyError"),
    "of a cause": (
        caused(ValueError(NAME), ConnectionError("net")),
        "ValueError, caused by ConnectionError: net",
    ),
    "a file": (OSError(2, "No such file", NAME), "FileNotFoundError: [Errno 2] No such file"),
    "no JSON": (raised(lambda: json.loads(f"{{{NAME}")), "JSONDecodeError: Expecting property"),
    "no text": (raised(b"\xffx".decode), "UnicodeDecodeError: invalid start byte"),
    "no memory": (reply("OOM command not allowed"), "OutOfMemoryError: OOM command not allowed"),
    "a replica": (reply("READONLY You can't"), "ReadOnlyError: READONLY You can't"),
    "another type": (reply("WRONGTYPE Operation 'x'"), "ResponseError: WRONGTYPE Operation 'x'"),
    "a command": (reply(f"ERR unknown command '{NAME}'"), "ResponseError: ERR unknown command"),
    "no connection": (redis.ConnectionError("Error 111"), "ConnectionError: Error 111"),
}


@pytest.mark.parametrize(("error", "text"), OTHERS.values(), ids=OTHERS)
def test_another_error_is_written_as_far_as_it_quotes_nothing(error, text):
    assert describe(error).startswith(text)
    assert "berg" not in describe(error) + safe_message(error) + redaction.trace_of(error)


def test_a_command_of_a_pipeline_is_not_quoted(valkey):
    key = f"key-{uuid4().hex}"
    with valkey.pipeline() as pipe:
        pipe.set(key, NAME)
        pipe.lpush(key, NAME)
        error = raised(pipe.execute)
    valkey.delete(key)

    assert "berg" in str(error)
    assert describe(error).startswith("ResponseError: WRONGTYPE Operation against a key")


def test_a_traceback_has_every_cause_and_no_value():
    def fail():
        try:
            {}[NAME]
        except KeyError as error:
            raise ExceptionGroup(NAME, [ValueError(NAME), UnknownBatch("b")]) from error

    error = raised(fail)
    error.add_note(NAME)

    text = redaction.trace_of(error)

    assert text.index("KeyError") < text.index("ExceptionGroup") < text.index("UnknownBatch: b")
    assert "in fail" in text
    assert "berg" not in text


def test_a_loop_of_causes_ends():
    first, second = KeyError(), ValueError()
    first.__cause__, second.__cause__ = second, first

    assert "ValueError" in redaction.trace_of(first)
    assert describe(first)


# --- ids -----------------------------------------------------------------------------------------


def test_an_id_is_shown_in_its_form_only():
    known = str(uuid4())

    assert redaction.field("batch_id", "batch-1") == "batch-1"
    assert redaction.field("event_id", UUID(known)) == known
    assert redaction.field("batch_id", NAME) == redaction.field("event_id", "batch-1") == "…"
    assert redaction.field("original_file_name", "batch-1") == "…"
    assert redaction.field("batch_id", "batch-1\n") == "…"


@pytest.mark.parametrize("given", [NAME, "", "a\ud800b", None, 7, ["a"]], ids=repr)
def test_the_id_of_a_message_that_is_no_uuid_becomes_one(given):
    assert UUID(redaction.task_id(given)) == UUID(redaction.task_id(given))
    assert redaction.task_id(given) != redaction.task_id(NAME + "x")


def test_the_id_of_a_message_that_is_a_uuid_stays():
    known = str(uuid4())

    assert redaction.task_id(known) == known


# --- lines ---------------------------------------------------------------------------------------

LIBRARY = """
import logging

log = logging.getLogger("library")
TEXT = "a message of %(who)s came %(n)d times"


ID = "7c1f3a52-0d5e-4c8a-9d44-1f0d5c3a2b11"


def say(who, error):
    log.error("unknown task %r of %s[%s]: %r", who, "els.a", ID, error)
    log.warning(TEXT, {"who": who, "n": 7})
    log.warning("before: " + who)
    log.warning(f"also {who}")
    log.warning(error)
    log.info("%d %s %.1fms", 200, f"GET /{who}", 3.14)
    log.info("no arguments %s")
    log.info("too few %s %s", who)
    try:
        raise ValueError(who)
    except ValueError:
        log.exception("it failed")
"""


@pytest.fixture
def library(tmp_path):
    """A module of somebody else that logs through a handler of its own."""
    path = tmp_path / "library.py"
    path.write_text(LIBRARY)
    names: dict = {}
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(records._record)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))
    exec(compile(LIBRARY, str(path), "exec"), names)
    logger = names["log"]
    logger.handlers, logger.level, logger.propagate = [handler], logging.DEBUG, False
    yield names["say"], lines
    logging.setLogRecordFactory(before)
    logger.handlers = []


def test_a_library_says_what_its_source_says(library):
    say, lines = library

    say(NAME, KeyError(NAME))

    texts = [line.partition(" (library.py:")[0] for line in lines]
    assert texts == [
        "unknown task '…' of …[7c1f3a52-0d5e-4c8a-9d44-1f0d5c3a2b11]: 'KeyError'",
        "a message of … came 7 times",
        "…",
        "…",
        "KeyError",
        "200 … 3.1ms",
        "no arguments %s",
        "too few %s %s",
        "it failed",
    ]
    assert lines[-1].endswith("ValueError")
    assert "berg" not in "".join(lines)


ENDS = f"""
import sys, threading, warnings
from core import records
records.install()
name = {NAME!r}
def fail(): raise ValueError(name)
class Odd:
    def __del__(self): fail()
thread = threading.Thread(target=fail, name="worker-thread")
thread.start(); thread.join()
Odd()
warnings.warn("of " + name)
warnings.warn("plain", RuntimeWarning)
fail()
"""


def test_what_ends_a_process_or_a_thread_is_written_without_its_text(tmp_path):
    program = tmp_path / "ends.py"
    program.write_text(ENDS)
    ended = subprocess.run(
        [sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.count("in fail") == ended.stderr.count("\nValueError\n") == 3
    assert "thread worker-thread ended" in ended.stderr
    assert "UserWarning: … (ends.py:" in ended.stderr
    assert "RuntimeWarning: plain (ends.py:" in ended.stderr
    assert "berg" not in ended.stdout + ended.stderr


def test_no_line_of_ours_writes_the_text_of_an_error():
    """`error=str(error)` would: it is `error=describe(error)`."""
    found = []
    for path in [p for name in ("core", "tasks", "ops") for p in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _logs(node):
                found += [f"{path}:{node.lineno}" for each in node.keywords if _is_text(each.value)]

    assert found == []


def _logs(call):
    function = call.func
    known = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
    return known and function.value.id == "log"


def _is_text(value):
    errors = {"error", "raised", "refused", "exc"}
    quoted = isinstance(value, ast.Call) and getattr(value.func, "id", "") in {"str", "repr"}
    return (quoted or isinstance(value, ast.JoinedStr)) and any(
        isinstance(node, ast.Name) and node.id in errors for node in ast.walk(value)
    )
