"""Settings of a session, also where a pooler lends a session of the server for one transaction.

On a connection of its own a session is set once. A pooler gives each transaction to another
session of the server, and may drop or refuse what a connection sets at its start; so there each
transaction begins with its settings, in the same round trip.
"""

import re
from collections.abc import Mapping

from psycopg import sql

# The server's process id that a pooler tells at the start is made up.
SETTLE = """
    SELECT pg_backend_pid(), count(set_config(name, value, pg_backend_pid() <> %(pid)s))
    FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)
"""
IN_FORCE = """
    SELECT pg_backend_pid(), name, current_setting(name), set_config(name, value, true)
    FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)
"""
ELEMENT = re.compile(r'(?:^|,)\s*(?:"((?:[^"]|"")*)"|([^,]*))')  # of a list of identifiers
LISTS = {"search_path", "temp_tablespaces"}  # each element is an identifier


def columns(settings: Mapping[str, str]) -> dict[str, list[str]]:
    """Write settings as the parameters of `SETTLE` and `IN_FORCE`."""
    return {"names": list(settings), "values": list(settings.values())}


def set_local(settings: Mapping[str, str]) -> sql.Composed:
    """Write the commands that set them until the end of the transaction, after BEGIN.

    They take no snapshot: the transaction may still choose its isolation level.
    """
    command = sql.SQL("SET LOCAL {} TO {}")
    return sql.SQL("; ").join(
        command.format(sql.Identifier(*name.split(".")), _value(name, value))
        for name, value in settings.items()
    )


def set_for_one(settings: Mapping[str, str]) -> sql.Composed:
    """Write the statement that sets them for the statement that is sent together with it."""
    call = sql.SQL("set_config({}, {}, true)")
    return sql.SQL("SELECT {}").format(
        sql.SQL(", ").join(
            call.format(sql.Literal(name), sql.Literal(value)) for name, value in settings.items()
        )
    )


def same(name: str, one: str, other: str) -> bool:
    """Compare two values of a setting, which may be written in two ways."""
    return _elements(one) == _elements(other) if name in LISTS else one == other


def _value(name: str, value: str) -> sql.Composable:
    if name not in LISTS:
        return sql.Literal(value)
    return sql.SQL(", ").join(sql.Literal(each) for each in _elements(value))


def _elements(value: str) -> list[str]:
    """Read a list of identifiers as Postgres does: unquoted ones in lower case."""
    found = ELEMENT.findall(value.strip())
    return [quoted.replace('""', '"') or plain.strip().lower() for quoted, plain in found]
