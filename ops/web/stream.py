"""The live pages: one poller looks once a tick for all viewers, who get what changed.

A part of a page (the counters, a row, the list of rows) has the tick at which it changed last. A
viewer is told what changed since the tick it has seen, which is its Last-Event-ID when it comes
back; so a lost connection costs nothing but the parts that changed meanwhile.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from ops.web.board import Query, pick, rows_of
from ops.web.formatting import Render, row_id
from ops.web.overview import Overview, Sources, Throughput, Troubles, find_troubles, look
from ops.web.silence import SILENCE, silence

TICK_S = 1.0
RULES_EVERY = timedelta(seconds=2)  # while somebody watches
RULES_IDLE = timedelta(seconds=10)  # else: a page that is opened need not wait for them
TOP = "top"
Key = tuple[str, object]  # the kind of a part, and which


@dataclass(frozen=True)
class Watch:
    """What a viewer sees: these batches, or whatever is on the first page of a query.

    One that `asks` is only told that something changed, and then asks for its page again;
    `counter` names the counter whose change concerns it.
    """

    batches: tuple[str, ...] = ()
    front: Query | None = None
    asks: bool = False
    counter: str | None = None


@dataclass(frozen=True)
class Part:
    """A part of a page: what it tells, the same as HTML, and the tick at which it changed."""

    told: Any  # Any: whatever can be compared
    html: str
    tick: int


@dataclass
class Parts:
    """The parts that somebody watches, as they are at a tick."""

    tick: int = 0
    parts: dict[Key, Part] = field(default_factory=dict)

    def renew(self, before: "Parts", key: Key, told: object, html: Callable[[], str]) -> None:
        """Take a part as it was before, or render what is told now."""
        known = before.parts.get(key)
        same = known is not None and known.told == told
        self.parts[key] = known if known and same else Part(told, html(), self.tick)

    def since(self, tick: int, key: Key) -> Part | None:
        """Give a part, if it has changed since a tick."""
        part = self.parts.get(key)
        return part if part and part.tick > tick else None


class Stream:
    """The poller of this process, and its viewers."""

    def __init__(self, sources: Sources, render: Render) -> None:
        self.sources = sources
        self.render = render
        self.throughput = Throughput()
        self.troubles: Troubles | None = None
        self.epoch = f"{time.time_ns():x}"
        self.now = Parts()
        self.watches: dict[object, Watch] = {}
        self._ticked = asyncio.Condition()
        self._looking = threading.Lock()
        self._seen: tuple[float, Overview] | None = None

    # --- looking ----------------------------------------------------------------------------------

    def overview(self) -> Overview:
        """Look at the service, or take what was seen within this tick."""
        with self._looking:
            if self._seen is None or time.monotonic() - self._seen[0] > TICK_S / 2:
                self.troubles = self.troubles or find_troubles(self.sources)
                self._seen = time.monotonic(), look(self.sources, self.troubles)
            return self._seen[1]

    def top(self, seen: Overview) -> str:
        """Render the counters."""
        return self.render("top.html", seen=seen, throughput=self.throughput)

    async def run(self) -> None:
        """Look once a tick for as long as the process lives; while nobody watches, at the least."""
        while True:
            began = time.monotonic()
            await run_in_threadpool(self._sample)
            await run_in_threadpool(self._ask_rules)
            if self.watches:
                now = await run_in_threadpool(self._look, set(self.watches.values()))
                async with self._ticked:
                    self.now = now
                    self._ticked.notify_all()
            await asyncio.sleep(max(TICK_S - (time.monotonic() - began), TICK_S / 10))

    def _sample(self) -> None:
        with suppress(redis.RedisError):
            self.throughput.sample(self.sources.client, datetime.now(UTC))

    def _ask_rules(self) -> None:
        every = RULES_EVERY if self.watches else RULES_IDLE
        if self.troubles and datetime.now(UTC) - self.troubles.at < every:
            return
        with suppress(*SILENCE):  # which whoever looks is told of
            self.troubles = find_troubles(self.sources)

    def _look(self, watches: set[Watch]) -> Parts:
        """Renew every part that somebody watches; without a server they stay as they are."""
        before, now = self.now, Parts(self.now.tick + 1)
        try:
            seen = self.overview()
            top = self.top(seen)
            now.renew(before, (TOP, None), top, lambda: top)
            for name in {watch.counter for watch in watches if watch.counter}:
                now.renew(before, ("counter", name), seen.counters[name], str)
            self._look_at_rows(now, seen, watches)
        except SILENCE as error:
            now = Parts(now.tick, dict(before.parts))
            away = silence(error)
            now.renew(before, (TOP, None), away, lambda: self.render("away.html", away=away))
        return now

    def _look_at_rows(self, now: Parts, seen: Overview, watches: set[Watch]) -> None:
        """Read all the rows that somebody watches, at once."""
        with self.sources.connection() as conn:
            fronts = {w.front: pick(conn, seen, w.front)[0] for w in watches if w.front}
            wanted = {batch_id for watch in watches for batch_id in watch.batches}
            rows = rows_of(conn, seen, sorted(wanted.union(*fronts.values())))
        for row in rows:
            key = ("row", row["batch_id"])
            now.renew(self.now, key, row, lambda row=row: self.render("row.html", row=row))  # type: ignore[misc] # the loop's row, bound
        for front, ids in fronts.items():
            html = [now.parts["row", batch_id].html for batch_id in ids]
            now.renew(self.now, ("front", front), ids, lambda html=html: "".join(html))  # type: ignore[misc] # as above

    # --- telling ----------------------------------------------------------------------------------

    async def events(self, watch: Watch, last_id: str | None) -> AsyncIterator[ServerSentEvent]:
        """Tell a viewer what changes, from what it has seen last."""
        ticket = object()
        self.watches[ticket] = watch
        tick = self._resume(last_id)
        try:
            while True:
                now = await self._after(tick)
                for event in news(now, watch, tick):
                    event.id = f"{self.epoch}-{now.tick}"
                    yield event
                tick = now.tick
        finally:
            del self.watches[ticket]

    async def _after(self, tick: int) -> Parts:
        """Wait for the parts of a later tick."""
        async with self._ticked:
            await self._ticked.wait_for(lambda: self.now.tick > tick)
            return self.now

    def _resume(self, last_id: str | None) -> int:
        """Read the tick that a viewer has seen; 0 for a new one, or one of another process."""
        epoch, _, tick = (last_id or "").partition("-")
        known = epoch == self.epoch and tick.isascii() and tick.isdigit() and len(tick) < 19
        return min(int(tick), self.now.tick) if known else 0


def news(now: Parts, watch: Watch, tick: int) -> Iterator[ServerSentEvent]:
    """Tell what of a viewer's page changed since a tick: swaps, or that it should ask."""
    front = now.parts.get(("front", watch.front))
    ids = front.told if front else watch.batches
    rows = [row for batch_id in ids if (row := now.since(tick, ("row", batch_id)))]
    swaps = [swap(TOP, top.html)] if (top := now.since(tick, (TOP, None))) else []
    if front and front.tick > tick:
        html = "".join(now.parts["row", batch_id].html for batch_id in ids)
        swaps.append(swap("rows", f'<tbody id="rows">{html}</tbody>'))
    elif not watch.asks:
        swaps += [swap(row_id(row.told["batch_id"]), row.html) for row in rows]
    if swaps:
        yield ServerSentEvent("".join(swaps))
    if watch.asks and (rows or now.since(tick, ("counter", watch.counter))):
        yield ServerSentEvent("", event="changed")


def swap(element: str, html: str) -> str:
    """Have htmx put HTML in the place of an element."""
    return f'<hx-partial hx-target="#{element}" hx-swap="outerMorph">{html}</hx-partial>'
