"""Moments and durations as operators write them, on the command line and on the page."""

from datetime import UTC, datetime, timedelta

UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def moment_of(text: str) -> datetime:
    """Read a moment in UTC, or an age such as 2h. Raises ValueError."""
    if (ago := duration_of(text)) is not None:
        try:
            return datetime.now(UTC) - ago
        except OverflowError as error:
            raise ValueError(f"{text} is too long ago") from error
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no moment (2026-01-31T08:00:00Z) and no age (2h)") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def duration_of(text: str) -> timedelta | None:
    """Read a duration such as 2h or 1.5d; None: it is none. Raises ValueError if it is too long."""
    if text[-1:] in UNITS and text[:-1].replace(".", "", 1).isdecimal():
        try:
            return timedelta(**{UNITS[text[-1]]: float(text[:-1])})
        except OverflowError as error:
            raise ValueError(f"{text} is too long") from error
    return None


def from_now(text: str) -> timedelta:
    """Read a deadline, a moment or a duration, as the time until then. Raises ValueError."""
    left = duration_of(text) or moment_of(text) - datetime.now(UTC)
    if left <= timedelta(0):
        raise ValueError(f"{text} has passed")
    return left
