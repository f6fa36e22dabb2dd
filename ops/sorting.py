"""Lists in the order that a person chose, page after page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import LiteralString

from core.db.connection import Conn, Row

MARKS: Sequence[LiteralString] = ("%(key_0)s", "%(key_1)s", "%(key_2)s", "%(key_3)s")


@dataclass(frozen=True)
class Sort:
    """A column to sort by; `down`: the greatest value first. As text: `code` or `-code`."""

    column: str
    down: bool = False

    @classmethod
    def of(cls, text: str) -> "Sort":
        return cls(text.removeprefix("-"), text.startswith("-"))

    def __str__(self) -> str:
        return f"{'-' if self.down else ''}{self.column}"


@dataclass(frozen=True)
class Part:
    """A part of a list in SQL: the condition that leaves out what comes before, and the order."""

    condition: LiteralString
    order: LiteralString
    parameters: Row


@dataclass(frozen=True)
class Sortable:
    """A list that can be sorted: for each column SQL expressions, of which the last is unique.

    `source` is what SQL selects from, `row` the column that tells its rows apart.
    """

    source: LiteralString
    row: LiteralString
    keys: Mapping[str, Sequence[LiteralString]]

    def part(self, conn: Conn, sort: Sort, after: object, parameters: Row | None = None) -> Part:
        """Begin behind the row `after`; with the first one if it is None or gone.

        `parameters` are those of `source`.
        """
        keys = self.keys[sort.column]
        order: LiteralString = ", ".join([key + " DESC" if sort.down else key for key in keys])
        last = None if after is None else self._keys_of(conn, keys, after, parameters or {})
        if last is None:
            return Part("true", order, {})
        listed: LiteralString = ", ".join(keys)
        marks: LiteralString = ", ".join(MARKS[: len(keys)])
        sign: LiteralString = "<" if sort.down else ">"
        condition: LiteralString = "(" + listed + ") " + sign + " (" + marks + ")"
        return Part(condition, order, {f"key_{n}": key for n, key in enumerate(last)})

    def _keys_of(
        self, conn: Conn, keys: Sequence[LiteralString], after: object, parameters: Row
    ) -> Sequence[str] | None:
        """Read the keys of a row as text; None: it is gone."""
        listed: LiteralString = ", ".join(["(" + key + ")::text" for key in keys])
        where: LiteralString = " FROM " + self.source + " WHERE " + self.row + " = %(after)s"
        query: LiteralString = "SELECT ARRAY[" + listed + "] AS keys"
        found = conn.execute(query + where, {**parameters, "after": after}).fetchone()
        return found["keys"] if found else None
