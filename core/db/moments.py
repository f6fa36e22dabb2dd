"""Moments that Python cannot hold: an infinite or far one is read as the nearest one.

Postgres has 'infinity', the year 10000 and years before Christ, which no datetime can hold. One
such value in one row would break every page that reads it.
"""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from psycopg import DataError, adapters
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.pq import Format

EARLIEST = datetime.min.replace(tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)


class _Reads(Loader):
    """Reads as psycopg does, whose loaders in C cannot be extended, or takes the nearest value."""

    reads: str
    nearest: tuple[object, object]  # before all that Python can hold, and after it

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        standard = adapters.get_loader(adapters.types[self.reads].oid, Format.TEXT)
        assert standard is not None, f"psycopg reads {self.reads}"
        self._standard = standard(oid, context)

    def load(self, data: Buffer) -> Any:  # Any: as psycopg has it
        try:
            return self.read(data)
        except (DataError, OverflowError, ValueError):
            text = bytes(data)
            return self.nearest[not (text.startswith(b"-") or text.endswith(b"BC"))]

    def read(self, data: Buffer) -> Any:
        return self._standard.load(data)


class MomentLoader(_Reads):
    """Reads a timestamptz, in UTC whatever the time zone of the session."""

    reads, nearest = "timestamptz", (EARLIEST, LATEST)

    def read(self, data: Buffer) -> Any:
        return super().read(data).astimezone(UTC)


class DurationLoader(_Reads):
    """Reads an interval."""

    reads, nearest = "interval", (timedelta.min, timedelta.max)


CONTEXT = SimpleNamespace(adapters=AdaptersMap(adapters), connection=None)  # of a connection
CONTEXT.adapters.register_loader("timestamptz", MomentLoader)
CONTEXT.adapters.register_loader("interval", DurationLoader)
