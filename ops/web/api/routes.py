"""The read API over HTTP: parameters in, JSON with an ETag out."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256

import psycopg
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ops.web.api.endpoints import ENDPOINTS, Endpoint
from ops.web.api.openapi import DOCUMENT, LAG, openapi
from ops.web.api.parameters import OfDocument, Parameters
from ops.web.api.problems import WrongParameter, invalid, wrong_parameters
from ops.web.api.reader import Reader
from ops.web.connections import Connections
from ops.web.replica import Replica
from ops.web.stream import Stream


def routes(connections: Connections, stream: Stream) -> list[Route]:
    made = [Route(each.path, _answering(each, connections, stream)) for each in ENDPOINTS]
    return [*made, Route(DOCUMENT, _document)]


def _answering(
    endpoint: Endpoint, connections: Connections, stream: Stream
) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        wanted = _read(endpoint.takes, request)
        try:
            with connections.reading() as (conn, replica):
                found = endpoint.read(Reader(conn, stream), wanted)
        except psycopg.DataError as error:  # what looks like a cursor, with no such moment
            raise invalid([WrongParameter(parameter="after", message="is unknown")]) from error
        body, lag = found.model_dump_json(), _lag(replica)
        if not found.PASSING:
            return _with_etag(request, body, lag)
        lasting = found.model_dump_json(exclude=found.PASSING)
        return _with_etag(request, body, lag, f"W/{_etag(lasting)}")

    return answer


def _document(request: Request) -> Response:
    _read(OfDocument, request)
    return _with_etag(request, json.dumps(openapi(), ensure_ascii=False), {})


def _read(model: type[Parameters], request: Request) -> Parameters:
    """Read the parameters of a request. Raises ProblemFound."""
    given: dict[str, str] = {**request.path_params}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise invalid([WrongParameter(parameter=name[:64], message="must be given once")])
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise wrong_parameters(error) from error


def _lag(replica: Replica | None) -> Mapping[str, str]:
    if replica is None:
        return {}
    lag = replica.lag_s
    return {LAG: "unknown" if lag is None else f"{lag:.1f}"}


def _with_etag(
    request: Request, body: str, headers: Mapping[str, str], etag: str | None = None
) -> Response:
    """Answer with a body, or 304 to a client that has it."""
    etag = etag or _etag(body)
    kept = {**headers, "ETag": etag, "Cache-Control": "private, no-cache"}
    if _has(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=kept)
    return Response(body, headers=kept, media_type="application/json")


def _etag(body: str) -> str:
    return f'"{sha256(body.encode()).hexdigest()[:32]}"'


def _has(known: str, etag: str) -> bool:
    """Tell whether an If-None-Match names an ETag, or every one; weak ones count too."""
    named = [each.strip().rpartition("W/")[2] for each in known.split(",")]
    return etag.removeprefix("W/") in named or named == ["*"]
