"""Whose fault is an exception? None is undecided, and docs/faults.md says the same."""

import inspect
import re
from pathlib import Path

import psycopg
import pytest
import redis
import redis.exceptions
from psycopg import errors as pg
from psycopg_pool import PoolClosed, PoolTimeout

from core import errors
from core.errors import BrokenSeal, Refusal, SlotsInFlight, UnknownBatch
from core.faults import CONTENTION_SQLSTATES, VALUES_REFUSED, Fault, fault, safe_message

PAGE = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
# Appendix A of Postgres' manual: every class of SQLSTATE.
CLASSES = {
    *("00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21"),
    *("22", "23", "24", "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D"),
    *("3F", "40", "42", "44", "53", "54", "55", "57", "58", "72", "F0", "HV", "P0", "XX"),
}
KNOWN = {
    error.sqlstate: error
    for _, error in inspect.getmembers(pg, inspect.isclass)
    if issubclass(error, psycopg.Error) and error.sqlstate
}


def expected(state):
    if state in {"40001", "40P01", "55P03", "57014"}:
        return Fault.CONTENTION
    return Fault.MESSAGE if state[:2] in {"22", "23"} else Fault.ENVIRONMENT


@pytest.mark.parametrize("state", sorted(KNOWN))
def test_every_sqlstate_of_postgres_has_its_fault(state):
    assert fault(KNOWN[state]()) is expected(state)


def test_every_class_of_the_appendix_has_an_error_and_a_line_in_the_page():
    unknown = {state for state in CLASSES if not any(known[:2] == state for known in KNOWN)}

    assert unknown <= {"00", "01"}  # success and warnings, which psycopg raises for nobody
    assert [state for state in sorted(CLASSES) if f"`{state}`" not in PAGE] == []
    assert {known[:2] for known in KNOWN} <= CLASSES


@pytest.mark.parametrize("state", ["ZZ001", "XX123", "5300X", "99999", "P0ABC"])
def test_a_sqlstate_that_nobody_knows_is_the_environments(state):
    error = psycopg.DatabaseError()
    error.sqlstate = state

    assert fault(error) is Fault.ENVIRONMENT


REDIS = {
    name: error
    for name, error in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(error, redis.RedisError)
}


def made(kind):
    try:
        return kind("refused")
    except TypeError:
        return kind("refused", "1234", "host", 1)


@pytest.mark.parametrize("name", sorted(REDIS))
def test_every_error_of_redis_has_its_fault(name):
    ours = {"DataError": Fault.BUG, "WatchError": Fault.CONTENTION}

    assert fault(REDIS[name].__new__(REDIS[name])) is ours.get(name, Fault.ENVIRONMENT)


OURS = {
    name: error
    for name, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, errors.ELSError)
}


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_error_of_ours_has_its_fault(name):
    refusal = issubclass(OURS[name], Refusal)
    otherwise = Fault.CONTENTION if name == "SlotsInFlight" else Fault.BUG

    assert fault(OURS[name].__new__(OURS[name])) is (Fault.MESSAGE if refusal else otherwise)


OTHERS = {
    "no free connection": (PoolTimeout(), Fault.ENVIRONMENT),
    "pool closed": (PoolClosed(), Fault.ENVIRONMENT),
    "connection lost": (psycopg.OperationalError(), Fault.ENVIRONMENT),
    "connection closed": (psycopg.InterfaceError(), Fault.ENVIRONMENT),
    "connection timeout": (pg.ConnectionTimeout(), Fault.ENVIRONMENT),
    "text with a NUL": (psycopg.DataError(), Fault.MESSAGE),
    "a value psycopg cannot adapt": (psycopg.ProgrammingError(), Fault.BUG),
    "network": (ConnectionResetError(), Fault.ENVIRONMENT),
    "name not found": (OSError(), Fault.ENVIRONMENT),
    "timeout": (TimeoutError(), Fault.ENVIRONMENT),
    "refusal": (UnknownBatch(), Fault.MESSAGE),
    "in flight": (SlotsInFlight(), Fault.CONTENTION),
    "broken seal": (BrokenSeal(), Fault.BUG),
    "bug": (KeyError(), Fault.BUG),
    "out of memory": (MemoryError(), Fault.BUG),
}


@pytest.mark.parametrize(("error", "whose"), OTHERS.values(), ids=OTHERS.keys())
def test_other_errors_have_their_fault(error, whose):
    assert fault(error) is whose


def test_the_page_names_what_the_code_decides():
    contention = set(re.findall(r"`(\d\w{4})`", _row("contention")))
    values = set(re.findall(r"`(\d\d)`", _row("the message's")))

    assert contention == set(CONTENTION_SQLSTATES)
    assert values == set(VALUES_REFUSED)


def _row(name):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name}")]
    return row


def test_a_message_is_written_so_that_postgres_can_keep_it():
    assert safe_message(UnknownBatch("a\0b\ud800c")) == "a\\0b\\ud800c"
    assert safe_message(KeyError()) == "KeyError"
    assert len(safe_message(UnknownBatch("x" * 5000))) == 2000
