"""Put the figures of the last `make bench` into docs/performance.md.

python -m bench.publish docs/performance docs/performance.md
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from os.path import relpath
from pathlib import Path

from bench.measure import number
from bench.queues import Json
from bench.report import CHARTS

START, END = "<!-- figures -->", "<!-- end of figures -->"


def publish(results: Path, page: Path) -> None:
    """Write every result of the folder between the two markers of the page."""
    parts = [part for file in sorted(results.glob("*.json")) for part in _result(file, page.parent)]
    block = "\n".join([START, "", *parts, END])
    text = page.read_text(encoding="utf-8")
    written = re.sub(f"{START}.*?{END}", lambda _: block, text, flags=re.DOTALL)
    page.write_text(written, encoding="utf-8")


def _result(file: Path, beside: Path) -> Iterator[str]:
    report = json.loads(file.read_text(encoding="utf-8"))
    machine, crew = report["machine"], report["crew"]
    day = datetime.fromisoformat(report["started_at"])
    yield (
        f"`{file.name}`, {day:%-d %B %Y}: {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['memory_gb']} GB, {machine['system']}; Python {machine['python']},"
        f" Celery {machine['packages']['celery']},"
        f" Postgres {machine['postgres']['server_version']}, {machine['redis']['server']}"
        f" {machine['redis']['version']}. {crew['workers']} x {crew['pool']} of"
        f" {crew['processes']}, prefetch {crew['prefetch']}, broker {report['broker']}. Medians of"
        f" {report['rounds']} rounds; in brackets the lowest and the highest.\n"
    )
    yield from _table(("ratio, round by round", "times", "goal", ""), map(_ratio, report["ratios"]))
    cpu = report["cpu_us_a_content"]
    heads = ("figure", "median", "unit", "CPU, µs a content: worker · Postgres · Redis")
    yield from _table(heads, (_figure(each, cpu.get(each["name"])) for each in report["figures"]))
    yield from (f"Skipped: {line}\n" for line in report["skipped"])
    for chart in sorted((file.parent / CHARTS).glob(f"{file.stem}-*.svg")):
        yield f"![{chart.stem}]({relpath(chart, beside)})\n"


def _ratio(ratio: Json) -> tuple[str, ...]:
    met = ("yes" if ratio["met"] else "no") if ratio["goal"] else ""
    return ratio["what"], _spread(ratio), ratio["goal"], met


def _figure(figure: Json, cpu: Json | None) -> tuple[str, ...]:
    used = [cpu[name] for name in ("worker", "postgres", "valkey") if name in cpu] if cpu else []
    return (
        figure["what"],
        _spread(figure),
        figure["unit"],
        " · ".join(f"{each:,.0f}" for each in used),
    )


def _spread(values: Json) -> str:
    median, low, high = (number(values[key]) for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join('---' for _ in heads)} |"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
