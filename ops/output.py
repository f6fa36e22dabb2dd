"""How results, notes and errors are printed, for people and for programs."""

import json
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console

out = Console(highlight=False, emoji=False)  # `:key:` in a storage id stays what it is
err = Console(stderr=True, highlight=False, emoji=False)


def say(line: str) -> None:
    """Print a note on stderr, apart from the command's result."""
    err.print(line, style="dim", markup=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Print a line unchanged: an id in it may look like markup, and is never wrapped."""
    out.print(line, markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def print_result(value: dict[str, Any], line: str, as_json: bool) -> None:  # Any: JSON
    if as_json:
        print_json(value)
    else:
        print_line(line)


def fail(message: str, as_json: bool, status: int = 1) -> NoReturn:
    """Print an error in one line, and exit."""
    message = " ".join(message.split())
    if as_json:
        typer.echo(json.dumps({"error": message}))
    err.print(f"els: {message}", markup=False, soft_wrap=True)
    sys.exit(status)
