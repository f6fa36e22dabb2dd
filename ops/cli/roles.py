"""The options of `els migrate --roles`: names, and passwords, which no process list shows."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import BadSettings

if TYPE_CHECKING:
    from migrations.roles import Names

Roles = Annotated[
    bool, typer.Option("--roles", help="Also write roles: migrate, app, read-only and page")
]
RoleNames = Annotated[
    str, typer.Option(help="Their names: who migrates, works, only reads, serves the page")
]
Passwords = Annotated[
    str | None,
    typer.Option(help='File with the passwords of roles, {"els_app": "…"}; "-": standard input'),
]


@dataclass(frozen=True)
class RolesToWrite:
    """What the options say of the roles."""

    names: "Names"
    passwords: Mapping[str, str]
    purges: bool  # the role that works may delete, for ELS_RETENTION_DAYS

    @classmethod
    def of(cls, names: str, file: str | None, *, purges: bool) -> "RolesToWrite":
        """Read the options. Raises RolesRefused, BadSettings."""
        from migrations.roles import Names

        return cls(Names.of(names), _read_passwords(file), purges)

    def write(self, url: str) -> list[str]:
        """Write the roles; return what was done, a line a change. Raises RolesRefused."""
        from migrations.roles import write_roles

        return write_roles(url, self.names, self.passwords, purges=self.purges)


def _read_passwords(file: str | None) -> dict[str, str]:
    """Read the passwords of roles from a file, "-": from standard input. Raises BadSettings."""
    if file is None:
        return {}
    try:
        found = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except (OSError, ValueError) as error:
        reason = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else error
        raise BadSettings(f"the passwords cannot be read from {file}: {reason}") from None
    if not isinstance(found, dict) or not all(
        isinstance(each, str) and each for each in found.values()
    ):
        raise BadSettings(f'the passwords in {file} must be written {{"role": "password"}}')
    return found
