"""The service over HTTP, read-only: is it alive, is it ready, and how its batches are."""

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from celery import Celery
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import logs
from core.errors import BadSettings
from core.settings import Settings
from ops.web.board import BadAddress
from ops.web.formatting import STATIC, renderer
from ops.web.metrics import Exposition
from ops.web.overview import Sources
from ops.web.readiness import Readiness
from ops.web.silence import SILENCE, silence
from ops.web.stream import Stream
from ops.web.survey import Surveyor
from ops.web.views import Views

FOR_PROGRAMS = ("/readyz", "/health/", "/metrics")  # answer in JSON or text, errors too
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(settings: Settings) -> Starlette:
    """Build the app on the servers of these settings. Raises BadSettings without them."""
    if not settings.database_url or not settings.redis_url:
        raise BadSettings("ELS_DATABASE_URL and ELS_REDIS_URL must be set; `els run` sets them")
    sources = Sources.of(settings, settings.database_url, settings.redis_url)
    render = renderer()
    stream = Stream(sources, render)
    broker = Celery(broker=settings.broker_url or settings.redis_url)

    readiness = Readiness(sources, broker)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    def readyz(request: Request) -> Response:
        found = readiness.look()
        return JSONResponse(found, status_code=200 if found["ready"] else 503)

    surveyor = Surveyor(sources.pool, sources.slots)
    exposition = Exposition(surveyor, sources.client, broker, settings.queue)

    def health_batches(request: Request) -> Response:
        return JSONResponse(surveyor.survey().as_json())

    def metrics(request: Request) -> Response:
        return Response(exposition.page(), media_type=CONTENT_TYPE_LATEST)

    async def wrong(request: Request, error: Exception) -> Response:
        """Answer an error that has a name, the way the others of this address are answered."""
        status, told, more = _told(request, error)
        if request.url.path.startswith(FOR_PROGRAMS):
            body = {"status": "unavailable" if status == 503 else "error", **told}
            return JSONResponse(body, status, headers=more)
        return HTMLResponse(render("error.html", status=status, **told), status, headers=more)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        poller = asyncio.create_task(stream.run())
        yield
        poller.cancel()
        with suppress(asyncio.CancelledError):
            await poller
        await run_in_threadpool(sources.pool.close)

    app = Starlette(
        routes=[
            *Views(sources, stream, render).routes(),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/health/batches", health_batches),
            Route("/metrics", metrics),
            Mount("/static", Static(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers=dict.fromkeys((*SILENCE, BadAddress, HTTPException), wrong),
        lifespan=lifespan,
    )
    app.state.stream = stream
    return app


def serve(settings: Settings) -> None:
    """Serve until a signal comes."""
    logs.configure(settings)
    uvicorn.run(
        create_app(settings),
        host=settings.ops_host,
        port=settings.ops_port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=3,  # live pages are told at once; nothing else takes long
    )


def _told(request: Request, error: Exception) -> tuple[int, dict[str, str], dict[str, str]]:
    """Tell the status, the words and the headers of the answer to an error."""
    match error:
        case BadAddress():
            return 400, {"title": "This address is not understood", "reason": str(error)}, {}
        case HTTPException(status_code=404):
            told = {"title": "There is no such page", "reason": "nothing is at this address"}
            return 404, told, {}
        case HTTPException():
            told = {"title": error.detail, "reason": "the pages are only read, with GET or HEAD"}
            return error.status_code, told, dict(error.headers or {})
        case _:
            away = silence(error)
            return 503, vars(away), {"Retry-After": "2"}


class Static(StaticFiles):
    """Files that are named with their version, and so never change."""

    def file_response(self, *args: Any, **more: Any) -> Response:  # Any: as Starlette has it
        """Let a file be kept for good if it was asked for by version, else be asked for again."""
        response = super().file_response(*args, **more)
        scope: Scope = args[2]
        lasting = "public, max-age=31536000, immutable" if scope["query_string"] else "no-cache"
        response.headers["Cache-Control"] = lasting
        return response


class Guard:
    """Ask for the password of `ELS_OPS_AUTH` but at `/healthz`, and bind the browser's hands."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        given = settings.ops_auth.get_secret_value() if settings.ops_auth else None
        self.app = app
        self.wanted = b"Basic " + base64.b64encode(given.encode()) if given else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for the app, or let it answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = {name.lower() for name, _ in message["headers"]}
                more = [(n.lower().encode(), v.encode()) for n, v in HEADERS.items()]
                if b"cache-control" not in told:
                    more.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        if not self._known(scope):
            ask = {"WWW-Authenticate": 'Basic realm="els"'}
            refused = PlainTextResponse("a password is needed\n", status_code=401, headers=ask)
            return await refused(scope, receive, guarded)
        return await self.app(scope, receive, guarded)

    def _known(self, scope: Scope) -> bool:
        header = dict(scope["headers"]).get(b"authorization", b"")
        at_liberty = self.wanted is None or scope["path"] == "/healthz"
        return at_liberty or secrets.compare_digest(header, self.wanted or b"")
