"""Secrets in files: `ELS_DATABASE_URL_FILE` names a file with the value of ELS_DATABASE_URL.

Docker, Kubernetes and systemd hand secrets over as files. Everybody who may look at a process sees
its environment.
"""

from collections.abc import Mapping, Set
from pathlib import Path

from core.errors import BadSettings

SUFFIX = "_FILE"
SECRET = ("_URL", "_AUTH", "_OAUTH")  # ends of the names that may hold a password
LONGEST = 64 * 1024  # bytes; a device or a log given by mistake is not read whole


def names(known: Set[str]) -> set[str]:
    """Return the variables that may name a file, of the known settings."""
    return {name + SUFFIX for name in known if name.endswith(SECRET)} - known


def read_files(given: Mapping[str, str], known: Set[str]) -> dict[str, str]:
    """Replace each variable that names a file by the setting that the file holds.

    Raises BadSettings, which names the variable and the file, and never what the file holds.
    """
    files = {name: given[name] for name in sorted(names(known) & given.keys())}
    values = {name: value for name, value in given.items() if name not in files}
    for name, path in files.items():
        setting = name.removesuffix(SUFFIX)
        if setting in values:
            raise BadSettings(f"{setting} and {name} are both set; set one of them")
        values[setting] = _read(name, path)
    return values


def _read(name: str, path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LONGEST + 1)
        value = content.decode().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadSettings(f"{name}: {path} cannot be read: {reason}") from None
    if not value:  # an empty password would open what it should close
        raise BadSettings(f"{name}: {path} is empty")
    if len(content) > LONGEST or len(value.splitlines()) > 1:
        raise BadSettings(f"{name}: {path} must hold one line, the value of the setting")
    return value
