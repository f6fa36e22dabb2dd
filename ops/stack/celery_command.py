"""`els worker` and `els beat`: Celery's own commands on our app, with nearly all of their options.

Celery's own command line imports every installed command, Flower and an interactive shell among
them, into each worker: 12 MB.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn

from click import Choice, Command, Context, UsageError

from core.crash import armed
from core.errors import BadSettings
from ops.stack.failed_start import note_failed_start

HELP = {
    "worker": """Start one more worker of the service.

    It takes the options of Celery's worker. The settings (ELS_…) say which servers, queues and how
    many processes; an option wins over them.

    \b
    els worker
    els worker --concurrency 4 --hostname second@%h
    """,
    "beat": """Start beat, which enqueues sweep and relay every few seconds.

    It takes the options of Celery's beat. Start several if you like: one leads, the others stand
    by.
    """,
}


POOLS = Choice(["prefork", "processes", "solo", "threads"])  # gevent and eventlet need patches
SIGNS = "whoever watches this worker relies on a sign of life every 2 s"
Refuse = Callable[[Any, Context], str | None]  # Any: the value that click has read


def _if_given(why: str) -> Refuse:
    """Refuse an option, whatever its value."""
    return lambda value, _: why if value else None


def _queues(value: Sequence[str] | None, context: Context) -> str | None:
    """Refuse a queue that is none of the service: Celery would declare it and wait there."""
    queues = [queue.name for queue in context.obj.app.conf.task_queues]
    if unknown := [name for name in value or () if name not in queues]:
        return (
            f"{', '.join(unknown)}: the queues of the service are {', '.join(queues)} (ELS_QUEUE)"
        )
    return None


def _left_out(value: Sequence[str] | None, context: Context) -> str | None:
    queues = {queue.name for queue in context.obj.app.conf.task_queues}
    none_left = "no queue would be left" if queues <= {*(value or ())} else None
    return _queues(value, context) or none_left


def _modules(value: Sequence[str] | None, context: Context) -> str | None:
    for name in value or ():
        try:
            context.obj.app.loader.import_task_module(name)
        except ImportError as error:
            return f"{name} cannot be imported: {error}"
    return None


# What Celery would do with these loses messages, hides the worker, or is another program's.
WORKER: Mapping[str, Refuse] = {
    "purge": _if_given("it deletes the messages that wait, and their senders do not hear of it"),
    "detach": _if_given("let systemd or another supervisor run it in the background"),
    "without_heartbeat": _if_given(SIGNS),
    "heartbeat_interval": _if_given(SIGNS),
    "scheduler": _if_given("beat of the service sends ticks in its own way"),
    "queues": _queues,
    "exclude_queues": _left_out,
    "include": _modules,
}
REFUSED: Mapping[str, Mapping[str, Refuse]] = {
    "worker": WORKER,
    "beat": {"detach": WORKER["detach"], "scheduler": WORKER["scheduler"]},
}
NEVER = ("purge", "detach", "without_heartbeat", "heartbeat_interval", "scheduler")


def main(name: str, arguments: Sequence[str]) -> NoReturn:
    """Run a `worker` or `beat` in this process; exit with its status."""
    # Celery reads it on import: SIGTERM then returns running tasks to the queue.
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from celery.bin.base import CLIContext

    try:
        from tasks.app import app, settings

        armed()
        settings.refuse_eager("beat" if name == "beat" else f"a {name}")
        context = CLIContext(app, no_color=False, workdir=None, quiet=True)
        helps = ["-h", "--help"]
        celerys = command(name)
        celerys.make_context = _noting_bad_usage(name, celerys.make_context)  # type: ignore[method-assign]
        sys.exit(celerys.main(list(arguments), f"els {name}", obj=context, help_option_names=helps))
    except BadSettings as error:
        note_failed_start(name, str(error))
        sys.exit(f"els: {error}")


def _noting_bad_usage(name: str, make_context: Callable[..., Context]) -> Callable[..., Context]:
    """Wrap what reads the options of a command: a worker that refuses them cannot start."""

    @wraps(make_context)
    def noting(*args: Any, **more: Any) -> Context:  # Any: as click calls it
        try:
            return make_context(*args, **more)
        except UsageError as error:
            note_failed_start(name, error.format_message())
            raise

    return noting


def command(name: str) -> Command:
    """Return Celery's command of this name, with our words about it."""
    from celery.bin.beat import beat
    from celery.bin.worker import worker

    found: Command = {"worker": worker, "beat": beat}[name]
    found.help = HELP[name]
    for each in found.params:
        if each.name == "pool":
            each.type = POOLS
        if each.name in REFUSED[name]:
            each.callback = _unless(REFUSED[name][each.name], each.callback)
            each.hidden = each.name in NEVER  # type: ignore[attr-defined] # it is an option
    return found


Callback = Callable[[Context, Any, Any], Any]  # Any: as click calls it


def _unless(refuse: Refuse, go_on: Callback | None) -> Callback:
    """Return a callback for an option. It ends the command with the reason, or goes on."""

    def callback(context: Context, option: Any, value: Any) -> Any:  # Any: likewise
        if why := refuse(value, context):
            [name, *_] = [each for each in option.opts if each.startswith("--")]
            raise UsageError(f"{name}: {why}", context)
        return go_on(context, option, value) if go_on else value

    return callback
