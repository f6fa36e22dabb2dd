"""`els worker` and `els beat`: Celery's own commands on our app, with all of their options.

Celery's command line imports each command that is installed into whatever it starts, Flower and an
interactive shell among them: 12 MB of a worker.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from core.errors import BadSettings


def main(name: str, arguments: Sequence[str]) -> NoReturn:
    """Be a `worker` or `beat` until it ends; exit with its status."""
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")  # read on import: TERM gives back what runs
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
