"""Actions of operators on the page: a confirmation, then a form that its login signed.

A GET changes nothing. A POST is carried out if it comes from this page (`forms`), with exactly the
fields that a page with this login has signed for this action within the last hour (`tokens`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlencode

import psycopg
import redis
import structlog
from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from core.errors import Refusal, StackError
from ops.acting import Acting
from ops.client import Sender
from ops.queries.actions import LONGEST_REASON, By
from ops.routing import read_routes, routed_as
from ops.web.acts import ACTIONS
from ops.web.acts.plan import Action, Fields, Plan, Refused, Seen, Tools
from ops.web.addresses import address, text_of
from ops.web.connections import Connections
from ops.web.forms import BadForm, read_form, refuse_foreign
from ops.web.outages import outage_notice
from ops.web.rendering import Render, batch_url
from ops.web.stream import Stream
from ops.web.tokens import Signer
from ops.wording import words_of

AWAY = (psycopg.Error, redis.RedisError, OSError, StackError, AMQPError, OperationalError)
# Without this a browser sends `Origin: null` with the form, by the header of all other pages.
HEADERS = {"Referrer-Policy": "same-origin"}
NOT_SIGNED = ("reason", "signature")  # fields of a form that a person, or nobody, fills
ASKING = ("amend", "republish")  # begin with a form that asks what is missing
LISTS = {"replay": "/dead-letters", "discard": "/dead-letters", "republish": "/outbox"}

log = structlog.get_logger(__name__)


class Actions:
    def __init__(
        self, connections: Connections, stream: Stream, render: Render, signer: Signer
    ) -> None:
        self.connections = connections
        self.stream = stream
        self.render = render
        self.signer = signer

    def routes(self) -> list[Route]:
        return [Route("/act/{name}", self.answer, methods=["GET", "POST"])]

    async def answer(self, request: Request) -> Response:
        """Confirm an action, or carry it out. Raises Refused, BadForm."""
        name = request.path_params["name"]
        if name not in ACTIONS:
            raise HTTPException(404)
        fields: Fields = {}
        try:
            if request.method != "POST":
                params = request.query_params
                fields = {each: text_of(params, each) for each in params if params[each]}
                return await run_in_threadpool(self._confirm, name, fields)
            refuse_foreign(request.headers)
            fields = await read_form(request)
            return await run_in_threadpool(self._execute, name, fields)
        except (BadForm, Refused) as error:
            error.back = _back(name, fields, error)
            if request.method == "POST":
                actor = self.signer.user
                log.warning("action_refused", action=name, actor=actor, status=error.status)
            raise

    def _confirm(self, name: str, given: Fields) -> Response:
        plan = self._plan(ACTIONS[name], given)
        signature = self.signer.sign([name, plan.fields])
        html = self.render(
            "confirm.html",
            action=name,
            plan=plan,
            signature=signature,
            user=self.signer.user,
            longest=LONGEST_REASON,
        )
        return HTMLResponse(html, headers=HEADERS)

    def _execute(self, name: str, form: Mapping[str, str]) -> Response:
        given = {each: value for each, value in form.items() if each not in NOT_SIGNED}
        if not self.signer.verify(form.get("signature", ""), [name, given]):
            raise BadForm(403, "this page did not write it, or more than an hour ago")
        action = ACTIONS[name]
        try:
            plan = self._plan(action, given)
            by = By(self.signer.user, _reason(form.get("reason", ""), plan))
            with self._tools() as tools:
                line = action.act(tools, given, by)
        except Refusal as error:
            raise Refused(409, "This was refused", str(error), "go back, and look again") from error
        except AWAY as error:
            raise _failed(error) from error
        log.info("operator_acted", action=name, actor=by.actor)
        return RedirectResponse(self._with_notice(plan.back, line), 303)

    def _plan(self, action: Action, given: Fields) -> Plan:
        broken = {
            batch_id: [each.cause.title for each in violations]
            for batch_id, violations in self.stream.summary().stuck.violations.items()
        }
        with self.connections.primary() as conn:
            return action.plan(Seen(conn, broken), given)

    @contextmanager
    def _tools(self) -> Iterator[Tools]:
        """Lend what acts. Raises redis.RedisError where Redis does not answer."""
        connections = self.connections
        settings, client = connections.settings, connections.client
        client.ping()
        routed = routed_as(settings, read_routes(client, settings.queue))  # as the workers do
        with Sender(settings.broker_or_redis_url, settings.queue) as sender:
            yield Tools(Acting(routed, connections.pool, connections.slots, sender.app), sender)

    def _with_notice(self, page: str, line: str) -> str:
        """Add to an address what was done, signed: nobody else can make the page say so."""
        notice = urlencode({"done": line, "signed": self.signer.sign(["done", line])})
        return f"{page}{'&' if '?' in page else '?'}{notice}"


def refusal_page(render: Render, error: BadForm | Refused) -> Response:
    """Say why the page does not act, and the next step."""
    if isinstance(error, BadForm):
        step = "open the page again, and confirm there"
        title = "This form is not accepted"
        error = Refused(error.status, title, error.reason, step, error.back)
    return HTMLResponse(render("refused.html", refused=error), error.status)


def _back(name: str, fields: Fields, error: BadForm | Refused) -> str:
    """Return where a refused action goes on: at its form again, else at what it was to change."""
    given = {each: value for each, value in fields.items() if each not in NOT_SIGNED}
    if isinstance(error, BadForm) or ("signature" in fields and error.status in (400, 503)):
        return address(f"/act/{name}", given) if fields else "/"
    if error.status == 400 and name in ASKING:
        return address(f"/act/{name}", {each: given.get(each) for each in ("batch", "type")})
    if "batch" in given:
        return batch_url(given["batch"])
    if "number" in given and error.status == 409:
        return f"/dead-letters/{given['number']}"
    return LISTS.get(name, "/")


def notice_of(request: Request, signer: Signer | None) -> str | None:
    """Read what was done from an address; None: nothing, or not by this page."""
    line, signature = (request.query_params.get(name, "") for name in ("done", "signed"))
    return line if line and signer and signer.verify(signature, ["done", line]) else None


def _reason(text: str, plan: Plan) -> str | None:
    reason = text.strip()
    step = "go back and give one"
    if plan.asks:
        raise Refused(400, "Something is missing", f"{plan.title}: say what changes", "go back")
    if plan.needs_reason and not reason:
        raise Refused(400, "A reason is missing", "say why, for whoever asks later", step)
    if len(reason) > LONGEST_REASON:
        longest = f"it has at most {LONGEST_REASON} characters"
        raise Refused(400, "The reason is too long", longest, "go back and shorten it")
    return reason or None


def _failed(error: Exception) -> Refused:
    """Describe a server that did not do its part."""
    reason = words_of(error)
    match error:
        case psycopg.errors.InsufficientPrivilege() | psycopg.errors.ReadOnlySqlTransaction():
            title, rights = "Postgres does not let the page write", "docs/access.md"
            return Refused(503, title, reason, f"give its role the rights of a worker: {rights}")
        case redis.exceptions.NoPermissionError():
            title, rights = "Redis does not let the page write", "els access redis"
            return Refused(503, title, reason, f"give its user the rights that {rights} prints")
        case StackError() | AMQPError() | OperationalError():
            title = "The broker did not take it"
        case _:
            title = outage_notice(error).title
    step = "look at /readyz; what was done by then is in the list: els actions list"
    return Refused(503, title, reason, step)
