"""Errors of the read API, as problem details (RFC 9457)."""

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from core.parsing import PYDANTIC, RULES

PREFIX = "/v1"
MEDIA_TYPE = "application/problem+json"
TYPES = "urn:essay-lifecycle-service:problem:"


class WrongParameter(BaseModel):
    """A parameter that the request got wrong."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    parameter: str
    """Its name."""
    message: str
    """The rule that its value breaks."""


class PossibleCause(BaseModel):
    """Why nothing may be known of what was asked for."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    code: str
    """As in the runbook."""
    title: str
    """The cause in words."""
    command: str
    """What a person can do."""


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    type: str
    """A URN that names the kind of problem, and stays the same."""
    title: str
    """The kind of problem in words."""
    status: int
    """The status of the answer."""
    detail: str
    """What is wrong with this request, and what to do next."""
    errors: list[WrongParameter] = []
    """With `invalid-parameter`: each parameter that is wrong."""
    causes: list[PossibleCause] = []
    """With `unknown-batch`: why the batch may be unknown."""


class ProblemFound(Exception):
    """A request that gets a problem for an answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def is_api(path: str) -> bool:
    """Tell whether an address is one of the read API."""
    return path == PREFIX or path.startswith(PREFIX + "/")


def not_found(what: str, detail: str, causes: list[PossibleCause] | None = None) -> ProblemFound:
    """Make the problem of an id that nothing has; `what` is a batch, an essay, a message."""
    return ProblemFound(
        Problem(
            type=f"{TYPES}unknown-{what}",
            title=f"There is no such {what}",
            status=404,
            detail=detail,
            causes=causes or [],
        )
    )


def invalid(errors: list[WrongParameter]) -> ProblemFound:
    names = ", ".join(dict.fromkeys(each.parameter for each in errors))
    return ProblemFound(
        Problem(
            type=f"{TYPES}invalid-parameter",
            title="A parameter is not valid",
            status=422,
            detail=f"correct {names}; /v1/openapi.json describes every parameter",
            errors=errors,
        )
    )


def wrong_parameters(error: ValidationError) -> ProblemFound:
    """Describe what a model refuses, without the values."""
    return invalid([_wrong(each) for each in error.errors(include_url=False, include_input=False)])


def _wrong(error: ErrorDetails) -> WrongParameter:
    name = ".".join(map(str, error["loc"])) or "parameters"
    return WrongParameter(parameter=name[:64], message=_rule(error))


def _rule(error: ErrorDetails) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "there is no such parameter"
        case "uuid_parsing":  # pydantic quotes a character of it
            return "must be a UUID"
    said = error["msg"].removeprefix("Value error, ")
    return PYDANTIC.sub("must", RULES.get(error.get("ctx", {}).get("pattern", ""), said))


def problem_response(
    status: int, kind: str, detail: str, title: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a problem that is none of a parameter or an id."""
    title = title or HTTPStatus(status).phrase
    problem = Problem(type=TYPES + kind, title=title, status=status, detail=detail)
    return response_of(problem, headers)


def response_of(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    body = problem.model_dump_json(exclude_defaults=True)
    return Response(body, problem.status, headers=headers, media_type=MEDIA_TYPE)
