"""What a shell completes after Tab, where Typer alone does not know it."""

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, Signature
from typing import Annotated, Any, NamedTuple

import typer


class Option(NamedTuple):
    """An option that another program reads, or (without names) its argument."""

    names: Sequence[str]
    choices: Iterable[str]
    flag: bool = False


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Complete one of these names. Typer sees by the parameter's type what to pass."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def offer_more(app: typer.Typer) -> None:
    """Let a shell that asks find what `els` hands on: the options of Celery and `els health`."""
    from ops.stack import celery_command, worker_health

    for name in celery_command.HELP:
        shown = [each for each in celery_command.command(name).params if not _is_hidden(each)]
        _offer(app, name, map(_of_click, shown))
    _offer(app, "health", map(_of_argparse, worker_health.parser()._actions))


def _is_hidden(each: Any) -> bool:  # Any: a parameter of click's
    return bool(each.hidden)


def _of_click(each: Any) -> Option:  # Any: a parameter of click's
    return Option(
        [*each.opts, *each.secondary_opts], getattr(each.type, "choices", ()), each.is_flag
    )


def _of_argparse(each: Any) -> Option:  # Any: an action of argparse
    return Option(each.option_strings, each.choices or (), each.nargs == 0)


def _offer(app: typer.Typer, name: str, options: Iterable[Option]) -> None:
    """Add a command that has these options, and does nothing."""

    def command(**_: object) -> None:
        pass

    parameters = [
        Parameter(f"option{n}", Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(each))
        for n, each in enumerate(options)
        if "--help" not in each.names
    ]
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined] # Typer reads it
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name)(command)


def _annotation(each: Option) -> Any:  # Any: a type
    complete = among(each.choices)
    if not each.names:
        return Annotated[str | None, typer.Argument(autocompletion=complete)]
    kind = bool if each.flag else str
    return Annotated[kind | None, typer.Option(*each.names, autocompletion=complete)]
