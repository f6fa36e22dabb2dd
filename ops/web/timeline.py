"""The timeline of a batch, with the names of the files that its page shows."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Row = Mapping[str, Any]  # Any: a database row
Context = dict[str, Any]  # Any: what a template shows


def with_files(
    timeline: Iterable[Row], slots: Iterable[Row], without_slot: Iterable[Row]
) -> list[Context]:
    """Add to each line the names of its files: those that came to the same place in its second."""
    files: defaultdict[tuple[str, datetime], list[str]] = defaultdict(list)
    arrived = [
        *((row["assigned_at"], "slot", row["original_file_name"]) for row in slots),
        *((row["received_at"], row["place"], row["original_file_name"]) for row in without_slot),
    ]
    for at, place, name in sorted((each for each in arrived if all(each)), key=_time_and_name):
        files[place, _second(at)].append(name)
    return [{**row, "files": files.get((row["place"], _second(row["at"])), [])} for row in timeline]


def _time_and_name(arrival: Sequence[Any]) -> tuple[datetime, str]:  # Any: as above
    return arrival[0], arrival[2]


def _second(at: datetime) -> datetime:
    return at.replace(microsecond=0)
