"""What keeps a session from our rows although it has the rights, and what ends that."""

from collections.abc import Collection, Iterator, Sequence

from core.db.connection import Conn, Row
from core.schema import State, read_standing
from core.servers.finding import Finding, Severity
from core.servers.rights import RIGHTS

READ_ONLY = "default_transaction_read_only"
SESSION = """
    SELECT pg_is_in_recovery() AS standby, current_database() AS database, source,
           current_setting('transaction_read_only')::boolean AS read_only,
           coalesce(sourcefile LIKE '%%/postgresql.auto.conf', true) AS by_alter_system
    FROM pg_settings WHERE name = %(name)s
"""
# A role that may not write is none of a worker: it may be read-only on purpose.
FOR_WHOM = """
    SELECT CASE WHEN setrole = 0 THEN 'ALL' ELSE quote_ident(rolname) END AS role,
           quote_ident(datname) AS database
    FROM pg_db_role_setting
    LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_roles r ON r.oid = setrole
    WHERE EXISTS (SELECT FROM unnest(setconfig) AS each
                  WHERE each LIKE %(name)s || '=%%' AND split_part(each, '=', 2)::boolean)
      AND (setdatabase = 0 OR datname = current_database())
      AND (setrole = 0 OR %(own)s AND rolname = current_user
           OR has_any_column_privilege(setrole, to_regclass('essay_states'), 'INSERT'))
"""
PRIMARY = "SELECT sender_host AS host, sender_port AS port FROM pg_stat_wal_receiver"
# Its primary key keeps its name where somebody renames a table, or moves it.
NOW_CALLED = """
    SELECT conrelid::regclass::text AS now, c.relname AS name,
           own.relnamespace::regnamespace::text AS own
    FROM pg_constraint JOIN pg_class c ON c.oid = conrelid
    JOIN pg_class own ON own.oid = to_regclass('alembic_version')
    WHERE conname = 'pk_' || %s AND contype = 'p'
      AND NOT EXISTS (SELECT FROM pg_class other WHERE other.relname = 'alembic_version'
                      AND other.relnamespace = c.relnamespace AND other.oid <> own.oid)
"""
# Our tables where this session does not look, or may not, and who has said where it looks.
ELSEWHERE = """
    SELECT array_agg(quote_ident(nspname) ORDER BY nspname) AS schemas, setting AS path, source,
           quote_ident(current_user) AS role, quote_ident(current_database()) AS database,
           bool_or(has_schema_privilege(n.oid, 'USAGE')) AS may_enter
    FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace, pg_settings s
    WHERE relname = 'batch_essay_trackers' AND relkind = 'r' AND s.name = 'search_path'
      AND to_regclass('batch_essay_trackers') IS NULL
    GROUP BY setting, source
"""
ROW_SECURITY = """
    SELECT name, array_remove(array_agg(quote_ident(polname) ORDER BY polname), NULL) AS policies
    FROM unnest(%s::text[]) AS needed (name) LEFT JOIN pg_policy ON polrelid = to_regclass(name)
    WHERE row_security_active(to_regclass(name)) GROUP BY name ORDER BY name
"""


def read_only(conn: Conn, *, own: bool = True) -> Finding | None:
    """Find why no transaction of this session may write; not `own`: why those of others may not.

    Raises psycopg.Error.
    """
    session = conn.execute(SESSION, {"name": READ_ONLY}).fetchone()
    assert session is not None, "every Postgres has this setting"
    if session["standby"]:
        return fault("it is a standby", f"name {_primary(conn)} in ELS_DATABASE_URL")
    if own and not session["read_only"]:
        return None
    set_for = conn.execute(FOR_WHOM, {"name": READ_ONLY, "own": own}).fetchall()
    steps = [_reset(**row) for row in set_for] or [*_outside(session)]
    if not own and not steps:
        return None
    wrong = f"its transactions are read-only, because somebody set {READ_ONLY}"
    step = "; ".join(steps) or "end the sessions that have it since a while ago"
    return fault(f"{wrong} (a full disk, an upgrade or a person)", step)


def _reset(role: str, database: str | None) -> str:
    if role == "ALL" and database:
        whose = f"DATABASE {database}"
    else:
        whose = f"ROLE {role}" + (f" IN DATABASE {database}" if database else "")
    return f"SET {READ_ONLY} = off; ALTER {whose} RESET {READ_ONLY}"


def _outside(session: Row) -> Iterator[str]:
    """Say how to undo a setting of the server's files, or of the connection."""
    if session["source"] == "configuration file" and session["by_alter_system"]:
        yield f"ALTER SYSTEM RESET {READ_ONLY}; SELECT pg_reload_conf()"
    elif session["source"] in ("configuration file", "command line"):
        yield f"take {READ_ONLY} out of postgresql.conf, and reload it"
    elif session["source"] in ("client", "session", "environment variable"):
        yield f"take {READ_ONLY} out of the options of ELS_DATABASE_URL, or of PGOPTIONS"


def _primary(conn: Conn) -> str:
    row = conn.execute(PRIMARY).fetchone()
    named = f" ({row['host']}:{row['port']})" if row and row["host"] else ""
    return f"its primary{named}, or every host and target_session_attrs=read-write,"


def policies(conn: Conn) -> Finding | None:
    """Find the policies that may hide rows of our tables from this role. Raises psycopg.Error."""
    rows = [row for row in conn.execute(ROW_SECURITY, [list(RIGHTS)]) if row["policies"]]
    named = ", ".join(f"{each} on {row['name']}" for row in rows for each in row["policies"])
    role = conn.info.user
    return _of_rows(rows, f"row level security may hide rows from the role {role} ({named})")


def hidden_rows(conn: Conn) -> Finding | None:
    """Find tables whose rows row level security hides, all of them. Raises psycopg.Error."""
    rows = [row for row in conn.execute(ROW_SECURITY, [list(RIGHTS)]) if not row["policies"]]
    every_row = f"every row of {', '.join(row['name'] for row in rows)}"
    wrong = f"row level security without a policy hides {every_row} from the role"
    return _of_rows(rows, f"{wrong} {conn.info.user}")


def _of_rows(tables: Sequence[Row], wrong: str) -> Finding | None:
    step = "; ".join(f"ALTER TABLE {each['name']} DISABLE ROW LEVEL SECURITY" for each in tables)
    return fault(wrong, step) if tables else None


def elsewhere(conn: Conn) -> Finding | None:
    """Find our tables in a schema where this session does not look, or may not.

    Raises psycopg.Error.
    """
    row = conn.execute(ELSEWHERE).fetchone()
    if row is None:
        return None
    schemas = ", ".join(row["schemas"])
    if not row["may_enter"]:
        wrong = f"the role {row['role']} may not enter the schema of its tables, {schemas}"
        return fault(wrong, f"GRANT USAGE ON SCHEMA {schemas} TO {row['role']}")
    wrong = f"its tables are in the schema {schemas}, and this session looks in {row['path']}"
    step = f"ALTER ROLE {row['role']} IN DATABASE {row['database']} SET search_path = {schemas}"
    if row["source"] in ("client", "session"):
        step = f"correct search_path in the options of ELS_DATABASE_URL, or in PGOPTIONS: {schemas}"
    elif len(row["schemas"]) > 1:
        step = f"choose one of them, and name it as search_path in ELS_DATABASE_URL: {schemas}"
    return fault(f"{wrong} (search_path)", step)


def absent(conn: Conn, names: Collection[str]) -> Finding:
    """Say what became of tables of the schema that a session does not see. Raises psycopg.Error."""
    wrong = f"there is no table {', '.join(names)}, or the role may not enter its schema"
    if moves := [each for name in names for each in _moves(conn, name)]:
        return fault(f"{wrong}: somebody renamed or moved it", "; ".join(moves))
    if read_standing(conn).state is State.BEHIND:
        return fault(wrong, "els migrate")
    return fault(wrong, "restore it from a backup, or GRANT USAGE ON its SCHEMA")


def _moves(conn: Conn, name: str) -> Iterator[str]:
    """Undo the rename of a table, or its move to another schema."""
    for row in conn.execute(NOW_CALLED, [name]):
        if row["name"] != name:
            yield f"ALTER TABLE {row['now']} RENAME TO {name}"
        elif row["own"]:
            yield f"ALTER TABLE {row['now']} SET SCHEMA {row['own']}"


def fault(wrong: str, step: str) -> Finding:
    return Finding("postgres", Severity.FAULT, wrong, "workers cannot carry messages out", step)
