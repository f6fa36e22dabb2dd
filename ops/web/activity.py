"""Charts of the last hour and the last day: what Postgres holds, and what workers counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

import redis
from psycopg.rows import DictRow

from core.db.connection import Conn
from core.metrics import MINUTES
from ops.queries import numbers
from ops.web.connections import Connections
from ops.web.rendering import number
from ops.wording import age

HEIGHT = 60.0  # of a chart, in its own units; a bar is one unit wide
SPANS = (("The last hour", 60, 60), ("The last day", 48, 1_800))  # its parts, and their seconds
TITLES = {
    "assigned": "Contents assigned",
    "registered": "Batches registered",
    "ready": "Batches ready",
    "contents": "Contents of ready batches",
    "median_s": "From registration to ready, median",
    "letters": "Dead letters that wait",
}


@dataclass(frozen=True)
class Bar:
    at: datetime
    text: str
    height: float


@dataclass(frozen=True)
class Chart:
    """Bars of one number; `said` is all of it in a line, `most` the highest bar, if any."""

    name: str
    title: str
    said: str
    most: str
    bars: Sequence[Bar]


def activity(connections: Connections) -> dict[str, dict[str, list[Chart]]]:
    """Draw the charts of each span, by its title."""
    assigned = assigned_by_minute(connections.client)
    with connections.postgres() as conn:
        spans = {title: _of_span(conn, assigned, parts, s) for title, parts, s in SPANS}
    return {"spans": spans}


def assigned_by_minute(client: redis.Redis) -> dict[int, int] | None:
    """Read how many contents all processes assigned in each minute of the last day (since 1970).

    None: Redis does not answer.
    """
    try:
        found = cast("dict[str, str]", client.hgetall(MINUTES))
    except redis.RedisError:
        return None
    return {int(minute): round(float(count)) for minute, count in found.items()}


def _of_span(
    conn: Conn, assigned: Mapping[int, int] | None, parts: int, part_s: int
) -> list[Chart]:
    rows = numbers.activity(conn, parts, part_s)
    counts: Counter[int] = Counter()
    for minute, count in (assigned or {}).items():
        counts[int((minute * 60 - rows[0]["at"].timestamp()) // part_s)] += count
    for n, row in enumerate(rows):
        row["assigned"] = counts[n]
    return [_chart(name, rows) for name in TITLES if name != "assigned" or assigned is not None]


def _chart(name: str, rows: Sequence[DictRow]) -> Chart:
    values = [row[name] for row in rows]
    most = max(values)
    bars = [
        Bar(row["at"], _text(name, value), value / most * HEIGHT if most else 0.0)
        for row, value in zip(rows, values, strict=True)
    ]
    said = f"at most {_text(name, most)}" if name == "median_s" else f"{number(sum(values))} in all"
    if not most:
        return Chart(name, TITLES[name], "none", "", bars)
    return Chart(name, TITLES[name], said, _text(name, most), bars)


def _text(name: str, value: float) -> str:
    return age(value) if name == "median_s" else number(int(value))
