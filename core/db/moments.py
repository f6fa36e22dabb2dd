"""Moments that Python cannot hold: an infinite or far one in a row is read as the nearest one.

Postgres has 'infinity', the year 10000 and years before Christ; Python's datetime has none of
these. Without this, one such value in one row would fail every page that reads it.
"""

from datetime import UTC, datetime, timedelta

from psycopg import DataError, adapters
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import Format

EARLIEST = datetime.min.replace(tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)


def _before_time(data: Buffer) -> bool:
    text = bytes(data)
    return text.startswith(b"-") or text.endswith(b"BC")


class _Reads(Loader):
    """Reads as psycopg does, in C where it is built so; its own class cannot be extended."""

    reads: str

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        standard = adapters.get_loader(adapters.types[self.reads].oid, Format.TEXT)
        assert standard is not None, f"psycopg reads {self.reads}"
        self._standard = standard(oid, context)


class MomentLoader(_Reads):
    """Reads a timestamptz; one that Python cannot hold becomes `EARLIEST` or `LATEST`."""

    reads = "timestamptz"

    def load(self, data: Buffer) -> datetime:
        """Read one value."""
        try:
            moment: datetime = self._standard.load(data).astimezone(UTC)
        except (DataError, OverflowError):
            return EARLIEST if _before_time(data) else LATEST
        return moment


class DurationLoader(_Reads):
    """Reads an interval; one that Python cannot hold becomes the shortest or the longest."""

    reads = "interval"

    def load(self, data: Buffer) -> timedelta:
        """Read one value."""
        try:
            duration: timedelta = self._standard.load(data)
        except (DataError, OverflowError, ValueError):
            return timedelta.min if _before_time(data) else timedelta.max
        return duration


class _Context:
    """What a connection takes its loaders from."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(adapters)
        self.adapters.register_loader("timestamptz", MomentLoader)
        self.adapters.register_loader("interval", DurationLoader)

    @property
    def connection(self) -> None:
        """None: these are for every connection."""
        return


CONTEXT = _Context()
