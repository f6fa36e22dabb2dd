"""How results, notes and errors are printed, for people and for programs."""

import json
import re
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from ops.wording import one_line

# Control characters, and those that turn the direction of writing: with them a text of a sender
# could clear the terminal, or look like a line of ours.
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Terminal(Console):
    """A console that writes unprintable characters of a text as `\\x1b`."""

    def render_str(self, text: str, **how: Any) -> Text:  # Any: as rich has them
        return super().render_str(printable(text), **how)


out = Terminal(highlight=False, emoji=False)  # `:key:` in a storage id stays what it is
err = Terminal(stderr=True, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Write what a terminal would carry out as an escape sequence: `\\x1b`, `\\u202e`."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def say(line: str) -> None:
    """Print a note on stderr, apart from the command's result."""
    err.print(line, style="dim", markup=False, soft_wrap=True)


def print_line(line: str) -> None:
    """Print a line unchanged: an id in it may look like markup, and is never wrapped."""
    out.print(line, markup=False, soft_wrap=True)


def print_json(value: object) -> None:
    written = json.dumps(value, indent=2, default=str, ensure_ascii=False)
    typer.echo(UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", written))


def print_result(value: dict[str, Any], line: str, as_json: bool) -> None:  # Any: JSON
    if as_json:
        print_json(value)
    else:
        print_line(line)


def fail(message: str, as_json: bool, status: int = 1) -> NoReturn:
    """Print an error in one line, and exit."""
    message = one_line(message)
    if as_json:
        typer.echo(json.dumps({"error": message}))
    err.print(f"els: {message}", markup=False, soft_wrap=True)
    sys.exit(status)
