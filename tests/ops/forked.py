"""`els` in a process of its own, forked from one that has imported it before.

To import it takes most of the time of a command. What it reads of the environment when it is
imported, the width and colours of a terminal, is as it was for the first command.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [__name__, "ops.cli.main", "ops.acting", "ops.client", "ops.reference", "migrations"]
)
NAMES = ("in", "out", "err")


def run(arguments, environ, cwd, stdin="", timeout=120):
    """Run `els` as subprocess.run would."""
    with TemporaryDirectory(prefix="els-forked-") as folder:
        streams = [Path(folder, name) for name in NAMES]
        streams[0].write_text(stdin)
        process = start(arguments, environ, cwd, *streams)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        out, err = (each.read_text() for each in streams[1:])
    return subprocess.CompletedProcess(arguments, process.exitcode, out, err)


def start(arguments, environ, cwd, *streams):
    """Start `els`; the streams are paths: of its input, its output and its errors."""
    process = FORKS.Process(target=_els, args=(arguments, environ, cwd, streams))
    process.start()
    return process


def _els(arguments, environ, cwd, streams):
    for number, (name, path) in enumerate(zip(NAMES, streams, strict=True)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
        mode = "w" if number else "r"
        setattr(sys, f"std{name}", open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = ["els", *arguments]
    from ops.__main__ import main

    sys.exit(main())
