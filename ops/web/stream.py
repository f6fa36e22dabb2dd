"""The live pages: one poller reads once a tick for all viewers, who get what changed.

Each part of a page (the counters, a row, the list of rows) has the tick of its last change. A
viewer gets the parts that changed after the last tick it received, which a reconnecting browser
sends as Last-Event-ID.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import redis
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from ops.web.activity import activity
from ops.web.board import rows_of
from ops.web.connections import Connections
from ops.web.outages import OUTAGES, outage_notice
from ops.web.query import Query, page_of
from ops.web.rendering import Render, row_id
from ops.web.summary import StuckBatches, Summary, find_stuck, read_summary
from ops.web.throughput import Throughput
from ops.web.workers import workers

TICK_S = 1.0
RULES_EVERY = timedelta(seconds=2)  # while a page is open
RULES_IDLE = timedelta(seconds=10)  # else, so that a new page need not wait for them
TOP = "top"
Context = Mapping[str, Any]  # Any: what a template shows
Key = tuple[str, object]  # the kind of a part, and which


@dataclass(frozen=True)
class Section:
    """The part of a page that is read for all its viewers, at most every so many seconds."""

    read: Callable[[Connections], Context]
    every_s: float


SECTIONS = {"workers": Section(workers, 2.0), "activity": Section(activity, 10.0)}


@dataclass(frozen=True)
class Subscription:
    """What an open page shows: these batches, the first page of a query, or one of `SECTIONS`.

    A page that `reloads` only learns that something changed, and requests itself again; `counter`
    is the counter that it shows.
    """

    batches: tuple[str, ...] = ()
    first_page: Query | None = None
    section: str | None = None
    reloads: bool = False
    counter: str | None = None


@dataclass(frozen=True)
class Part:
    """A part of a page: its value, the same as HTML, and the tick of its last change."""

    value: Any  # Any: whatever can be compared
    html: str
    tick: int


@dataclass
class Parts:
    """The parts of all open pages at a tick."""

    tick: int = 0
    parts: dict[Key, Part] = field(default_factory=dict)

    def update(self, before: "Parts", key: Key, value: object, html: Callable[[], str]) -> None:
        """Keep a part whose value is the same as before, else render it."""
        known = before.parts.get(key)
        same = known is not None and known.value == value
        self.parts[key] = known if known and same else Part(value, html(), self.tick)

    def since(self, tick: int, key: Key) -> Part | None:
        """Return a part if it changed after a tick."""
        part = self.parts.get(key)
        return part if part and part.tick > tick else None


class Stream:
    """The poller of this process, and its subscriptions."""

    def __init__(self, connections: Connections, render: Render) -> None:
        self.connections = connections
        self.render = render
        self.throughput = Throughput()
        self.stuck: StuckBatches | None = None
        self.epoch = f"{time.time_ns():x}"
        self.now = Parts()
        self.subscriptions: dict[object, Subscription] = {}
        self._ticked = asyncio.Condition()
        self._reading = threading.Lock()
        self._last: tuple[float, Summary] | None = None
        self._sections: dict[str, tuple[float, Context]] = {}

    # --- reading ----------------------------------------------------------------------------------

    def summary(self) -> Summary:
        """Return the summary of this tick; read it if nobody has."""
        with self._reading:
            if self._last is None or time.monotonic() - self._last[0] > TICK_S / 2:
                stuck = self.find_stuck()
                self._last = time.monotonic(), read_summary(self.connections, stuck)
            return self._last[1]

    def find_stuck(self) -> StuckBatches:
        """Return what the last check of the rules found; check them if nobody has."""
        self.stuck = self.stuck or find_stuck(self.connections)
        return self.stuck

    def top(self, summary: Summary) -> str:
        """Render the outages and counters."""
        replica = self.connections.replica
        throughput = self.throughput
        return self.render("top.html", summary=summary, throughput=throughput, replica=replica)

    async def run(self) -> None:
        """Read once a tick until cancelled; while no page is open, only what a new page needs."""
        while True:
            began = time.monotonic()
            await run_in_threadpool(self._sample)
            await run_in_threadpool(self._measure_replica)
            await run_in_threadpool(self._check_rules)
            if self.subscriptions:
                now = await run_in_threadpool(self._read, set(self.subscriptions.values()))
                async with self._ticked:
                    self.now = now
                    self._ticked.notify_all()
            await asyncio.sleep(max(TICK_S - (time.monotonic() - began), TICK_S / 10))

    def _sample(self) -> None:
        with suppress(redis.RedisError):
            self.throughput.sample(self.connections.client, datetime.now(UTC))

    def _measure_replica(self) -> None:
        if self.connections.replica:
            with suppress(*OUTAGES, psycopg.Error):  # `/readyz` names a primary that is away
                self.connections.replica.measure(self.connections.primary)

    def _check_rules(self) -> None:
        every = RULES_EVERY if self.subscriptions else RULES_IDLE
        if self.stuck and datetime.now(UTC) - self.stuck.at < every:
            return
        with suppress(*OUTAGES):  # `_read`, or the next page, reports it
            self.stuck = find_stuck(self.connections)

    def _read(self, subscriptions: set[Subscription]) -> Parts:
        """Update every part of an open page; in an outage all but the top stay the same."""
        before, now = self.now, Parts(self.now.tick + 1)
        try:
            summary = self.summary()
            top = self.top(summary)
            now.update(before, (TOP, None), top, lambda: top)
            for name in {each.counter for each in subscriptions if each.counter}:
                now.update(before, ("counter", name), summary.counters[name], str)
            self._read_rows(now, summary, subscriptions)
            for name in {each.section for each in subscriptions if each.section}:
                section = self._section(name)
                html = partial(self.render, f"{name}_now.html", **section)
                now.update(before, ("section", name), section, html)
        except OUTAGES as error:
            now = Parts(now.tick, dict(before.parts))
            notice = outage_notice(error)
            html = partial(self.render, "outage.html", outage=notice)
            now.update(before, (TOP, None), notice, html)
        return now

    def _section(self, name: str) -> Context:
        read_at, known = self._sections.get(name, (0.0, None))
        if known is not None and time.monotonic() - read_at < SECTIONS[name].every_s:
            return known
        found = SECTIONS[name].read(self.connections)
        self._sections[name] = time.monotonic(), found
        return found

    def _read_rows(self, now: Parts, summary: Summary, subscriptions: set[Subscription]) -> None:
        """Read the rows of all open pages at once."""
        queries = {each.first_page for each in subscriptions if each.first_page}
        with self.connections.postgres() as conn:
            pages = {query: page_of(conn, summary, query)[0] for query in queries}
            wanted = {batch_id for each in subscriptions for batch_id in each.batches}
            rows = rows_of(conn, summary, sorted(wanted.union(*pages.values())))
        for row in rows:
            html = partial(self.render, "row.html", row=row)
            now.update(self.now, ("row", row["batch_id"]), row, html)
        for query, ids in pages.items():
            parts = [now.parts["row", batch_id].html for batch_id in ids]
            now.update(self.now, ("page", query), ids, partial("".join, parts))

    # --- sending ----------------------------------------------------------------------------------

    async def events(
        self, subscription: Subscription, last_id: str | None
    ) -> AsyncIterator[ServerSentEvent]:
        """Send the changes of an open page, starting after the last event that it received."""
        ticket = object()
        self.subscriptions[ticket] = subscription
        tick = self._resume(last_id)
        try:
            while True:
                now = await self._after(tick)
                for event in changes(now, subscription, tick):
                    event.id = f"{self.epoch}-{now.tick}"
                    yield event
                tick = now.tick
        finally:
            del self.subscriptions[ticket]

    async def _after(self, tick: int) -> Parts:
        async with self._ticked:
            await self._ticked.wait_for(lambda: self.now.tick > tick)
            return self.now

    def _resume(self, last_id: str | None) -> int:
        """Read the tick of a Last-Event-ID; 0 without one, or for one of another process."""
        epoch, _, tick = (last_id or "").partition("-")
        known = epoch == self.epoch and tick.isascii() and tick.isdigit() and len(tick) < 19
        return min(int(tick), self.now.tick) if known else 0


def changes(now: Parts, subscription: Subscription, tick: int) -> Iterator[ServerSentEvent]:
    """Yield what changed on a page after a tick: parts to swap, or `changed` to reload it."""
    page = now.parts.get(("page", subscription.first_page))
    ids = page.value if page else subscription.batches
    rows = [row for batch_id in ids if (row := now.since(tick, ("row", batch_id)))]
    swaps = [swap(TOP, top.html)] if (top := now.since(tick, (TOP, None))) else []
    if section := now.since(tick, ("section", subscription.section)):
        swaps.append(swap(str(subscription.section), section.html))
    if page and page.tick > tick:
        html = "".join(now.parts["row", batch_id].html for batch_id in ids)
        swaps.append(swap("rows", f'<tbody id="rows">{html}</tbody>'))
    elif not subscription.reloads:
        swaps += [swap(row_id(row.value["batch_id"]), row.html) for row in rows]
    if swaps:
        yield ServerSentEvent("".join(swaps))
    if subscription.reloads and (rows or now.since(tick, ("counter", subscription.counter))):
        yield ServerSentEvent("", event="changed")


def swap(element: str, html: str) -> str:
    """Return what makes htmx replace an element."""
    return f'<hx-partial hx-target="#{element}" hx-swap="outerMorph">{html}</hx-partial>'
