"""Moments that Python cannot hold: an infinite or far one is read as the nearest one.

Postgres has 'infinity', the year 10000 and years before Christ, which no datetime can hold. One
such value in one row would break every page that reads it.
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
    """Reads as psycopg does; its loaders in C cannot be extended."""

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
        try:
            moment: datetime = self._standard.load(data).astimezone(UTC)
        except (DataError, OverflowError):
            return EARLIEST if _before_time(data) else LATEST
        return moment


class DurationLoader(_Reads):
    """Reads an interval; one that Python cannot hold becomes the shortest or the longest."""

    reads = "interval"

    def load(self, data: Buffer) -> timedelta:
        try:
            duration: timedelta = self._standard.load(data)
        except (DataError, OverflowError, ValueError):
            return timedelta.min if _before_time(data) else timedelta.max
        return duration


class _Context:
    """Where a connection gets its loaders from."""

    def __init__(self) -> None:
        self.adapters = AdaptersMap(adapters)
        self.adapters.register_loader("timestamptz", MomentLoader)
        self.adapters.register_loader("interval", DurationLoader)

    @property
    def connection(self) -> None:
        return


CONTEXT = _Context()
