"""`els worker` and `els beat`: Celery's own commands on our app, with all of their options.

Celery's own command line imports every installed command, Flower and an interactive shell among
them, into each worker: 12 MB.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from click import Command

from core.errors import BadSettings

HELP = {
    "worker": """Start one more worker of the service.

    It takes every option of Celery's worker. The settings (ELS_…) say which servers, queues and how
    many processes; an option wins over them.

    \b
    els worker
    els worker --concurrency 4 --hostname second@%h
    """,
    "beat": """Start beat, which enqueues sweep and relay every few seconds.

    It takes every option of Celery's beat. Start several if you like: one leads, the others stand
    by.
    """,
}


def main(name: str, arguments: Sequence[str]) -> NoReturn:
    """Run a `worker` or `beat` in this process; exit with its status."""
    # Celery reads it on import: SIGTERM then returns running tasks to the queue.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from celery.bin.base import CLIContext

    try:
        from tasks.app import app
    except BadSettings as error:
        sys.exit(f"els: {error}")
    context = CLIContext(app, no_color=False, workdir=None, quiet=True)
    helps = ["-h", "--help"]
    sys.exit(
        command(name).main(list(arguments), f"els {name}", obj=context, help_option_names=helps)
    )


def command(name: str) -> Command:
    """Return Celery's command of this name, with our words about it."""
    from celery.bin.beat import beat
    from celery.bin.worker import worker

    found: Command = {"worker": worker, "beat": beat}[name]
    found.help = HELP[name]
    return found
