"""What the stack and its processes print: each line with its time, its process and a colour."""

import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, TextIO

from honcho.colour import get_colours  # type: ignore[import-untyped] # has no types
from honcho.printer import Message, Printer  # type: ignore[import-untyped] # has no types


class Console:
    """One stream for the lines of several processes, which threads read."""

    def __init__(
        self, echo: Callable[[str], None], output: TextIO | None, names: Sequence[str]
    ) -> None:
        output = output or sys.stdout
        self._echo = echo
        self._printer = Printer(output, width=max(map(len, names), default=0))
        self._colours = dict(zip(names, get_colours(), strict=False))
        self._lock = threading.Lock()
        self.is_terminal = output.isatty()

    def say(self, line: str) -> None:
        """Print a line of our own."""
        with self._lock, suppress(BrokenPipeError):
            self._echo(line)

    def copy(self, name: str, pipe: IO[bytes], path: Path) -> None:
        """Print and log each line of a process until it closes the pipe.

        Go on after a full disk or a closed terminal: a process with a full pipe would block.
        """
        with pipe, path.open("ab", buffering=0) as log:
            for line in pipe:
                with suppress(OSError):
                    log.write(line)
                now = datetime.now().astimezone()
                message = Message("line", line, now, name, self._colours[name])
                with self._lock, suppress(OSError):
                    self._printer.write(message)
