"""Run Celery in a process whose clock is off by what a file says: a script, for beat.

    python -P clock.py FILE beat …

The file holds seconds and may change while the process runs, as when a clock is set. It stands
outside of the package's imports: whatever is imported before the clock is changed keeps the real
one. `time.monotonic` stays true, as it does where a clock is set.
"""

import datetime as _datetime
import sys
import time
from pathlib import Path

FILE = Path(sys.argv[1])
_time = time.time
_real: type[_datetime.datetime] = _datetime.datetime


def off_s() -> float:
    """Read by how many seconds the clock is ahead; 0 where the file says nothing."""
    try:
        return float(FILE.read_text() or 0)
    except (FileNotFoundError, ValueError):
        return 0.0


class _Meta(type):
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _real)


class Datetime(_datetime.datetime, metaclass=_Meta):
    """`datetime` by the clock that is off."""

    @classmethod
    def now(cls, tz: _datetime.tzinfo | None = None) -> "Datetime":
        """Tell the time by that clock."""
        return cls.fromtimestamp(_time() + off_s(), tz)

    @classmethod
    def utcnow(cls) -> "Datetime":
        """Tell the time by that clock, in UTC and without saying so."""
        return cls.now(_datetime.UTC).replace(tzinfo=None)


def main() -> None:
    """Change the clock, then become Celery."""
    time.time = lambda: _time() + off_s()
    _datetime.datetime = Datetime  # type: ignore[misc] # for whoever imports it from now on
    sys.argv = ["celery", *sys.argv[2:]]
    from celery.__main__ import main as celery  # noqa: PLC0415 - after the clock is changed

    celery()


if __name__ == "__main__":
    main()
