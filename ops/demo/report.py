"""What the demo sent, what came of it, and whether the invariants held."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ops.client import Event, Sent
from ops.queries.invariants import Invariant
from ops.reports import show_invariants


@dataclass(frozen=True)
class Message:
    """One enqueued event, and what it is in the demo."""

    what: str
    sent: Sent


WHY = {"excess": "every slot taken"}


@dataclass(frozen=True)
class DemoReport:
    """`outcomes` and `slots` belong to the messages, in their order."""

    messages: list[Message]
    outcomes: list[Any]  # Any: JSON
    slots: list[str | None]
    events: list[Event]
    invariants: list[Invariant]

    @property
    def ok(self) -> bool:
        return all(invariant.holds for invariant in self.invariants)

    def as_json(self) -> dict[str, Any]:  # Any: JSON
        return {
            "ok": self.ok,
            "sent": [
                {"what": m.what, "task": m.sent.task, "event": m.sent.event}
                | {"outcome": outcome, "slot": slot}
                for m, outcome, slot in self._rows()
            ],
            "events": self.events,
            "readiness": [e for e in self.events if e["type"] == "BatchEssaysReady"],
            "invariants": [
                {"title": i.title, "holds": i.holds, "broken": i.broken} for i in self.invariants
            ],
        }

    def show(self, out: Console) -> None:
        out.print(self._table())
        out.print("\nEvents received downstream, repeats dropped\n", style="bold")
        for event in self.events:
            count = event["data"].get("ready_count", event["data"].get("provisioned_count", ""))
            line = f"  {event['sequence']:>2}  {event['subject']}  {event['type']}  {count}"
            out.print(line, markup=False, soft_wrap=True)
        for event in self.events:
            if event["type"] == "BatchEssaysReady":
                out.print(f"\nBatchEssaysReady of {event['subject']}\n", style="bold")
                out.print(_one_essay_a_line(event), markup=False, soft_wrap=True)
        show_invariants(self.invariants, out)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("WHAT WAS SENT", "TASK", "OUTCOME"):
            table.add_column(name, no_wrap=True)
        table.add_column("SLOT")
        for message, outcome, slot in self._rows():
            word = outcome["outcome"] if outcome else "?"
            task = message.sent.task.removeprefix("els.")
            parts = filter(None, (slot, _why(message, word)))
            table.add_row(message.what, task, word, ", ".join(parts))
        return table

    def _rows(self) -> Iterable[tuple[Message, Any, str | None]]:  # Any: JSON
        return zip(self.messages, self.outcomes, self.slots, strict=True)


def _why(message: Message, outcome: str) -> str | None:
    """Say why a message did not give a text its slot."""
    return message.sent.event.get("validation_error_code") or WHY.get(outcome)


def _one_essay_a_line(event: Event) -> str:
    essays: Iterable[Event] = event["data"].get("ready_essays", [])
    outline = {**event, "data": {**event["data"], "ready_essays": "ESSAYS"}}
    listed = ",\n".join(f"      {json.dumps(essay, ensure_ascii=False)}" for essay in essays)
    return json.dumps(outline, indent=2, ensure_ascii=False).replace(
        '"ESSAYS"', f"[\n{listed}\n    ]"
    )
