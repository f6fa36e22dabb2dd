"""Reads what the address of a page asks for: words, an order, a time."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from ops.moments import moment_of
from ops.sorting import Sort

MAX_LENGTH = 1_024  # characters: the longest text that people search by is a file name


class BadAddress(ValueError):
    """The address has a parameter that no page of ours links to."""


def text_of(params: Mapping[str, str], name: str) -> str:
    """Read a parameter of an address, without surrounding blanks. Raises BadAddress."""
    return as_given(params, name).strip()


def as_given(params: Mapping[str, str], name: str) -> str:
    """Read a parameter unchanged. Raises BadAddress for text that Postgres cannot hold."""
    text = params.get(name, "")
    if "\0" in text or len(text) > MAX_LENGTH:
        raise BadAddress(f"{name} holds a NUL, or more than {MAX_LENGTH} characters")
    return text


def address(path: str, params: Mapping[str, object]) -> str:
    """Write an address with those of the parameters that are given."""
    given = {name: str(value) for name, value in params.items() if value}
    return path + ("?" + urlencode(given) if given else "")


@dataclass(frozen=True)
class Span:
    """From a moment on, until before another; None: without that end."""

    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def of(cls, params: Mapping[str, str]) -> "Span":
        """Read `from` and `to`, each an age (2h) or a moment. Raises BadAddress."""
        return cls(_moment(params, "from"), _moment(params, "to"))

    def checked(self) -> "Span":
        """Return a span that is not empty. Raises BadAddress."""
        if self.since and self.until and self.since >= self.until:
            raise BadAddress("from is not before to")
        return self


def _moment(params: Mapping[str, str], name: str) -> datetime | None:
    text = text_of(params, name)
    try:
        return moment_of(text).astimezone(UTC) if text else None
    except (ValueError, OverflowError) as error:
        raise BadAddress(
            f"{name} is {text[:50]!r}; write an age such as 2h or 3d, or a moment in UTC such as"
            " 2026-01-31 08:00 (or with its offset: 2026-01-31T09:00+01:00)"
        ) from error


@dataclass(frozen=True)
class Headings:
    """The headings of a list: a click sorts by the column, a second one the other way round.

    `sort` None: in the order of the page's own. `params` are those of the address, without the
    order and the page.
    """

    sort: Sort | None
    path: str
    params: Mapping[str, str]
    columns: Collection[str]

    def address(self, column: str) -> str:
        down = self.sort == Sort(column)
        return address(self.path, {**self.params, "sort": Sort(column, down)})

    def direction(self, column: str) -> str | None:
        """Say how the list is sorted by this column, as `aria-sort` has it; None: it is not."""
        if self.sort is None or self.sort.column != column:
            return None
        return "descending" if self.sort.down else "ascending"


def sort_of(params: Mapping[str, str], columns: Collection[str]) -> Sort | None:
    """Read by what a list is sorted; None: nobody chose. Raises BadAddress."""
    text = text_of(params, "sort")
    sort = Sort.of(text)
    if text and sort.column not in columns:
        raise BadAddress(f"this list cannot be sorted by {sort.column}")
    return sort if text else None
