"""The pages: each reads what `ops/web/board.py` tells, and gives it to its template."""

from typing import Any

from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ops.web import board
from ops.web.board import BadAddress, Query
from ops.web.formatting import Render
from ops.web.overview import Overview, Sources
from ops.web.stream import Stream, Watch


class Views:
    """The pages over these sources."""

    def __init__(self, sources: Sources, stream: Stream, render: Render) -> None:
        self.sources = sources
        self.stream = stream
        self.render = render

    def routes(self) -> list[Route]:
        """List where the pages are."""
        return [
            Route("/", self.batches),
            Route("/batches/{batch_id:path}", self.batch),
            Route("/dead-letters", self.dead_letters),
            Route("/outbox", self.outbox),
            Route("/stream", self.events),
        ]

    def batches(self, request: Request) -> Response:
        """Show the board."""
        query, seen = Query.of(request.query_params), self.stream.overview()
        return self._page("board.html", seen, **board.board(self.sources, seen, query))

    def batch(self, request: Request) -> Response:
        """Show one batch; 404 for one that nobody has seen, with what that may mean."""
        seen, batch_id = self.stream.overview(), board.text_of(request.path_params, "batch_id")
        told = board.batch(self.sources, seen, batch_id, request.query_params)
        status = 404 if told["told"].state == "unknown" else 200
        return self._page("batch.html", seen, status, address=_address(request), **told)

    def dead_letters(self, request: Request) -> Response:
        """Show the messages that could not be carried out."""
        told, seen = board.letters(self.sources, request.query_params), self.stream.overview()
        return self._page("dead_letters.html", seen, address=_address(request), **told)

    def outbox(self, request: Request) -> Response:
        """Show the events that wait for delivery."""
        told, seen = board.outbox(self.sources, request.query_params), self.stream.overview()
        return self._page("outbox.html", seen, address=_address(request), **told)

    async def events(self, request: Request) -> Response:
        """Stream what changes on a page."""
        watched = await run_in_threadpool(self._watch, request)
        last_id = request.headers.get("last-event-id")
        return EventSourceResponse(self.stream.events(watched, last_id))

    def _watch(self, request: Request) -> Watch:
        """Read from the address which page a viewer looks at."""
        params = request.query_params
        if batch_id := board.text_of(params, "batch"):
            return Watch((batch_id,), asks=True)
        if counter := board.text_of(params, "counter"):
            if counter not in board.COUNTERS:
                raise BadAddress(f"there is no counter {counter}")
            return Watch(asks=True, counter=counter)
        query = Query.of(params)
        if not query.words and not query.after:
            return Watch(front=query)
        seen = self.stream.overview()
        with self.sources.connection() as conn:
            return Watch(tuple(board.pick(conn, seen, query)[0]))

    def _page(
        self,
        name: str,
        seen: Overview,
        status: int = 200,
        **told: Any,  # Any: what the template shows
    ) -> Response:
        """Render a page under the counters; 503 where it had to do without Redis, which it says."""
        html = self.render(name, top=self.stream.top(seen), **told)
        return HTMLResponse(html, 503 if seen.away else status)


def _address(request: Request) -> str:
    url = request.url
    return url.path + (f"?{url.query}" if url.query else "")
