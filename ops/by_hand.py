"""What somebody has changed in Postgres besides rows: columns, triggers, limits and rights."""

import re
from collections.abc import Callable, Iterable, Iterator

import psycopg
from psycopg.rows import dict_row

from core.db.connection import Conn, Row
from core.schema import State, read_standing
from core.servers.finding import Finding
from core.servers.obstacles import fault
from core.servers.postgres import schema_lacks
from core.servers.postgres_url import address
from core.servers.rights import OF_MESSAGES, RIGHTS

COLUMNS = """
    SELECT relname AS "table", attname AS name, format_type(atttypid, atttypmod) AS type
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    WHERE c.oid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS needed (name))
      AND attnum > 0 AND NOT attisdropped ORDER BY relname, attnum
"""
# Limits that end a statement, or a session, before it has done anything.
LIMITS = (
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
    "lock_timeout",
)
SET_FOR = """
    SELECT name, value, role, database FROM (
        SELECT split_part(said, '=', 1) AS name, split_part(said, '=', 2) AS value,
               CASE WHEN setrole = 0 THEN 'ALL' ELSE quote_ident(rolname) END AS role,
               quote_ident(datname) AS database
        FROM pg_db_role_setting CROSS JOIN unnest(setconfig) AS said
        LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_roles r ON r.oid = setrole
        WHERE split_part(said, '=', 1) = ANY(%(names)s)
          AND (setdatabase = 0 OR datname = current_database())
          AND (setrole = 0 OR rolname = current_user
               OR has_any_column_privilege(setrole, to_regclass('essay_states'), 'INSERT'))
    ) found
    WHERE CASE WHEN value ~ '^[0-9]+$' THEN value::numeric
               ELSE extract(epoch FROM value::interval) * 1000 END BETWEEN 0.001 AND %(short_ms)s
    ORDER BY role, database, name
"""
SHORT_MS = 500  # a limit that ends what a server under load does
# Of the roles that are connected and may write at least somewhere, as workers do.
LACKING = """
    WITH needed AS (
        SELECT usename AS role, name, verb, CASE
                   WHEN verb = 'DELETE' THEN has_table_privilege(usename, to_regclass(name), verb)
                   ELSE has_any_column_privilege(usename, to_regclass(name), verb)
               END AS has
        FROM (SELECT DISTINCT usename FROM pg_stat_activity
              WHERE datname = current_database() AND usename IS NOT NULL) connected,
             unnest(%(names)s::text[], %(verbs)s::text[]) AS rights (name, verb)
        WHERE to_regclass(name) IS NOT NULL
    )
    SELECT quote_ident(role) AS role, array_agg(verb || ' ON ' || name) AS rights FROM needed n
    WHERE NOT has
      AND EXISTS (SELECT FROM needed o WHERE o.role = n.role AND verb = 'INSERT' AND has)
    GROUP BY role ORDER BY role
"""
IN_FUNCTION = re.compile(r'PL/pgSQL function ([\w."]+)\(')  # in the CONTEXT of an error
TRIGGERS = """
    SELECT tgrelid::regclass::text AS table, quote_ident(tgname) AS trigger FROM pg_trigger
    WHERE tgfoid = to_regprocedure(%s) AND NOT tgisinternal AND tgenabled <> 'D'
    ORDER BY tgrelid::regclass::text, tgname
"""
BEFORE_ROWS = """
    SELECT tgrelid::regclass::text AS table, quote_ident(tgname) AS trigger FROM pg_trigger
    WHERE tgrelid = ANY(%s::regclass[]) AND NOT tgisinternal AND tgenabled <> 'D'
      AND tgtype & 2 = 2 -- before the row is written
    ORDER BY tgrelid::regclass::text, tgname
"""
# Tables that this session finds before those beside `alembic_version`.
SHADOWED = """
    SELECT c.relname AS name, format('%%I.%%I', o.relnamespace::regnamespace, o.relname) AS hiding,
           format('%%I.%%I', c.relnamespace::regnamespace, c.relname) AS hidden
    FROM unnest(%s::text[]) AS needed (name) JOIN pg_class c ON c.relname = needed.name
    JOIN pg_class own ON own.oid = to_regclass('alembic_version')
    JOIN pg_class o ON o.oid = to_regclass(needed.name)
    WHERE c.relnamespace = own.relnamespace AND o.oid <> c.oid ORDER BY 1
"""
NEEDS_VALUE = re.compile(r'null value in column "(?P<column>[^"]+)" of relation "(?P<table>\w+)"')
VIOLATES = re.compile(r'violates (?:\w+ )?\w+ constraint "(?P<name>[^"]+)"')
# A constraint, or an index that is none, and the statement that drops it.
NOT_OURS = """
    SELECT conrelid::regclass::text AS table,
           format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname) AS step
    FROM pg_constraint WHERE conname = %(name)s AND conrelid = ANY(%(tables)s::regclass[])
    UNION ALL
    SELECT indrelid::regclass::text, format('DROP INDEX %%s', indexrelid::regclass)
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    WHERE relname = %(name)s AND indrelid = ANY(%(tables)s::regclass[])
      AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""
OTHER_TYPE = re.compile(r"but expression is of type|SQLSTATE 22|^StringDataRightTruncation")
RULE_IN_THE_WAY = re.compile(r"DO (?:INSTEAD|ALSO)|perform \w+ RETURNING on relation")
SEQUENCE = re.compile(r'maximum value of sequence "(?P<name>\w+)"')
BACK = "SELECT setval($${}$$, (SELECT coalesce(max(id), 1) FROM {}))"
RULES = """
    SELECT quote_ident(rulename) AS name, ev_class::regclass::text AS table FROM pg_rewrite
    WHERE ev_class = ANY(%s::regclass[]) AND rulename <> '_RETURN' AND ev_enabled <> 'D'
    ORDER BY ev_class::regclass::text, rulename
"""
# Whatever may change or drop what the service writes, without an error.
ADDED = """
    SELECT format('the trigger %%I on %%s', tgname, tgrelid::regclass) AS what,
           format('ALTER TABLE %%s DISABLE TRIGGER %%I', tgrelid::regclass, tgname) AS step
    FROM pg_trigger WHERE tgrelid = ANY(%(tables)s::regclass[]) AND NOT tgisinternal
      AND tgenabled <> 'D'
    UNION ALL
    SELECT format('the rule %%I on %%s', rulename, ev_class::regclass),
           format('DROP RULE %%I ON %%s', rulename, ev_class::regclass)
    FROM pg_rewrite WHERE ev_class = ANY(%(tables)s::regclass[]) AND rulename <> '_RETURN'
      AND ev_enabled <> 'D'
    ORDER BY what
"""
NO_EFFECT = re.compile("has no effect")  # as the probe says
NO_IDENTITY = re.compile(r'table "(?P<table>\w+)" because it does not have a replica identity')
PATIENCE = "-c statement_timeout=1500 -c idle_in_transaction_session_timeout=0"


def what_lacks(conn: Conn) -> Finding:
    """Say what is wrong where a statement misses a table or a column. Raises psycopg.Error."""
    wrong = "every table is there, so somebody has changed one by hand"
    step = "compare them with those that `els migrate` makes in an empty database"
    return schema_lacks(conn) or changed_columns(conn) or fault(wrong, step)


def changed_columns(conn: Conn) -> Finding | None:
    """Find columns of our tables that are gone, and what they are called now; or of another type.

    None: all are there, or the schema is not of this release. Raises psycopg.Error.
    """
    if read_standing(conn).state is not State.HEAD:
        return None
    tables = _tables()
    rows = conn.execute(COLUMNS, [list(tables)]).fetchall()
    found = [*_gone(tables, rows)]
    if not found:
        return None
    wrong, steps = "; ".join(each for each, _ in found), [step for _, step in found if step]
    return fault(wrong, "; ".join(steps) or "add it again, with its values from a backup")


def _tables() -> dict[str, dict[str, str]]:
    """Return the tables of this release: name and type of each column."""
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - longer than most answers take

    from migrations.schema import metadata  # noqa: PLC0415 - as above

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy gives it no types
    return {
        table.name: {
            column.name: column.type.compile(dialect=dialect).lower().partition(" collate")[0]
            for column in table.columns
        }
        for table in metadata.sorted_tables
    }


def _gone(
    tables: dict[str, dict[str, str]], rows: Iterable[Row]
) -> Iterator[tuple[str, str | None]]:
    """Yield what is wrong with a column, and the statement that mends it."""
    there: dict[str, dict[str, str]] = {}
    for row in rows:
        there.setdefault(row["table"], {})[row["name"]] = row["type"]
    for table, columns in there.items():
        others = columns.keys() - tables[table].keys()
        for column, kind in tables[table].items():
            if column in columns:
                if columns[column] != kind:
                    wrong = f"the column {column} of {table} is now {columns[column]}, not {kind}"
                    yield wrong, f"ALTER TABLE {table} ALTER COLUMN {column} TYPE {kind}"
                continue
            like = [name for name in others if columns[name] == kind]
            lacking = f"the table {table} has no column {column}"
            if len(like) == 1:
                step = f'ALTER TABLE {table} RENAME COLUMN "{like[0]}" TO {column}'
                yield f"{lacking}: somebody has renamed it to {like[0]}", step
            else:
                yield f"{lacking}: somebody has dropped or renamed it", None


def shadowed(conn: Conn) -> Finding | None:
    """Find tables of another schema that hide ours from this session. Raises psycopg.Error."""
    rows = conn.execute(SHADOWED, [list(RIGHTS)]).fetchall()
    if not rows:
        return None
    named = ", ".join(f"{row['hiding']} hides {row['hidden']}" for row in rows)
    steps = [f"ALTER TABLE {row['hiding']} RENAME TO {row['name']}_hidden" for row in rows]
    return fault(
        f"a table of another schema is found first (search_path): {named}", "; ".join(steps)
    )


def added(conn: Conn) -> Finding | None:
    """Find triggers and rules of others on our tables. Raises psycopg.Error."""
    rows = conn.execute(ADDED, {"tables": _there(conn)}).fetchall()
    if not rows:
        return None
    wrong = f"somebody has added {', '.join(row['what'] for row in rows)}"
    wrong += ": it may change or drop what the service writes"
    return fault(wrong, "; ".join(row["step"] for row in rows))


def trigger_raised(conn: Conn, error: str) -> Finding | None:
    """Find the triggers of others whose function has raised an error. Raises psycopg.Error."""
    functions = [f"{name}()" for name in IN_FUNCTION.findall(error)]
    rows = [row for each in functions for row in conn.execute(TRIGGERS, [each])]
    if not rows:
        return None
    named = ", ".join(f"{row['trigger']} on {row['table']}" for row in rows)
    steps = [f"ALTER TABLE {row['table']} DISABLE TRIGGER {row['trigger']}" for row in rows]
    wrong = f"a trigger that is none of this service fails, or takes too long: {named}"
    return fault(wrong, "; ".join(steps))


def short_limits(conn: Conn) -> Finding | None:
    """Find limits of a role of workers, or of the database, that end what it begins.

    Those of the server's files are not among them. Raises psycopg.Error.
    """
    values = {"names": list(LIMITS), "short_ms": SHORT_MS}
    rows = conn.execute(SET_FOR, values).fetchall()
    if not rows:
        return None
    said = ", ".join(f"{row['name']} = {row['value']} for {_whose(row)}" for row in rows)
    steps = [f"ALTER {_whose(row)} RESET {row['name']}" for row in rows]
    wrong = f"somebody has set {said}, so Postgres ends what workers begin"
    return fault(wrong, "; ".join(steps))


def short_limits_of(url: str) -> Finding | None:
    """Connect in spite of such limits, and find them. Raises psycopg.Error."""
    at, since_14 = address(url).conninfo, f"{PATIENCE} -c idle_session_timeout=0"
    since_17 = f"{since_14} -c transaction_timeout=0"
    for options in (since_17, since_14, PATIENCE):
        try:
            conn = psycopg.connect(at, options=options, autocommit=True, row_factory=dict_row)
        except psycopg.OperationalError as error:
            if options != PATIENCE and "unrecognized configuration parameter" in str(error):
                continue
            raise
        with conn:
            return short_limits(conn)
    return None


def lacking_rights(conn: Conn) -> Finding | None:
    """Find what a role of workers may not do that messages need. Raises psycopg.Error."""
    needed = [(name, verb) for name in OF_MESSAGES for verb in RIGHTS[name]]
    names, verbs = zip(*needed, strict=True)
    rows = conn.execute(LACKING, {"names": list(names), "verbs": list(verbs)}).fetchall()
    if not rows:
        return None
    wrong = ", ".join(f"the role {row['role']} lacks {', '.join(row['rights'])}" for row in rows)
    steps = [f"GRANT {each} TO {row['role']}" for row in rows for each in row["rights"]]
    return fault(wrong, "; ".join(steps))


def of_others(conn: Conn, error: str) -> Finding | None:
    """Find what others have added to our tables, or taken from them, by an error that names it.

    A column, a default, a type, a constraint, a rule, a trigger, a replica identity. Raises
    psycopg.Error.
    """
    for pattern, find in BY_ERROR.items():
        if (match := pattern.search(error)) and (found := find(conn, match)):
            return found
    return None


def _constraint(conn: Conn, match: re.Match[str]) -> Finding | None:
    from migrations.schema import metadata  # noqa: PLC0415 - longer than most answers take

    name, tables = match["name"], metadata.tables.values()
    constraints = {each.name for table in tables for each in table.constraints}
    if name in constraints | {each.name for table in tables for each in table.indexes}:
        return None
    row = conn.execute(NOT_OURS, {"name": name, "tables": _there(conn)}).fetchone()
    wrong = f"somebody has added the constraint {name} to"
    return fault(f"{wrong} {row['table']}", row["step"]) if row else None


def _identity(conn: Conn, match: re.Match[str]) -> Finding | None:
    wrong = f"a publication has the table {match['table']}, and that has no replica identity"
    return fault(wrong, f"ALTER TABLE {match['table']} REPLICA IDENTITY DEFAULT")


def _types(conn: Conn, match: re.Match[str]) -> Finding | None:
    return changed_columns(conn)


def _sequence(conn: Conn, match: re.Match[str]) -> Finding | None:
    name = match["name"]
    if (table := name.removesuffix("_id_seq")) not in RIGHTS:
        return None
    return fault(f"somebody has moved the sequence {name} to its end", BACK.format(name, table))


def _rules(conn: Conn, match: re.Match[str]) -> Finding | None:
    found = [f"{row['name']} ON {row['table']}" for row in conn.execute(RULES, [_there(conn)])]
    wrong = f"a rule that is none of this service: {', '.join(found)}".replace(" ON ", " on ")
    return fault(wrong, "; ".join(f"DROP RULE {each}" for each in found)) if found else None


def _triggers(conn: Conn, match: re.Match[str]) -> Finding | None:
    rows = conn.execute(BEFORE_ROWS, [_there(conn)]).fetchall()
    named = ", ".join(f"{row['trigger']} on {row['table']}" for row in rows)
    steps = [f"ALTER TABLE {row['table']} DISABLE TRIGGER {row['trigger']}" for row in rows]
    return fault(f"a trigger of others drops rows: {named}", "; ".join(steps)) if rows else None


def _needs_value(conn: Conn, match: re.Match[str]) -> Finding | None:
    """Tell a column of others from one of ours that has lost its default."""
    from migrations.schema import metadata  # noqa: PLC0415 - longer than most answers take

    table, column = match["table"], match["column"]
    if table not in metadata.tables:
        return None
    ours = metadata.tables[table].columns.get(column)
    if ours is None:
        wrong = f"somebody has added the column {column} to {table}, and it must have a value"
        return fault(wrong, f'ALTER TABLE {table} ALTER COLUMN "{column}" DROP NOT NULL')
    default = getattr(ours.server_default, "arg", None)
    if default is None:
        return None
    default = f"$${default}$$" if isinstance(default, str) else default
    wrong = f"somebody has dropped the default of the column {column} of {table}"
    return fault(wrong, f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT {default}")


def _there(conn: Conn) -> list[str]:
    """List those of our tables that this session sees."""
    rows = conn.execute(
        "SELECT name FROM unnest(%s::text[]) AS n (name) WHERE to_regclass(name) IS NOT NULL",
        [list(RIGHTS)],
    )
    return [row["name"] for row in rows]


BY_ERROR: dict[re.Pattern[str], Callable[[Conn, re.Match[str]], Finding | None]] = {
    NEEDS_VALUE: _needs_value,
    VIOLATES: _constraint,
    NO_IDENTITY: _identity,
    SEQUENCE: _sequence,
    OTHER_TYPE: _types,
    NO_EFFECT: _triggers,
    RULE_IN_THE_WAY: _rules,
}


def _whose(row: Row) -> str:
    if row["role"] == "ALL":
        return f"DATABASE {row['database']}" if row["database"] else "ROLE ALL"
    return f"ROLE {row['role']}" + (f" IN DATABASE {row['database']}" if row["database"] else "")
