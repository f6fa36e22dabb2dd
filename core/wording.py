"""Moments and numbers as people read them."""

from datetime import datetime


def utc(moment: datetime) -> str:
    """Write a moment, which is in UTC: `2026-01-31 08:00:00 UTC`."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def number(count: int, one: str, more: str) -> str:
    """Write a number with its word: `1 content`, `3 contents`."""
    return f"{count} {one if count == 1 else more}"
