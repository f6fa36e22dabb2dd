"""The pages: each renders its template with what `board` reads."""

from typing import Any

from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ops.web import board
from ops.web.actions import notice_of
from ops.web.addresses import BadAddress, text_of
from ops.web.connections import Connections
from ops.web.limits import STREAMS, STREAMS_OF_CLIENT, Places, client_of
from ops.web.query import Query, page_of
from ops.web.rendering import Render
from ops.web.stream import SECTIONS, Stream, Subscription
from ops.web.summary import Summary
from ops.web.tokens import Signer


class Views:
    def __init__(
        self, connections: Connections, stream: Stream, render: Render, signer: Signer | None
    ) -> None:
        self.connections = connections
        self.stream = stream
        self.render = render
        self.signer = signer  # None: the pages do not act
        self.places = Places(STREAMS, STREAMS_OF_CLIENT)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.batches),
            Route("/batches/{batch_id:path}", self.batch),
            Route("/dead-letters", self.dead_letters),
            Route("/dead-letters/{number}", self.dead_letter),
            Route("/outbox", self.outbox),
            Route("/workers", self.workers),
            Route("/activity", self.activity),
            Route("/stream", self.events),
        ]

    def batches(self, request: Request) -> Response:
        query, summary = Query.of(request.query_params), self.stream.summary()
        return self._page(
            request, "board.html", summary, **board.board(self.connections, summary, query)
        )

    def batch(self, request: Request) -> Response:
        """Show one batch; 404 for an unknown one, with what may be the reason."""
        summary, batch_id = self.stream.summary(), text_of(request.path_params, "batch_id")
        context = board.batch(self.connections, summary, batch_id, request.query_params)
        status = 404 if context["explanation"].state == "unknown" else 200
        return self._page(
            request, "batch.html", summary, status, address=_address(request), **context
        )

    def dead_letters(self, request: Request) -> Response:
        context = board.dead_letters(self.connections, request.query_params)
        summary = self.stream.summary()
        return self._page(
            request, "dead_letters.html", summary, address=_address(request), **context
        )

    def dead_letter(self, request: Request) -> Response:
        """Show one dead letter with its body. Raises HTTPException where there is none."""
        context = board.dead_letter(self.connections, request.path_params["number"])
        if context is None:
            raise HTTPException(404)
        return self._page(request, "dead_letter.html", self.stream.summary(), **context)

    def outbox(self, request: Request) -> Response:
        context = board.outbox(self.connections, request.query_params)
        summary = self.stream.summary()
        return self._page(request, "outbox.html", summary, address=_address(request), **context)

    def workers(self, request: Request) -> Response:
        return self._section(request, "workers")

    def activity(self, request: Request) -> Response:
        return self._section(request, "activity")

    def _section(self, request: Request, name: str) -> Response:
        context = SECTIONS[name].read(self.connections)
        return self._page(request, f"{name}.html", self.stream.summary(), **context)

    async def events(self, request: Request) -> ASGIApp:
        """Stream the changes of a page. Raises Crowded if too many are streamed."""

        async def stream(scope: Scope, receive: Receive, send: Send) -> None:
            with self.places.place(client_of(scope)):
                subscription = await run_in_threadpool(self._subscription, request)
                last_id = request.headers.get("last-event-id")
                events = EventSourceResponse(self.stream.events(subscription, last_id))
                await events(scope, receive, send)

        return stream

    def _subscription(self, request: Request) -> Subscription:
        """Read from the address which page a viewer has open."""
        params = request.query_params
        if batch_id := text_of(params, "batch"):
            return Subscription((batch_id,), reloads=True)
        if counter := text_of(params, "counter"):
            if counter not in board.COUNTERS:
                raise BadAddress(f"there is no counter {counter}")
            return Subscription(reloads=True, counter=counter)
        if section := text_of(params, "section"):
            if section not in SECTIONS:
                raise BadAddress(f"there is no section {section}")
            return Subscription(section=section)
        query = Query.of(params)
        if not query.search and not query.after:
            return Subscription(first_page=query)
        summary = self.stream.summary()
        with self.connections.postgres() as conn:
            return Subscription(tuple(page_of(conn, summary, query)[0]))

    def _page(
        self,
        request: Request,
        name: str,
        summary: Summary,
        status: int = 200,
        **context: Any,  # Any: what the template shows
    ) -> Response:
        """Render a page below the counters; 503 if Redis, and so a part of it, is missing."""
        done = notice_of(request, self.signer)
        html = self.render(name, top=self.stream.top(summary), done=done, **context)
        return HTMLResponse(html, 503 if summary.redis_unreachable else status)


def _address(request: Request) -> str:
    url = request.url
    return url.path + (f"?{url.query}" if url.query else "")
