"""The service over HTTP: pages, health, readiness and metrics; read-only unless a setting says."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from psycopg.errors import LockNotAvailable
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from core.settings import Settings
from ops.login import login_of
from ops.queues import app_on
from ops.web.actions import Actions, refusal_page
from ops.web.acts.plan import Refused
from ops.web.addresses import BadAddress
from ops.web.api.problems import ProblemFound, is_api, problem_response, response_of
from ops.web.api.routes import routes as api_routes
from ops.web.connections import Connections
from ops.web.forms import BadForm
from ops.web.guard import Guard
from ops.web.health import SnapshotCache, leading_beat, without_rows
from ops.web.limits import Crowded
from ops.web.metrics import Exposition
from ops.web.outages import OUTAGES, outage_notice
from ops.web.readiness import Readiness
from ops.web.rendering import STATIC, renderer
from ops.web.stream import Stream
from ops.web.summary import service_causes_of
from ops.web.tokens import Signer
from ops.web.views import Views

LISTS = ("/dead-letters", "/outbox")  # pages with a filter of their own
FOR_PROGRAMS = ("/readyz", "/health/", "/metrics")  # answer in JSON or text, errors too


def create_app(settings: Settings) -> Starlette:
    """Build the app on the servers of these settings.

    Raises BadSettings without them, and where the pages act and have no login.
    """
    urls = settings.server_urls("the page")
    login = login_of(settings)
    signer = Signer(*login) if login else None
    connections = Connections.of(settings, *urls)
    render = renderer(acts=signer is not None)
    stream = Stream(connections, render)
    actions = Actions(connections, stream, render, signer) if signer else None
    broker = app_on(settings.broker_or_redis_url)
    readiness = Readiness(connections, broker)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    def readyz(request: Request) -> Response:
        found = readiness.check()
        return JSONResponse(found, status_code=200 if found["ready"] else 503)

    snapshots = SnapshotCache(
        connections.postgres,
        connections.slots,
        settings.pending_alarm_s,
        lambda: service_causes_of(connections),
    )
    exposition = Exposition(snapshots, connections, broker, settings.queues, readiness.is_ready)

    def health_batches(request: Request) -> Response:
        beat = leading_beat(connections.client, settings.queue)
        waiting = [queue.as_json() for queue in connections.event_queues.receivers().queues]
        try:
            found = snapshots.snapshot().as_json()
        except LockNotAvailable:
            found = without_rows(service_causes_of(connections))
        return JSONResponse({**found, "beat": beat, "event_queues": waiting})

    def metrics(request: Request) -> Response:
        return Response(exposition.page(), media_type=CONTENT_TYPE_LATEST)

    async def on_error(request: Request, error: Exception) -> Response:
        """Answer an expected error in the format of its address."""
        status, context, headers = _describe(error)
        if is_api(request.url.path):
            return _problem(status, context, headers)
        if request.url.path.startswith(FOR_PROGRAMS):
            body = {"status": "unavailable" if status == 503 else "error", **context}
            return JSONResponse(body, status, headers=headers)
        back = request.url.path if request.url.path in LISTS else "/"
        html = render("error.html", status=status, back=back, **context)
        return HTMLResponse(html, status, headers=headers)

    async def on_refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, (BadForm, Refused)), "registered for them"
        return refusal_page(render, error)

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemFound), "registered for it"
        return response_of(error.problem)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        poller = asyncio.create_task(stream.run())
        yield
        poller.cancel()
        with suppress(asyncio.CancelledError):
            await poller
        await run_in_threadpool(connections.close)

    app = Starlette(
        routes=[
            *Views(connections, stream, render, signer).routes(),
            *(actions.routes() if actions else ()),
            *api_routes(connections, stream),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/health/batches", health_batches),
            Route("/metrics", metrics),
            Mount("/static", Static(directory=STATIC)),
        ],
        middleware=[Middleware(Guard, settings=settings)],
        exception_handlers={
            **dict.fromkeys((*OUTAGES, BadAddress, Crowded, HTTPException), on_error),
            **dict.fromkeys((BadForm, Refused), on_refused),
            ProblemFound: on_problem,
        },
        lifespan=lifespan,
    )
    app.state.stream = stream
    return app


def _problem(status: int, texts: Mapping[str, str], headers: Mapping[str, str]) -> Response:
    """Answer a program under `/v1`."""
    kind = {404: "unknown-address", 405: "method-not-allowed", 503: "unavailable"}.get(status)
    detail = "; ".join(filter(None, (texts["reason"], texts.get("step"))))
    if status == 404:
        texts = {"title": "There is no such address"}
        detail = "/v1/openapi.json lists every address"
    return problem_response(status, kind or "refused", detail, texts["title"], headers)


def _describe(error: Exception) -> tuple[int, dict[str, str], dict[str, str]]:
    """Return the status, the texts and the headers of the answer to an error."""
    match error:
        case BadAddress():
            return 400, {"title": "This address is not understood", "reason": str(error)}, {}
        case Crowded():
            texts = {"title": "Too many pages are live", "reason": "this one shows what it has"}
            return 503, texts, {"Retry-After": "30"}
        case HTTPException(status_code=404):
            return 404, {"title": "There is no such page", "reason": "check the address"}, {}
        case HTTPException():
            texts = {"title": error.detail, "reason": "the pages take only GET and HEAD"}
            return error.status_code, texts, dict(error.headers or {})
        case _:
            return 503, vars(outage_notice(error)), {"Retry-After": "2"}


class Static(StaticFiles):
    """Static files; a page asks for each by its version, so a browser may keep it."""

    def file_response(self, *args: Any, **more: Any) -> Response:  # Any: as Starlette has it
        """Let a browser keep a file forever if it asked for a version, else revalidate it."""
        response = super().file_response(*args, **more)
        scope: Scope = args[2]
        caching = "public, max-age=31536000, immutable" if scope["query_string"] else "no-cache"
        response.headers["Cache-Control"] = caching
        return response
