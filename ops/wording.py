"""Moments, durations and numbers as people read them."""

from datetime import UTC, datetime


def utc(at: datetime) -> str:
    """Write a moment: `2026-01-31 08:00:00 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def age(seconds: float) -> str:
    """Write a duration in its largest unit: `3 min`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def age_of(at: datetime) -> str:
    """Write the time since a moment: `3 min`."""
    return age((datetime.now(UTC) - at).total_seconds())


def one_line(text: str) -> str:
    """Write a text of somebody else in one line: no part of it looks like a line of ours."""
    return " ".join(text.split())


def words_of(error: Exception) -> str:
    """Write an error in one line, by its name where it says nothing."""
    return one_line(str(error)) or type(error).__name__


def number(count: int, one: str, more: str = "") -> str:
    """Write a number with its word: `1 content`, `3 contents`; `more` where "s" is not enough."""
    return f"{count} {one if count == 1 else more or one + 's'}"
