"""The results of a run: for people, for programs, and for docs/performance.md."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import chart
from bench.cases import Case
from bench.growth import OPEN, SIZES
from bench.measure import Figure, Ratio, number, spread
from bench.queues import Json
from bench.testbed import Crew

CHARTS = "charts"


@dataclass
class Report:
    """Figures and ratios, and the machine and workers that they come from."""

    machine: Json
    crew: Crew
    broker: str
    seconds: float
    rounds: int
    started_at: datetime
    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    cpu: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    took_s: float = 0

    def note_cpu(self, cases: Sequence[Case]) -> None:
        """Keep the CPU time of each case: µs a content, in the median round."""
        for case in cases:
            if case.cpu:
                self.cpu[case.name] = {k: spread(v)["median"] for k, v in case.cpu.items()}

    def as_json(self) -> Json:
        return {
            "machine": self.machine,
            "crew": asdict(self.crew),
            "broker": self.broker,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "started_at": self.started_at.isoformat(),
            "took_s": round(self.took_s, 1),
            "figures": [figure.as_json() for figure in self.figures],
            "ratios": [ratio.as_json() for ratio in self.ratios],
            "cpu_us_a_content": self.cpu,
            "skipped": self.skipped,
        }

    def show(self, out: Console) -> None:
        machine, crew = self.machine, self.crew
        out.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB")
        out.print(
            f"{crew.workers} x {crew.pool} of {crew.processes}, prefetch {crew.prefetch}, broker"
            f" {self.broker}; median, lowest and highest of {self.rounds} rounds\n"
        )
        out.print(self._figures_table())
        out.print()
        out.print(self._ratios_table())
        for line in self.skipped:
            out.print(f"skipped: {line}", markup=False)

    def _figures_table(self) -> Table:
        table = _table("FIGURE", "MEDIAN", "LOW", "HIGH", "UNIT", "CPU WORKER", "POSTGRES", "REDIS")
        for figure in self.figures:
            values, cpu = spread(figure.values), self.cpu.get(figure.name, {})
            used = [number(cpu[k]) if k in cpu else "" for k in ("worker", "postgres", "valkey")]
            numbers = [number(values[k]) for k in ("median", "low", "high")]
            table.add_row(figure.what, *numbers, figure.unit, *used)
        table.caption = "CPU: µs a content"
        return table

    def _ratios_table(self) -> Table:
        table = _table("RATIO, ROUND BY ROUND", "MEDIAN", "LOW", "HIGH", "GOAL", "")
        for ratio in self.ratios:
            values, goal = spread(ratio.values), str(ratio.goal)
            met = "" if not goal else "✔" if ratio.goal.met(ratio.median) else "✘"
            numbers = [number(values[k]) for k in ("median", "low", "high")]
            table.add_row(ratio.goal.what, *numbers, goal, met)
        return table

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write the JSON and its charts; return the files."""
        (folder / CHARTS).mkdir(parents=True, exist_ok=True)
        texts = {f"{name}.json": json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"}
        texts |= {f"{CHARTS}/{name}-{key}.svg": svg for key, svg in self._charts().items()}
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
        return [folder / file for file in texts]

    def _charts(self) -> dict[str, str]:
        by_name = {figure.name: figure for figure in self.figures}
        peers = [r for r in self.ratios if r.goal.of == "contest_singles"]
        rates = [f for f in self.figures if f.unit == "a second" and not f.name.startswith(SLOTS)]
        drawn = {"rates": chart.bars("What one worker does", rates)} if rates else {}
        if peers:
            drawn["peers"] = chart.ratio_bars("How many times as fast as", peers)
        for key, sizes, what, across in GROWTH:
            points = [(n, by_name[f"{key}_{n}"]) for n in sizes if f"{key}_{n}" in by_name]
            if len(points) > 1:
                drawn[key] = chart.line(what, points, across)
        return drawn


SLOTS = ("register", "copy", "claim", "contest", "uploads_whole")  # on another scale
GROWTH = (
    ("batch_of", SIZES, "A content in a large batch", "essays of a batch"),
    ("open", OPEN, "A content among many open batches", "open batches"),
)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    for name in columns:
        is_text = name.startswith(("FIGURE", "RATIO", "UNIT", "GOAL")) or not name
        table.add_column(name, justify="left" if is_text else "right")
    return table
