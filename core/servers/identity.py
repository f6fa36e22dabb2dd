"""Which database is it? Two names may lead to one, and one name to two."""

from hashlib import sha256

import psycopg

from core.db.connection import Conn, connect_once
from core.errors import BadSettings
from core.servers.postgres_url import address, parameters


def identity(conn: Conn) -> str | None:
    """Return a word for this cluster, database and schema; None where our role may not see one.

    A replica has that of its primary. Raises psycopg.Error where the server does not answer.
    """
    try:
        row = conn.execute(
            "SELECT (SELECT system_identifier FROM pg_control_system())::text AS cluster,"
            " current_database() AS database, current_schema() AS schema"
        ).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    assert row is not None
    if row["schema"] is None:  # it may not enter any, so nobody knows which one it works in
        return None
    said = "/".join((row["cluster"], row["database"], row["schema"]))
    return sha256(said.encode()).hexdigest()[:16]


def identity_of(url: str) -> str | None:
    """Connect and return the identity; None where Postgres does not say it."""
    try:
        with connect_once(url) as conn:
            return identity(conn)
    except psycopg.Error:
        return None


def location(url: str) -> str:
    """Name host, port, database and search path of a URL for people; no user, no password."""
    try:
        given, path = parameters(url), address(url).settings.get("search_path")
    except BadSettings:
        return "unknown"
    host = given.get("host") or given.get("hostaddr") or given.get("service") or "local"
    name = given.get("dbname") or given.get("user") or ""
    schema = f" (search_path {path})" if path else ""
    return f"{host}:{given.get('port') or 5432}/{name}{schema}"
