"""What a request must be before the app sees it: small, for this host, with the password.

`/healthz` needs neither the name of this host nor the password, `/readyz` only the password.
"""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.settings import Settings
from ops.web.api.problems import is_api, problem_response
from ops.web.limits import ADDRESS_BYTES, HEAD_BYTES, Crowded, client_of
from ops.web.passwords import Password

PROBES = ("/healthz", "/readyz")  # asked for by address, and by names that nobody can list
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none';"
    " base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::\d{1,5})?")
READING = ("GET", "HEAD")  # only the routes of actions answer another one, POST
LOOPBACK = ("127.0.0.1", "::1")
# What follows a refused request may be its body: nobody is to take it for another request.
CLOSE = (b"connection", b"close")


CLOSING = {"Connection": "close"}


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused; most refusals end the connection."""

    status: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=lambda: CLOSING)

    def response(self, path: str) -> Response:
        """Answer in the form of the address: a problem for a program, else plain text."""
        phrase = HTTPStatus(self.status).phrase
        if is_api(path):
            kind = phrase.lower().replace(" ", "-")
            return problem_response(self.status, kind, self.reason, headers=self.headers)
        text = f"{phrase}: {self.reason}\n"
        return PlainTextResponse(text, self.status, headers=self.headers)


class Guard:
    """Refuses requests, and adds the headers for safety to every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.password = Password(settings.ops_auth) if settings.ops_auth else None
        self.hosts = Hosts([settings.ops_host, *settings.ops_allowed_hosts])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                own = {"Cache-Control": "no-store", **HEADERS}
                named = [(n.lower().encode(), v.encode()) for n, v in own.items()]
                more = [(n, v) for n, v in named if n not in present]
                if scope["method"] not in READING:
                    more.append(CLOSE)
                message["headers"] = [*message["headers"], *more]
            await send(message)

        refused = self._of_bad_form(scope) or await self._of_stranger(scope)
        answer = refused.response(scope["path"]) if refused else self.app
        return await answer(scope, receive, guarded)

    def _of_bad_form(self, scope: Scope) -> "Refusal | None":
        """Refuse a request that no page of ours and no probe makes."""
        headers = Headers(scope=scope)
        if len(scope["raw_path"]) + len(scope["query_string"]) > ADDRESS_BYTES:
            return Refusal(414, f"an address has at most {ADDRESS_BYTES} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            return Refusal(431, f"the headers have at most {HEAD_BYTES} bytes")
        if scope["method"] in READING and _has_body(headers):
            return Refusal(413, "the pages take no body")
        if scope["path"] not in PROBES and not self.hosts.allow(scope, headers.get("host", "")):
            return Refusal(
                400, "this page is not served under that name: see ELS_OPS_ALLOWED_HOSTS"
            )
        return None

    async def _of_stranger(self, scope: Scope) -> "Refusal | None":
        """Refuse a request without the password."""
        if self.password is None or scope["path"] == "/healthz":
            return None
        given = Headers(scope=scope).get("authorization", "").encode()
        try:
            if await self.password.admits(client_of(scope), given):
                return None
        except Crowded:
            wait = {**CLOSING, "Retry-After": "5"}
            return Refusal(429, "too many requests wait for a password", wait)
        return Refusal(
            401,
            "the user and password of ELS_OPS_AUTH are needed",
            {"WWW-Authenticate": 'Basic realm="els"'},
        )


class Hosts:
    """The names under which the page is served.

    A web site can give a name of its own the address of this host, and so read the page through the
    browser of whoever visits it. It cannot do so with a name without a dot, nor with an address.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = {
            each.lower().strip("[]") for each in (*names, *LOOPBACK, socket.gethostname())
        }
        self.suffixes = [".localhost", *(each[1:] for each in self.names if each.startswith("*."))]

    def allow(self, scope: Scope, host: str) -> bool:
        """Tell whether a request may name this host."""
        found = HOST.fullmatch(host)
        if "*" in self.names or found is None:
            return "*" in self.names
        if found[1]:
            return found[1].lower() in self.names | _connected_to(scope)
        name = found[2].lower().rstrip(".")
        if name in self.names | _connected_to(scope) or "." not in name:
            return True
        return any(name.endswith(suffix) for suffix in self.suffixes)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _connected_to(scope: Scope) -> set[str]:
    return {scope["server"][0]} if scope["server"] else set()
