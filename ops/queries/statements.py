"""The longer statements, each in a file of its own."""

from pathlib import Path
from typing import LiteralString

FOLDER = Path(__file__).parents[1] / "sql"


def sql(name: str) -> LiteralString:
    """Read a statement."""
    return (FOLDER / f"{name}.sql").read_text()
