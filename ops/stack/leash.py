"""Child processes that end with us, even if we are killed."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

# A program between fork and exec, because `preexec_fn` may deadlock in a process with threads. The
# kernel signals the child when its parent dies (Linux only), even by SIGKILL. The account is left
# first: a change of user clears that signal. Python ignores two signals, which exec would inherit.
LEASH = """
import ctypes, os, signal, sys
parent, number, uid, gid, *argv = sys.argv[1:]
if uid:
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
if os.getppid() == int(parent):
    os.execvp(argv[0], argv)
"""


class Account(NamedTuple):
    """Whom a child runs as: a user to become, a command to run it through, or neither."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()


def leashed(
    argv: Sequence[str], number: signal.Signals, account: Account | None = None
) -> list[str]:
    """Extend a command so that it gets this signal when the thread that starts it ends.

    Start it from a thread that lives as long as the process: the kernel looks at the thread.
    """
    uid, gid, prefix = account or Account()
    ids = [str(os.getpid()), str(int(number)), *("" if i is None else str(i) for i in (uid, gid))]
    return [*prefix, sys.executable, "-ISc", LEASH, *ids, *argv]
