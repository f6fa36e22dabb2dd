"""Charts of the last hour and the last day, from what Postgres holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import DictRow

from core.db.connection import Conn
from ops.queries import activity
from ops.web.connections import Connections
from ops.web.rendering import number
from ops.wording import age

HEIGHT = 60.0  # of a chart, in its own units; a bar is one unit wide
SPANS = (("The last hour", 60, 60), ("The last day", 48, 1_800))  # its parts, and their seconds
TITLES = {
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
    """Bars of one number; `said` is all of it in a line."""

    title: str
    said: str
    bars: Sequence[Bar]


def charts(connections: Connections) -> dict[str, list[Chart]]:
    """Draw a span's charts, by its title."""
    with connections.postgres() as conn:
        return {title: _of_span(conn, parts, part_s) for title, parts, part_s in SPANS}


def _of_span(conn: Conn, parts: int, part_s: int) -> list[Chart]:
    rows = activity(conn, parts, part_s)
    return [_chart(name, rows) for name in TITLES]


def _chart(name: str, rows: Sequence[DictRow]) -> Chart:
    values = [row[name] for row in rows]
    most = max(values)
    bars = [
        Bar(row["at"], _text(name, value), value / most * HEIGHT if most else 0.0)
        for row, value in zip(rows, values, strict=True)
    ]
    said = f"at most {_text(name, most)}" if name == "median_s" else f"{number(sum(values))} in all"
    return Chart(TITLES[name], said if most else "none", bars)


def _text(name: str, value: float) -> str:
    return age(value) if name == "median_s" else number(int(value))
