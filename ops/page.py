"""The service over HTTP, read-only: is it alive, is it ready, how are its batches."""

import base64
import secrets
from collections.abc import Callable
from typing import Any

import uvicorn
from celery import Celery
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from core import desk, ledger, logs
from core.errors import BadSettings
from core.settings import Settings
from core.slots import Slots, connect
from migrations import head
from ops.metrics import Exposition
from ops.survey import PATIENCE_S, UNANSWERED, Surveyor


def create_app(settings: Settings) -> Starlette:
    """Build the app on the servers of these settings. Raises BadSettings without them."""
    if not settings.database_url or not settings.redis_url:
        raise BadSettings("ELS_DATABASE_URL and ELS_REDIS_URL must be set; `els run` sets them")
    database_url, redis_url = settings.database_url, settings.redis_url
    pool = ledger.connect(database_url, size=2)
    slots = Slots(connect(redis_url, timeout_s=2))
    broker = Celery(broker=settings.broker_url or redis_url)

    def schema_at_head() -> None:
        with pool.connection(timeout=PATIENCE_S) as conn:
            revision = desk.revision(conn)
        if revision != head():
            raise OSError(f"the schema is at {revision}, not {head()}; run `els migrate`")

    def broker_answers() -> None:
        with broker.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=2)

    parts: dict[str, Callable[[], object]] = {
        "postgres": schema_at_head,
        "redis": slots.client.ping,
        "broker": broker_answers,
    }

    surveyor = Surveyor(pool, slots)
    exposition = Exposition(surveyor, slots.client, broker, settings.queue)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    def readyz(request: Request) -> Response:
        found = {name: _answer(check) for name, check in parts.items()}
        ready = all(answer == "ok" for answer in found.values())
        return JSONResponse({"ready": ready, **found}, status_code=200 if ready else 503)

    def health_batches(request: Request) -> Response:
        return JSONResponse(surveyor.survey().as_json())

    def metrics(request: Request) -> Response:
        return Response(exposition.page(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/health/batches", health_batches),
            Route("/metrics", metrics),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=_guard(settings))],
        exception_handlers=dict.fromkeys(UNANSWERED, _unanswered),
    )


def serve(settings: Settings) -> None:
    """Serve until a signal comes."""
    logs.configure(settings)
    uvicorn.run(
        create_app(settings),
        host=settings.ops_host,
        port=settings.ops_port,
        log_config=None,
        server_header=False,
    )


def _answer(check: Callable[[], object]) -> str:
    try:
        check()
    except UNANSWERED as error:
        return f"{type(error).__name__}: {error}"
    return "ok"


async def _unanswered(request: Request, error: Exception) -> Response:
    return JSONResponse({"status": "unavailable", "reason": str(error)}, status_code=503)


def _guard(settings: Settings) -> Any:  # Any: Starlette types the dispatch of a middleware so
    """Ask for the password of `ELS_OPS_AUTH` on every page but `/healthz`."""
    given = settings.ops_auth.get_secret_value() if settings.ops_auth else None
    wanted = b"Basic " + base64.b64encode(given.encode()) if given else None

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        header = request.headers.get("authorization", "").encode()
        if wanted and request.url.path != "/healthz" and not secrets.compare_digest(header, wanted):
            ask = {"WWW-Authenticate": 'Basic realm="els"'}
            return PlainTextResponse("a password is needed\n", status_code=401, headers=ask)
        return await call_next(request)

    return dispatch
