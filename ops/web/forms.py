"""Reads a form that a browser sends: small, of this page, and whole within seconds."""

import asyncio
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from ops.web.limits import FORM_BYTES, HEAD_S

FIELDS = 20
TYPE = "application/x-www-form-urlencoded"


@dataclass(eq=False)
class BadForm(Exception):
    """A form that no page of ours sends, or not any more; `back` leads to a new one."""

    status: int
    reason: str
    back: str = "/"


def refuse_foreign(headers: Headers) -> None:
    """Raises BadForm for a form of another web site, as far as the browser tells.

    What is no browser tells nothing; the signature of the form decides there.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        raise BadForm(403, "the browser says that another site sent this form")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        raise BadForm(403, f"the form comes from {origin[:200]}, which is not this page")


async def read_form(request: Request) -> dict[str, str]:
    """Read the fields of a form. Raises BadForm."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != TYPE:
        raise BadForm(415, f"the pages take only {TYPE}")
    try:
        async with asyncio.timeout(HEAD_S):
            body = await _body(request)
    except TimeoutError as error:
        raise BadForm(408, "the form did not come within seconds") from error
    except ClientDisconnect as error:
        raise BadForm(400, "the form ended early") from error
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            max_num_fields=FIELDS,
            errors="strict",
        )
    except ValueError as error:
        raise BadForm(400, "the form cannot be read") from error
    form = dict(fields)
    if len(form) < len(fields) or any("\0" in value for value in form.values()):
        raise BadForm(400, "a field stands there twice, or holds a NUL")
    return form


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > FORM_BYTES:
            raise BadForm(413, f"a form has at most {FORM_BYTES} bytes")
    return bytes(body)
