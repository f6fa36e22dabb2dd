"""The roles of the service in Postgres, each with the rights that it needs and no other.

`els migrate --roles` writes them. It may be repeated: what is right already is left alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import LiteralString, TypeVar

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from core.db.connection import Conn, connect_once
from core.errors import ELSError
from core.servers.postgres_url import SESSION
from core.servers.rights import RIGHTS

T = TypeVar("T")
VERSION = "alembic_version"
WORK = {**RIGHTS, VERSION: ("SELECT",)}
# What workers need besides, where ELS_RETENTION_DAYS lets them delete.
PURGE: Mapping[str, tuple[str, ...]] = {
    name: (*verbs, *({"UPDATE", "DELETE"} - {*verbs}))
    for name, verbs in RIGHTS.items()
    if name != "purged_batches"
}
READ = dict.fromkeys(WORK, ("SELECT",))
ADD = ("SELECT", "INSERT", "UPDATE")
LATER = ("SELECT", "INSERT", "UPDATE", "DELETE")  # on a later migration's tables, until repeated
PLAIN: LiteralString = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
# Of an object in a catalogue: which verbs a role has on it by a grant of its own. 0: PUBLIC.
TABLE_VERBS = """
    SELECT privilege_type AS verb FROM pg_class, aclexplode(relacl)
    WHERE pg_class.oid = to_regclass(%(object)s) AND grantee = %(grantee)s
"""
SCHEMA_VERBS = """
    SELECT privilege_type AS verb
    FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner)))
    WHERE nspname = %(object)s AND grantee = %(grantee)s
"""
DATABASE_VERBS = """
    SELECT privilege_type AS verb FROM pg_database, aclexplode(datacl)
    WHERE datname = %(object)s AND grantee = %(grantee)s
"""
LATER_VERBS = """
    SELECT privilege_type AS verb
    FROM pg_default_acl JOIN pg_namespace n ON n.oid = defaclnamespace, aclexplode(defaclacl)
    WHERE nspname = %(object)s AND grantee = %(grantee)s AND defaclobjtype = %(kind)s
      AND defaclrole = %(owner)s::regrole
"""
SETTINGS = """
    SELECT unnest(setconfig) AS setting FROM pg_db_role_setting
    JOIN pg_database d ON d.oid = setdatabase
    WHERE setrole = %(role)s::regrole AND datname = current_database()
"""


class RolesRefused(ELSError):
    """The roles cannot be written: the message says why, and what to do."""


@dataclass(frozen=True)
class Names:
    """What the roles are called: `migrate` owns the tables, `app` works, `read` only reads.

    `page` serves the ops page: it may do what `app` may, and never deletes for retention. None: no
    such role.
    """

    migrate: str = "els_migrate"
    app: str = "els_app"
    read: str = "els_read"
    page: str | None = None

    @classmethod
    def of(cls, text: str) -> "Names":
        """Read three or four names, with commas between them. Raises RolesRefused."""
        names = [name.strip() for name in text.split(",")]
        if len(names) not in (3, 4) or len({*names}) < len(names) or not all(names):
            needed = "for migrate, app and read, and a fourth one for the page"
            raise RolesRefused(f"{text}: three names are needed, {needed}")
        return cls(*names)

    @property
    def given(self) -> list[str]:
        return [name for name in astuple(self) if name]

    def each(self, **of: T) -> dict[str, T]:
        """Return what is of each role, by its name; nothing for a page that has no role."""
        return {name: it for role, it in of.items() if (name := getattr(self, role))}


def write_roles(
    url: str, names: Names, passwords: Mapping[str, str], *, purges: bool = False
) -> list[str]:
    """Write the roles in one transaction; return what it did, a line a change.

    `purges`: the role that works may also delete, for ELS_RETENTION_DAYS.

    A role without a password in `passwords` keeps the one that it has, or none. Raises
    RolesRefused, psycopg.Error.
    """
    with connect_once(url) as conn, conn.transaction():
        return _Roles(conn, names, purges).write(passwords)


@dataclass
class _Roles:
    conn: Conn
    names: Names
    purges: bool
    did: list[str] = field(default_factory=list)

    def write(self, passwords: Mapping[str, str]) -> list[str]:
        row = self.conn.execute(
            "SELECT current_user AS me, current_database() AS database, current_schema() AS schema,"
            " rolsuper AS super FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        assert row is not None
        self.database, self.schema = row["database"], row["schema"]
        self._check(row["me"], passwords)
        for name in self.names.given:
            self._role(name)
        for name, password in passwords.items():
            self._password(name, password)
        if not row["super"]:
            self._join(row["me"])
        self._places()
        self._tables()
        self._later_tables()
        self._settings()
        return self.did

    def _check(self, me: str, passwords: Mapping[str, str]) -> None:
        names = self.names.given
        if me in names:
            step = "run it as a role that may create roles"
            raise RolesRefused(f"{me} is one of the roles that this writes; {step}")
        if unknown := sorted(passwords.keys() - {*names}):
            known = ", ".join(names)
            raise RolesRefused(f"there is no role {', '.join(unknown)} here; they are {known}")

    def _do(self, line: str, statement: Composed) -> None:
        self.conn.execute(statement)
        self.did.append(line)

    def _role(self, name: str) -> None:
        role = Identifier(name)
        row = self.conn.execute(
            "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
            " AS mighty, rolcanlogin AS logs_in FROM pg_roles WHERE rolname = %s",
            [name],
        ).fetchone()
        if row is None:
            self._do(f"created role {name}", SQL("CREATE ROLE {} LOGIN " + PLAIN).format(role))
        elif row["mighty"]:
            self._do(f"made role {name} a plain one", SQL("ALTER ROLE {} " + PLAIN).format(role))
        if row is not None and not row["logs_in"]:
            self._do(f"let role {name} log in", SQL("ALTER ROLE {} LOGIN").format(role))

    def _password(self, name: str, password: str) -> None:
        """Send the verifier of a password, so that no log of the server has the password."""
        verifier = self.conn.pgconn.encrypt_password(
            password.encode(), name.encode(), b"scram-sha-256"
        )
        change = SQL("ALTER ROLE {} PASSWORD {}")
        self._do(
            f"set the password of {name}",
            change.format(Identifier(name), Literal(verifier.decode())),
        )

    def _join(self, me: str) -> None:
        """Become a member of the owner: who is no superuser may not give tables away otherwise."""
        row = self.conn.execute(
            "SELECT pg_has_role(current_user, %s, 'USAGE') AS member", [self.names.migrate]
        ).fetchone()
        if not (row and row["member"]):
            grant = SQL("GRANT {} TO {}").format(Identifier(self.names.migrate), Identifier(me))
            self._do(f"made {me} a member of {self.names.migrate}", grant)

    def _places(self) -> None:
        """Let the roles into database and schema; nobody but the owner creates anything there."""
        database = SQL("DATABASE {}").format(Identifier(self.database))
        schema = SQL("SCHEMA {}").format(Identifier(self.schema))
        for name in self.names.given:
            self._grant(name, ["CONNECT"], DATABASE_VERBS, self.database, database)
            verbs = ["USAGE", "CREATE"] if name == self.names.migrate else ["USAGE"]
            self._grant(name, verbs, SCHEMA_VERBS, self.schema, schema)
        if "CREATE" in self._verbs(SCHEMA_VERBS, self.schema, None):
            self._do(
                f"took CREATE on schema {self.schema} from PUBLIC",
                SQL("REVOKE CREATE ON {} FROM PUBLIC").format(schema),
            )

    def _tables(self) -> None:
        for table in WORK:
            row = self.conn.execute(
                "SELECT tableowner AS owner FROM pg_tables"
                " WHERE schemaname = %s AND tablename = %s",
                [self.schema, table],
            ).fetchone()
            if row is None:
                raise RolesRefused(f"there is no table {table} in schema {self.schema}")
            named = Identifier(self.schema, table)
            if row["owner"] != self.names.migrate:
                change = SQL("ALTER TABLE {} OWNER TO {}")
                self._do(
                    f"gave {table} to {self.names.migrate}, from {row['owner']}",
                    change.format(named, Identifier(self.names.migrate)),
                )
            work = {**WORK, **(PURGE if self.purges else {})}
            of: dict[str, Mapping[str, tuple[str, ...]]] = self.names.each(
                app=work, read=READ, page=WORK
            )
            for name, rights in of.items():
                at = named.as_string(self.conn)
                self._grant(name, rights[table], TABLE_VERBS, at, SQL("TABLE {}").format(named))

    def _later_tables(self) -> None:
        prefix = SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} IN SCHEMA {} ").format(
            Identifier(self.names.migrate), Identifier(self.schema)
        )
        of: dict[str, tuple[str, ...]] = self.names.each(app=LATER, read=("SELECT",), page=ADD)
        for name, verbs in of.items():
            where = {"kind": "r", "owner": Identifier(self.names.migrate).as_string(self.conn)}
            has = self._verbs(LATER_VERBS, self.schema, name, **where)
            if lacking := [verb for verb in verbs if verb not in has]:
                grant = SQL("GRANT {} ON TABLES TO {}").format(_words(lacking), Identifier(name))
                line = f"granted {', '.join(lacking)} on later tables to {name}"
                self._do(line, prefix + grant)

    def _settings(self) -> None:
        path = {} if self.schema == "public" else {"search_path": self.schema}
        of: dict[str, Mapping[str, str]] = self.names.each(
            migrate={"timezone": "UTC", "lock_timeout": "5s"},
            app=SESSION,
            read={**SESSION, "default_transaction_read_only": "on"},
            page=SESSION,
        )
        for name, settings in of.items():
            role = Identifier(name).as_string(self.conn)
            rows = self.conn.execute(SETTINGS, {"role": role})
            has = dict(row["setting"].split("=", 1) for row in rows)
            has = {key.lower(): value for key, value in has.items()}
            for key, value in {**settings, **path}.items():
                if has.get(key, "").strip('"') != value:
                    change = SQL("ALTER ROLE {} IN DATABASE {} SET {} TO {}").format(
                        Identifier(name), Identifier(self.database), Identifier(key), Literal(value)
                    )
                    self._do(f"set {key} = {value} for {name}", change)

    def _grant(
        self, name: str, verbs: Sequence[str], query: LiteralString, at: str, on: Composable
    ) -> None:
        """Grant these verbs on an object to a role, and take all others from it."""
        has, role = self._verbs(query, at, name), Identifier(name)
        if lacking := [verb for verb in verbs if verb not in has]:
            grant = SQL("GRANT {} ON {} TO {}").format(_words(lacking), on, role)
            self._do(f"granted {', '.join(lacking)} on {at} to {name}", grant)
        if extra := sorted(has - {*verbs}):
            revoke = SQL("REVOKE {} ON {} FROM {}").format(_words(extra), on, role)
            self._do(f"took {', '.join(extra)} on {at} from {name}", revoke)

    def _verbs(self, query: LiteralString, at: str, name: str | None, **more: str) -> set[str]:
        """Read the verbs that were granted to a role itself; None: to PUBLIC."""
        row = self.conn.execute("SELECT oid FROM pg_roles WHERE rolname = %s", [name]).fetchone()
        grantee = row["oid"] if row else 0
        rows = self.conn.execute(query, {"object": at, "grantee": grantee, **more})
        return {row["verb"] for row in rows}


def _words(verbs: Iterable[str]) -> Composable:
    """Write verbs, which are ours or Postgres' own."""
    return SQL(", ").join(SQL(verb) for verb in verbs)
