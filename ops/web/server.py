"""Serve the ops page on its port, and the probes on theirs."""

import os
import socket
from contextlib import suppress
from threading import Thread
from time import monotonic

import structlog
from starlette.types import ASGIApp
from uvicorn import Config

from core import logs
from core.errors import StackError
from core.settings import Settings
from ops.web.app import create_app
from ops.web.limits import BACKLOG, HEAD_BYTES, KEEP_ALIVE_S
from ops.web.probes import create_probes
from ops.web.protocol import LimitedProtocol, LimitedServer

HUNG_S = 30.0  # without a tick of its loop the page is dead
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = structlog.get_logger(__name__)


def serve(settings: Settings) -> None:
    """Serve until a signal comes. Raises StackError where the address cannot be had."""
    logs.configure(settings)
    if settings.ops_auth is None and settings.ops_host not in LOOPBACK:
        log.warning("no_password", host=settings.ops_host, see="ELS_OPS_AUTH")
    app = create_app(settings)
    _look_for(settings.ops_host, settings.ops_port)
    page = server_of(app, settings.ops_host, settings.ops_port)
    if settings.health_port:
        serve_probes(settings, page)
    with suppress(KeyboardInterrupt):  # the signal that ended it
        page.run()


def _look_for(host: str, port: int) -> None:
    """Say in words that an address is taken, or not of this host: uvicorn would only log it."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        unknown = isinstance(error, socket.gaierror)
        reason = error.strerror if unknown else os.strerror(error.errno or 0)
        raise StackError(
            f"the page cannot be served on {host}:{port}: {reason};"
            " set ELS_OPS_HOST and ELS_OPS_PORT to an address of this host that is free"
        ) from error


def server_of(app: ASGIApp, host: str, port: int) -> LimitedServer:
    """Prepare a server with every limit of `ops.web.limits`."""
    return LimitedServer(
        Config(
            app,
            host=host,
            port=port,
            http=LimitedProtocol,
            ws="none",
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
            proxy_headers=False,  # a client could give itself the address of another
            log_config=None,
            access_log=False,  # searches name files
            server_header=False,
            timeout_graceful_shutdown=3,  # live pages close at once; nothing else takes long
        )
    )


def serve_probes(settings: Settings, page: LimitedServer) -> Thread:
    """Serve the probes of a page, in a thread that ends with the process.

    Exits if the port is taken.
    """
    assert settings.health_port is not None, "the caller looks"

    def alive() -> bool:
        return monotonic() - page.ticked_at < HUNG_S

    probes = server_of(create_probes(settings, alive), settings.ops_host, settings.health_port)
    listening: socket.socket = probes.config.bind_socket()
    thread = Thread(target=probes.run, args=([listening],), name="els-probes", daemon=True)
    thread.start()
    return thread
