"""Templates, and how they write states, moments, numbers and ids."""

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2s, sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from core.states import BatchStatus
from ops.wording import age, utc

HERE = Path(__file__).parent
STATIC = HERE / "static"
NOT_REGISTERED = "not_registered"
STATES = {  # as the contract names them -> as the pages do
    BatchStatus.AWAITING_CONTENT_VALIDATION.value: "Waits for contents",
    BatchStatus.AWAITING_STUDENT_VALIDATION.value: "Waits for students",
    BatchStatus.READY_FOR_PIPELINE_EXECUTION.value: "Ready",
    BatchStatus.CONTENT_INGESTION_FAILED.value: "All files failed",
    BatchStatus.TIMED_OUT.value: "Timed out",
    BatchStatus.CANCELLED.value: "Cancelled",
    NOT_REGISTERED: "Not registered",
}
SLOT_STATES = {
    "awaiting_content": "open",
    "ready_for_processing": "assigned",
    "content_ingestion_failed": "failed",
    "cancelled": "cancelled",
}

Render = Callable[..., str]


def renderer(*, acts: bool = False) -> Render:
    """Return the function that renders a template and escapes its values.

    `acts`: the pages have what operators can do.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    versions = {path.name: sha256(path.read_bytes()).hexdigest()[:12] for path in STATIC.iterdir()}
    environment.globals.update(
        asset=lambda name: f"/static/{name}?v={versions[name]}",
        states=STATES,
        slot_states=SLOT_STATES,
        row_id=row_id,
        acts=acts,
    )
    environment.filters.update(
        age=age,
        sentence=sentence,
        ago=ago,
        utc=utc,
        span=span,
        number=number,
        batch_url=batch_url,
        points=points,
    )

    def render(name: str, **context: Any) -> str:  # Any: whatever the template shows
        return environment.get_template(name).render(context)

    return render


def ago(at: datetime) -> Markup:
    """Write `5 min ago` or `in 5 min`, with the moment as its title."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    text = f"in {age(-seconds)}" if seconds < 0 else f"{age(seconds)} ago"
    return _moment(at, "ago", text)


def span(at: datetime) -> Markup:
    """Write the time since a moment: `5 min`."""
    seconds = max((datetime.now(UTC) - at).total_seconds(), 0)
    return _moment(at, "span", age(seconds))


def _moment(at: datetime, form: str, text: str) -> Markup:
    # Nothing here comes from outside, so nothing is escaped: a page has a hundred of these.
    return Markup(  # noqa: S704 - as above
        f'<time datetime="{at.isoformat()}" title="{utc(at)}" data-{form}>{text}</time>'
    )


def sentence(text: str) -> str:
    """Begin a text with a capital, and leave the full stop to the page; change no other letter."""
    return text[:1].upper() + text[1:].rstrip(".")


def number(count: int) -> str:
    """Write a number with a space between thousands."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def row_id(batch_id: str) -> str:
    """Make the HTML id of a batch's row; a malformed batch id in a dead letter is safe too."""
    return "row-" + blake2s(batch_id.encode("utf-8", "replace"), digest_size=8).hexdigest()


def batch_url(batch_id: str) -> str:
    return "/batches/" + quote(batch_id, safe="")


def points(rates: list[float], width: int, height: int) -> str:
    """Return the points of an SVG polyline through these values."""
    top = max(*rates, 1)
    step = width / (len(rates) - 1)
    return " ".join(
        f"{n * step:.1f},{height - rate / top * height:.1f}" for n, rate in enumerate(rates)
    )
