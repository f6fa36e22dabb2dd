"""What the service needs of Postgres: version, schema, rights, settings, clock."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import cast

import psycopg

from core.db.connection import Conn, Prepare, UnfitPooler, connect_once
from core.errors import ELSError
from core.schema import State, read_standing
from core.servers.away import away
from core.servers.finding import Finding, Severity, skew
from core.servers.obstacles import absent, elsewhere, fault, hidden_rows, read_only
from core.servers.rights import RIGHTS

OLDEST_POSTGRES = 130_000  # the oldest that the project of Postgres supported lately
NO_TABLE = """
    SELECT name FROM unnest(%s::text[]) AS needed (name)
    WHERE to_regclass(name) IS NULL ORDER BY name
"""
LACKING = """
    SELECT name, verb FROM unnest(%(names)s::text[], %(verbs)s::text[]) AS needed (name, verb)
    WHERE CASE
        WHEN verb = 'DELETE' THEN NOT has_table_privilege(to_regclass(name), verb)
        ELSE NOT has_any_column_privilege(to_regclass(name), verb)
    END
"""
TURNED_OFF = "SELECT name FROM pg_settings WHERE name = ANY(%s) AND setting = 'off' ORDER BY name"
DURABLE = {  # settings, and what happens without them
    "fsync": "a crash of its machine may destroy the database",
    "full_page_writes": "a crash of its machine may destroy the database",
    "synchronous_commit": "a crash of the server forgets outcomes of messages that are gone",
}


def find_in_postgres(
    url: str, prepare: Prepare, connect: Callable[..., Conn] = connect_once
) -> list[Finding]:
    """Check Postgres by a connection of its own; an error is a finding."""
    try:
        with connect(url, prepare=prepare) as conn:
            return check_postgres(conn)
    except UnfitPooler as error:
        why = "statements would run with other settings, or those of others would"
        return [Finding("postgres", Severity.FAULT, error.wrong, why, error.step)]
    except (psycopg.Error, ELSError) as error:
        return [away("postgres", url, error)]


def check_postgres(conn: Conn) -> list[Finding]:
    """Check Postgres over a connection like those of the service. Raises psycopg.Error."""
    version = conn.info.server_version
    if version < OLDEST_POSTGRES:
        wrong = f"it is version {version // 10_000}"
        why = f"the service needs {OLDEST_POSTGRES // 10_000} or newer"
        return [Finding("postgres", Severity.FAULT, wrong, why, "upgrade the server")]
    missing = missing_for_work(conn)
    found = [missing] if missing else [*_other_schema(conn)]
    encoding = other_encoding(conn)
    found += [encoding] if encoding else []
    return [*found, *_settings_of(conn), *skew("postgres", lambda: _now(conn))]


def other_encoding(conn: Conn) -> Finding | None:
    """Warn of a database that is not in UTF8: names that it cannot hold make dead letters."""
    encoding = conn.info.parameter_status("server_encoding")
    if encoding in (None, "UTF8"):  # None: a pooler does not say
        return None
    wrong, why = f"the database is in {encoding}, not in UTF8", "names need every character"
    step = "createdb --encoding=UTF8 --template=template0 NAME, and restore a dump into it"
    return Finding("postgres", Severity.WARNING, wrong, why, step)


def missing_for_work(conn: Conn) -> Finding | None:
    """Find what keeps this connection from any work. Raises psycopg.Error."""
    return read_only(conn) or schema_lacks(conn) or _rights(conn) or hidden_rows(conn)


def schema_lacks(conn: Conn) -> Finding | None:
    """Find a schema, or tables of it, that this code cannot work on. Raises psycopg.Error."""
    found = _schema(conn)
    tables = conn.execute(NO_TABLE, [list(RIGHTS)]).fetchall()
    return found or (absent(conn, [row["name"] for row in tables]) if tables else None)


def _schema(conn: Conn) -> Finding | None:
    try:
        found = read_standing(conn)
    except psycopg.errors.InsufficientPrivilege:
        return _no_rights(["SELECT ON alembic_version"], conn)
    if found.state is State.EMPTY and (finding := elsewhere(conn)):
        return finding
    return None if found.usable else fault(found.wrong, found.step)


def _other_schema(conn: Conn) -> Iterator[Finding]:
    """Warn of a schema that this version can use, and that is not its own: during an upgrade."""
    found = read_standing(conn)
    if found.state is not State.HEAD:
        why = "this version works on it, as during an upgrade"
        yield Finding("postgres", Severity.WARNING, found.wrong, why, found.step)


def _rights(conn: Conn) -> Finding | None:
    needed = [(name, verb) for name, verbs in RIGHTS.items() for verb in verbs]
    names, verbs = zip(*needed, strict=True)
    rows = conn.execute(LACKING, {"names": list(names), "verbs": list(verbs)}).fetchall()
    return _no_rights([f"{row['verb']} ON {row['name']}" for row in rows], conn) if rows else None


def _no_rights(lacking: list[str], conn: Conn) -> Finding:
    role = conn.info.user
    step = "; ".join(f"GRANT {each} TO {role}" for each in lacking)
    return fault(f"the role {role} lacks {', '.join(lacking)}", step)


def _settings_of(conn: Conn) -> Iterator[Finding]:
    for row in conn.execute(TURNED_OFF, [list(DURABLE)]):
        name = row["name"]
        step = f"{name} = on, in postgresql.conf or for this role"
        yield Finding("postgres", Severity.WARNING, f"{name} is off", DURABLE[name], step)


def _now(conn: Conn) -> datetime:
    row = conn.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    return cast(datetime, row["now"])


def missing_at(url: str, prepare: Prepare) -> Finding | None:
    """Find what keeps a new connection from any work. Raises UnfitPooler, which no wait mends."""
    try:
        with connect_once(url, prepare=prepare) as conn:
            return missing_for_work(conn)
    except UnfitPooler:
        raise
    except (psycopg.Error, ELSError) as error:
        return away("postgres", url, error)
