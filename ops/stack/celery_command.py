"""`els worker` and `els beat`: Celery's own commands on our app, with all of their options.

Celery's own command line imports every installed command, Flower and an interactive shell among
them, into each worker: 12 MB.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from core.errors import BadSettings


def main(name: str, arguments: Sequence[str]) -> NoReturn:
    """Run a `worker` or `beat` in this process; exit with its status."""
    # Celery reads it on import: SIGTERM then returns running tasks to the queue.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from celery.bin.base import CLIContext
    from celery.bin.beat import beat
    from celery.bin.worker import worker

    try:
        from tasks.app import app
    except BadSettings as error:
        sys.exit(f"els: {error}")
    command = {"worker": worker, "beat": beat}[name]
    context = CLIContext(app, no_color=False, workdir=None, quiet=True)
    helps = ["-h", "--help"]
    sys.exit(command.main(list(arguments), f"els {name}", obj=context, help_option_names=helps))
