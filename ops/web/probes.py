"""`/healthz` and `/readyz` on a port of their own, in a thread of their own.

They answer while strangers fill the page. As they need no password, they name no server's error.
"""

import time
from collections.abc import Callable, Mapping
from threading import Lock

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from core.settings import Settings
from ops.queues import app_on
from ops.web.connections import Connections
from ops.web.readiness import Readiness

FRESH_S = 1.0  # an answer is kept so long, however many ask
PARTS = ("postgres", "redis", "broker")


def create_probes(settings: Settings, alive: Callable[[], bool]) -> Starlette:
    """Build the app on connections of its own; `alive` tells whether the page's loop runs."""
    connections = Connections.of(settings, *settings.server_urls("the page"))
    broker = app_on(settings.broker_or_redis_url)
    answers = Answers(Readiness(connections, broker))

    async def healthz(request: Request) -> Response:
        if alive():
            return PlainTextResponse("alive\n")
        return PlainTextResponse("the page does not run\n", 503)

    def readyz(request: Request) -> Response:
        found = answers.last()
        return JSONResponse(found, status_code=200 if found["ready"] else 503)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz)])


class Answers:
    """Asks the servers once for all who ask within a second."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
        self._asking = Lock()
        self._last: Mapping[str, object] = {}
        self._fresh_until = 0.0

    def last(self) -> Mapping[str, object]:
        """Return `ready`, and of each part `ok` or `fault`."""
        with self._asking:
            if time.monotonic() >= self._fresh_until:
                self._last = _without_reasons(self._readiness.check())
                self._fresh_until = time.monotonic() + FRESH_S
            return self._last


def _without_reasons(found: Mapping[str, object]) -> Mapping[str, object]:
    parts = {part: "ok" if found[part] == "ok" else "fault" for part in PARTS}
    return {"ready": found["ready"], **parts}
