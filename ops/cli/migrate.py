"""`els migrate`: the schema to head, a look at where it stands, or one step back."""

import re
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, LiteralString, NoReturn

import typer
from psycopg import sql

from core.db.connection import Conn
from core.schema import Standing, State, read_standing
from ops.cli.options import (
    AsJson,
    Home,
    Yes,
    confirm_change,
    connection,
    read_settings,
    settings_to_read,
)
from ops.cli.roles import Passwords, RoleNames, Roles, RolesToWrite
from ops.cli.target import POSTGRES, locations
from ops.output import err, fail, print_json, print_line, print_result, say
from ops.wording import number

CONTRACT_STEP = "once every worker, beat and ops page is of this version: els migrate --contract"
DELETED = re.compile(
    r"^(?:DROP (?P<kind>TABLE|INDEX(?: CONCURRENTLY)?) (?P<name>\S+?)"
    r"|ALTER TABLE (?P<table>\S+) DROP (?P<part>COLUMN|CONSTRAINT) (?P<of>\S+?)"
    r"|DELETE FROM (?P<from>\S+?)(?P<where> WHERE [^;]+)?);",
    re.MULTILINE,
)

Check = Annotated[
    bool,
    typer.Option("--check", help="Change nothing; exit status 0 if the schema is at head"),
]
Downgrade = Annotated[
    bool, typer.Option("--downgrade", help="Undo the last migration; says first what that deletes")
]
Contract = Annotated[
    bool,
    typer.Option("--contract", help="Also delete what only older releases use: none of them runs"),
]
Wait = Annotated[
    float, typer.Option("--wait", min=0, help="Seconds to wait, in all, for locks of others")
]


def migrate(
    check: Check = False,
    downgrade: Downgrade = False,
    contract: Contract = False,
    wait: Wait = 600,
    roles: Roles = False,
    role_names: RoleNames = "els_migrate,els_app,els_read,els_page",
    passwords: Passwords = None,
    home: Home = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Bring the schema to head. Safe to repeat, and to run in several places at once.

    Workers may go on meanwhile. Where somebody holds a lock, it says who, and tries again.
    """
    if check + downgrade + contract > 1 or (roles and (check or downgrade)):
        fail("give one of --check, --downgrade, --contract and --roles", as_json, status=2)
    if passwords and not roles:
        fail("--passwords is for --roles; give both", as_json, status=2)
    if check:
        _check(home, as_json)
    elif downgrade:
        _downgrade(home, yes, as_json)
    else:
        purges = read_settings(home).retention_days is not None
        written = RolesToWrite.of(role_names, passwords, purges=purges) if roles else None
        _upgrade(home, contract, wait, written, yes, as_json)


# --- up ------------------------------------------------------------------------------------------


def _upgrade(
    home: Home,
    contract: bool,
    wait_s: float,
    roles: RolesToWrite | None,
    yes: bool,
    as_json: bool,
) -> None:
    from migrations import first_contract, stands, upgrade

    what = "migrate the schema and write roles" if roles else "migrate the schema"
    _, found = confirm_change(home, what, POSTGRES, yes=yes, as_json=as_json)
    url, was = found.database_url, stands(found.database_url)
    before = was.revision
    migratable = was.state in {State.EMPTY, State.BEHIND} and not contract
    left = first_contract(before, was.waits) if migratable else None
    if left is None:
        upgrade(url, say=say, patience_s=wait_s)
    elif left.down_revision != before:
        upgrade(url, str(left.down_revision), say, wait_s, waits=left.revision)
    after = stands(url).revision
    line = f"schema at {after}" + ("" if before == after else f" (was {before or 'empty'})")
    if left is not None:
        line += f"; {left.revision} deletes what older releases use: {CONTRACT_STEP}"
    value: dict[str, object] = {"before": before, "revision": after}
    value["waits"] = left and left.revision
    if roles is not None:
        did = roles.write(url)
        value |= {"roles": asdict(roles.names), "did": did}
        line = "\n".join([line, *(did or ["the roles are as they should be"])])
    print_result(value, line, as_json)


# --- where it stands -----------------------------------------------------------------------------


def _check(home: Home, as_json: bool) -> NoReturn:
    with connection(settings_to_read(home)) as conn:
        found = read_standing(conn)
    pending, step = _pending(found), _step(found)
    line = found.wrong + (f"; to come: {', '.join(pending)}" if pending else "")
    if as_json:
        print_json(
            {
                "state": found.state,
                "revision": found.revision,
                "head": found.head,
                "usable": found.usable,
                "pending": pending,
                "next": step,
            }
        )
    else:
        print_line(f"{line}. Next: {step}" if step else line)
    raise typer.Exit(0 if found.state is State.HEAD else 1)


def _pending(found: Standing) -> list[str]:
    from migrations import pending

    if found.state not in {State.EMPTY, State.BEHIND}:
        return []
    return [script.revision for script in pending(found.revision)]


def _step(found: Standing) -> str | None:
    from migrations import first_contract

    if found.state is State.HEAD:
        return None
    if found.state is State.BEHIND:
        left = first_contract(found.revision, found.waits)
        return CONTRACT_STEP if left and left.down_revision == found.revision else found.step
    return found.step


# --- one step back -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deletion:
    """What a downgrade deletes, and of how many rows; None: it has none of its own."""

    what: str
    rows: int | None

    def __str__(self) -> str:
        return self.what if self.rows is None else f"{self.what} ({number(self.rows, 'row')})"


def _downgrade(home: Home, yes: bool, as_json: bool) -> None:
    from migrations import current, downgrade, previous

    settings = settings_to_read(home)
    with connection(settings) as conn:
        before = read_standing(conn).revision
        if before is None:
            fail("there is no schema to downgrade", as_json)
        script = previous(before)
        after = str(script.down_revision)
        deletions = _deletions(conn, f"{before}:{after}")
    named = "; ".join(map(str, deletions)) or "nothing that holds data"
    say(f"{before} -> {after} deletes: {named}")
    _, found = confirm_change(home, f"downgrade to {after}", POSTGRES, yes=True, as_json=as_json)
    if not yes:
        _ask(f"downgrade {locations(found)} to {after}", as_json)
    if current(found.database_url) != before:
        fail("somebody has migrated meanwhile; nothing was changed, look again", as_json)
    downgrade(found.database_url, after, say)
    value = {"before": before, "revision": after, "deleted": [each.what for each in deletions]}
    print_result(value, f"schema at {after} (was {before})", as_json)


def _ask(what: str, as_json: bool) -> None:
    """Ask whoever reads; without an answer nothing is done, as this deletes data."""
    err.print(f"{what}? [y/N] ", end="", markup=False)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        fail("nothing was changed; answer y, or give --yes", as_json)


def _deletions(conn: Conn, span: str) -> list[Deletion]:
    """Read in the SQL of a downgrade what it deletes, and count the rows that are in there."""
    from migrations import statements

    found = []
    for match in DELETED.finditer(statements(span)):
        if match["part"] == "COLUMN":
            column, table = match["of"], match["table"]
            rows = _count(conn, table, sql.Identifier(column.strip('"')))
            found.append(Deletion(f"column {table}.{column}", rows))
        elif match["from"]:
            rows = _count(conn, match["from"], sql.SQL("*"), match["where"] or "")
            found.append(Deletion(f"rows of {match['from']}", rows))
        elif match["kind"] == "TABLE":
            rows = _count(conn, match["name"], sql.SQL("*"))
            found.append(Deletion(f"table {match['name']}", rows))
        else:
            name = match["name"] or match["of"]
            found.append(Deletion(f"{(match['kind'] or match['part']).lower()} {name}", None))
    return found


def _count(conn: Conn, table: str, what: sql.Composable, where: LiteralString = "") -> int:
    """Count rows; `where` comes from a migration, which is part of the program."""
    named = sql.Identifier(table.strip('"'))
    query = sql.SQL("SELECT count({}) AS n FROM {}{}").format(what, named, sql.SQL(where))
    [row] = conn.execute(query).fetchall()
    return int(row["n"])
