"""Whom Postgres runs as, and the folders that this user needs to enter.

Postgres refuses to run as root: then it runs as the owner of its files, or as nobody.
"""

import os
import pwd
import shutil
import subprocess
from pathlib import Path

from core.errors import StackError
from ops.stack.leash import Account

WAYS_OUT = (
    "Put ELS_HOME and the Python environment into folders that everybody can enter, or run as a "
    "plain user, or give ELS_DATABASE_URL"
)


def owner_of(data: Path) -> tuple[int, int]:
    """Find whom Postgres runs as: ourselves; as root the files' owner, or nobody."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StackError(
            "Postgres cannot run as root, and there is no user nobody. " + WAYS_OUT
        ) from error
    return nobody.pw_uid, nobody.pw_gid


def give(path: Path, owner: tuple[int, int]) -> None:
    """Make it all theirs, unless it is; links are not followed."""
    if path.stat().st_uid != owner[0]:
        for each in [path, *path.rglob("*")]:
            os.chown(each, *owner, follow_symlinks=False)


def account_of(owner: tuple[int, int], program: Path, folder: Path) -> Account:
    """Become this user, who must run the program in the folder.

    Where either lies below a closed folder, the child keeps the right to pass it. That is
    root's own right, CAP_DAC_OVERRIDE, for this child: better than to open the folder.
    """
    uid, gid = owner
    paths = [str(program), str(folder)]
    probe = ["sh", "-c", 'for path; do test -x "$path" || exit 1; done', "sh", *paths]
    if not subprocess.run(probe, user=uid, group=gid, extra_groups=[], check=False).returncode:  # noqa: S603 - a fixed program
        return Account(uid, gid)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StackError(
            f"Postgres cannot run as root, and uid {uid}, as which it would run, cannot enter "
            f"{' or '.join(paths)}. {WAYS_OUT}, or install setpriv (util-linux)"
        )
    keep = ("--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return Account(prefix=(setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *keep))
