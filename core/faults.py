"""Whose fault is an exception? The answer decides what happens to its message.

docs/faults.md lists the errors of each fault. A test checks every SQLSTATE class of Postgres and
every error class of redis-py.

The text of an error may quote a message or a row, and with it names. `safe_message` and `describe`
write what quotes neither; docs/privacy.md lists what that is.
"""

import os
import re
from enum import StrEnum
from json import JSONDecodeError

import psycopg
import redis

from core.errors import ELSError, Refusal, SlotsInFlight

# Postgres refuses the values of a message with these classes: data, and constraints.
VALUES_REFUSED = ("22", "23")
# Serialization, deadlock, lock timeout, and a cancelled statement (our own timeout).
CONTENTION_SQLSTATES = frozenset({"40001", "40P01", "55P03", "57014"})
QUOTING = ("22", "P0")  # classes whose primary message may quote a value
ROW = re.compile(r"(?:Failing row contains|Key) \(")  # how a DETAIL begins that quotes a row
PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
CODE = re.compile(r"(?!ERR$)[A-Z]+$")  # such as READONLY, whose text quotes no argument
QUOTE = re.compile(r"""['"`\n]|, with args""")
CAUSES = 5  # of an error without a text
LONGEST = 2000  # characters of a text about an error

# Those about connections. Other modules add errors of libraries that core does not have.
_trusted: list[type[BaseException]] = [
    psycopg.OperationalError,  # without a SQLSTATE: of libpq, or of the pool
    psycopg.InterfaceError,
    redis.ConnectionError,
    redis.TimeoutError,
    ConnectionError,
    TimeoutError,
]


class Fault(StrEnum):
    """What has to change before a worker can execute the message."""

    MESSAGE = "message"  # its body: it becomes a dead letter
    CONTENTION = "contention"  # others use the same rows: the worker retries for a while
    ENVIRONMENT = "environment"  # a server: the worker waits until the server takes writes again
    BUG = "bug"  # this program: the worker retries a few times, then it becomes a dead letter


def fault(error: BaseException) -> Fault:
    match error:
        case psycopg.Error() if error.sqlstate:
            return _fault_of_sqlstate(error.sqlstate)
        case Refusal() | psycopg.DataError():  # psycopg refuses a value, such as text with a NUL
            return Fault.MESSAGE
        case SlotsInFlight() | redis.WatchError():
            return Fault.CONTENTION
        case redis.DataError() | psycopg.ProgrammingError() | psycopg.NotSupportedError():
            return Fault.BUG  # the libraries refuse what this program passed to them
        case psycopg.Error() | redis.RedisError() | OSError():
            return Fault.ENVIRONMENT  # psycopg without a SQLSTATE: the connection, or the pool
    return Fault.BUG


def _fault_of_sqlstate(state: str) -> Fault:
    if state.startswith(VALUES_REFUSED):
        return Fault.MESSAGE
    return Fault.CONTENTION if state in CONTENTION_SQLSTATES else Fault.ENVIRONMENT


def sqlstate(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of a database error, or of the database error that caused this one."""
    while error is not None:
        if isinstance(error, psycopg.Error) and error.sqlstate:
            return error.sqlstate
        error = error.__cause__
    return None


def trust(*kinds: type[BaseException]) -> None:
    """Let the texts of these errors be written: none of them quotes a message or a row."""
    _trusted.extend(kinds)


def describe(error: BaseException) -> str:
    """Write an error by its class, what of its text is safe, or else the error that caused it."""
    names, cause = [], error
    for _ in range(CAUSES):
        text = _safe_text(cause)
        names.append(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)
        if text or cause.__cause__ is None:
            break
        cause = cause.__cause__
    return ", caused by ".join(names)


def safe_message(error: BaseException) -> str:
    """Write an error for people: our own as they are, any other as `describe` does."""
    return (isinstance(error, ELSError) and _safe_text(error)) or describe(error)


def server_message(error: Exception) -> str:
    """Write an error in the words of its server, without rows. For the record in Postgres only."""
    primary = isinstance(error, psycopg.Error) and error.diag.message_primary
    return clean(f"{type(error).__name__}: {primary}") if primary else describe(error)


def clean(text: str) -> str:
    """Cut a text to 2 000 characters, without those that Postgres cannot store."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:LONGEST]


def _safe_text(error: BaseException) -> str:
    """Return what an error says, as far as it quotes no message and no row; else nothing."""
    text = ""
    match error:
        case ELSError():
            text = str(error)
        case psycopg.Error() if error.sqlstate:
            text = _primary(error)
        case redis.ResponseError():
            text = _reply(error)
        case OSError() if error.errno:
            text = f"[Errno {error.errno}] {os.strerror(error.errno)}"
        case JSONDecodeError():
            text = f"{error.msg} at character {error.pos}"
        case UnicodeError():
            text = str(getattr(error, "reason", ""))
        case _ if isinstance(error.__cause__, redis.ResponseError):
            pass  # it repeats the text of its cause
        case _ if isinstance(error, tuple(_trusted)):
            text = str(error)
    return clean(text)


def _primary(error: psycopg.Error) -> str:
    """Return the primary message of Postgres. Its DETAIL and CONTEXT quote rows and parameters."""
    state, about = error.sqlstate or "", error.diag
    raised = about.source_function == "exec_stmt_raise"  # by a function, which may say anything
    if raised or state.startswith(QUOTING) or not about.message_primary:
        return f"SQLSTATE {state}"
    row = ROW.match(about.message_detail or "")
    return about.message_primary + (f"; {row[0]}…)" if row else "")


def _reply(error: redis.ResponseError) -> str:
    """Return the reply of Redis; of one without a code of its own, what comes before a quote."""
    text = PIPELINE.sub("", str(error))  # redis-py's words, with the arguments of the command
    code, _, rest = text.partition(" ")
    if error.status_code:
        code, rest = error.status_code, text
    return f"{code} {rest if CODE.match(code) else QUOTE.split(rest)[0]}".strip()
