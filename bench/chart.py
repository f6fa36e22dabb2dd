"""Charts for the docs: plain SVG, readable on light and dark pages."""

import math
from collections.abc import Sequence
from html import escape

from bench.measure import Figure, Ratio, number, spread

WIDTH, LEFT, RIGHT, ROW, TOP = 720, 330, 90, 26, 56
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#57606a}"
    ".bar{fill:#2f81f7}.line{fill:none;stroke:#2f81f7;stroke-width:2}"
    ".mark{stroke:#8b949e;stroke-width:1}.title{font-weight:600}</style>"
)


def bars(title: str, figures: Sequence[Figure]) -> str:
    """Draw a bar per figure, with a line from its lowest to its highest round."""
    most = max(max(figure.values) for figure in figures)
    scale = (WIDTH - LEFT - RIGHT) / most
    rows = []
    for row, figure in enumerate(figures):
        values, top = spread(figure.values), 34 + row * ROW
        low, high = LEFT + values["low"] * scale, LEFT + values["high"] * scale
        rows += [
            _text(LEFT - 8, top + 13, figure.what, "end"),
            f'<rect class="bar" x="{LEFT}" y="{top}" height="16" rx="2"'
            f' width="{values["median"] * scale:.1f}"/>',
            f'<line class="mark" x1="{low:.1f}" x2="{high:.1f}" y1="{top + 8}" y2="{top + 8}"/>',
            _text(high + 6, top + 13, number(values["median"])),
        ]
    unit = figures[0].unit
    return _svg(34 + len(figures) * ROW + 8, f"{title} ({unit})", rows)


def line(title: str, points: Sequence[tuple[float, Figure]], across: str) -> str:
    """Draw figures along a logarithmic axis."""
    high = max(spread(figure.values)["median"] for _, figure in points)
    logs = [math.log10(at) for at, _ in points]
    span = (logs[-1] - logs[0]) or 1
    left, width, height = 70, WIDTH - 140, 200
    marks_at = []
    for x_log, (at, figure) in zip(logs, points, strict=True):
        median = spread(figure.values)["median"]
        x, y = left + (x_log - logs[0]) / span * width, TOP + height * (1 - median / high)
        marks_at.append((x, y, at, median))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in marks_at)
    marks = [f'<polyline class="line" points="{path}"/>']
    for x, y, at, median in marks_at:
        marks.append(f'<circle class="bar" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        marks.append(_text(x, y - 10, number(median), "middle"))
        marks.append(_text(x, TOP + height + 20, f"{at:,.0f}", "middle"))
    floor = TOP + height
    marks.append(f'<line class="mark" x1="{left}" x2="{left + width}" y1="{floor}" y2="{floor}"/>')
    marks.append(_text(WIDTH / 2, TOP + height + 40, across, "middle"))
    return _svg(TOP + height + 50, f"{title} ({points[0][1].unit})", marks)


def ratio_bars(title: str, ratios: Sequence[Ratio]) -> str:
    return bars(title, [Figure(r.goal.of, r.goal.what, "times", r.values) for r in ratios])


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    name = f'<title>{escape(title)}</title><text class="title" x="8" y="20">{escape(title)}</text>'
    return "\n".join([head, STYLE, name, *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
