"""What people did to the schema that makes statements fail, found where one has failed."""

import re

from core.db.connection import Conn
from core.servers.finding import Finding
from core.servers.obstacles import fault

IN_FUNCTION = re.compile(r'PL/pgSQL function ([\w."]+)\(')  # in the CONTEXT of an error
TRIGGERS = """
    SELECT tgrelid::regclass::text AS table, quote_ident(tgname) AS trigger FROM pg_trigger
    WHERE tgfoid = to_regprocedure(%s) AND NOT tgisinternal AND tgenabled <> 'D'
    ORDER BY tgrelid::regclass::text, tgname
"""


def trigger_raised(conn: Conn, error: str) -> Finding | None:
    """Find the triggers of others whose function has raised an error. Raises psycopg.Error."""
    functions = [f"{name}()" for name in IN_FUNCTION.findall(error)]
    rows = [row for each in functions for row in conn.execute(TRIGGERS, [each])]
    if not rows:
        return None
    named = ", ".join(f"{row['trigger']} on {row['table']}" for row in rows)
    steps = [f"ALTER TABLE {row['table']} DISABLE TRIGGER {row['trigger']}" for row in rows]
    return fault(f"a trigger that is none of this service fails: {named}", "; ".join(steps))


def changed_by_hand() -> Finding:
    """Say what is wrong where a statement misses something, and every table is there."""
    wrong = "every table is there, so somebody has changed one by hand"
    return fault(wrong, "compare them with those that `els migrate` makes in an empty database")
