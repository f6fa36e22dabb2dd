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
NEAREST: dict[int, tuple[object, object]] = {  # before all that Python can hold, and after it
    adapters.types["timestamptz"].oid: (EARLIEST, LATEST),
    adapters.types["interval"].oid: (timedelta.min, timedelta.max),
}


class NearestLoader(Loader):
    """Reads as psycopg does, whose loaders in C cannot be extended, or takes the nearest value.

    A moment is in UTC, whatever the time zone of the session.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        standard = adapters.get_loader(oid, Format.TEXT)
        assert standard is not None, "psycopg reads both types"
        self._standard = standard(oid, context)

    def load(self, data: Buffer) -> Any:  # Any: as psycopg has it
        try:
            value = self._standard.load(data)
            return value.astimezone(UTC) if isinstance(value, datetime) else value
        except (DataError, OverflowError, ValueError):
            text = bytes(data)
            return NEAREST[self.oid][not (text.startswith(b"-") or text.endswith(b"BC"))]


CONTEXT = SimpleNamespace(adapters=AdaptersMap(adapters), connection=None)  # of a connection
for each in NEAREST:
    CONTEXT.adapters.register_loader(each, NearestLoader)
