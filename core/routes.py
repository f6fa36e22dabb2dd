"""Routes: which Celery tasks, on which queues, get the events of each type."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.catalogue import BATCH_ESSAYS_READY, EVENTS, OPT_IN, event_task

NAME = r"^[A-Za-z0-9_.-]{1,100}$"
EVERY = "*"  # in the place of a type: each type without an entry of its own, except opt-in ones
EXAMPLE = '[{"task": "els.event", "queue": "nlp"}]'
READY = BATCH_ESSAYS_READY.name


class Route(BaseModel):
    """One consumer of an event type: the Celery task to call, and the queue to call it on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(pattern=NAME)
    queue: str = Field(pattern=NAME)


Routes = Mapping[str, list[Route]]


def routes_of(event_type: str, routes: Routes, events_queue: str) -> list[Route]:
    """Return the consumers of a type. By default an opt-in type has none."""
    if event_type in routes:
        return routes[event_type]
    if event_type in OPT_IN:
        return []
    if EVERY in routes:
        return routes[EVERY]
    return [Route(task=event_task(event_type), queue=events_queue)]


def parse(text: str) -> object:
    """Read JSON. Raises ValueError, also where an object has the same name twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON ({error}); write {{{_of_a_type(READY)}}}") from error
    except RecursionError as error:
        raise ValueError(f"this nests too deep; write {{{_of_a_type(READY)}}}") from error


def check(given: object, own_queues: Sequence[str]) -> None:
    """Refuse routes that cannot mean what they say. Raises ValueError: the fault, the next step.

    `own_queues` are those that the service itself consumes.
    """
    if not isinstance(given, Mapping):
        raise ValueError(  # noqa: TRY004 - pydantic reports no TypeError
            f"must be an object from event type to a list of routes: {{{_of_a_type(READY)}}}"
        )
    for event_type, routes in given.items():
        _check_type(str(event_type))
        if not isinstance(routes, list | tuple):
            raise ValueError(  # noqa: TRY004 - as above
                f"{event_type} must have a list of routes: {_of_a_type(event_type)};"
                " [] sends the type nowhere"
            )
        for number, route in enumerate(routes, 1):
            _check_route(f"route {number} of {event_type}", route, own_queues)
        if len({(route["task"], route["queue"]) for route in routes}) < len(routes):
            raise ValueError(f"{event_type} has the same route twice; delete one of the two")


def _check_type(event_type: str) -> None:
    if event_type in EVENTS or event_type == EVERY:
        return
    spelt = {_bare(name): name for name in EVENTS}
    [nearest] = get_close_matches(_bare(event_type), spelt, n=1, cutoff=0)
    raise ValueError(
        f'there is no event {_shown(event_type)}; the nearest is {spelt[nearest]}, and "{EVERY}"'
        " is for every type without an entry of its own"
    )


def _check_route(which: str, route: object, own_queues: Sequence[str]) -> None:
    if not isinstance(route, Mapping):
        raise ValueError(  # noqa: TRY004 - as above
            f"{which} must be an object with a task and a queue: {EXAMPLE}"
        )
    for unknown in sorted(route.keys() - Route.model_fields.keys()):
        known = get_close_matches(unknown.lower(), Route.model_fields, n=1, cutoff=0.6)
        hint = f"did you mean {known[0]}?" if known else "it has a task and a queue, nothing else"
        raise ValueError(f"{which} has no field {_shown(unknown)}; {hint}")
    for name in Route.model_fields:
        value = route.get(name)
        if not isinstance(value, str) or not re.fullmatch(NAME[1:-1], value):
            lacks = "has no" if name not in route else f"has {_shown(value)} as its"
            raise ValueError(
                f"{which} {lacks} {name}; a {name} has 1 to 100 letters, digits, and . _ -,"
                f" as in {EXAMPLE}"
            )
    if route["queue"] in own_queues:
        raise ValueError(
            f"{which} leads to {route['queue']}, which the service itself consumes;"
            " give the receiver a queue of its own"
        )


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{_shown(name)} stands there twice; write it once")
        found[name] = value
    return found


def _of_a_type(event_type: str) -> str:
    return f'"{event_type}": {EXAMPLE}'


def _bare(name: str) -> str:
    """Reduce a name to its letters, so that a task's name and another case find their type."""
    return re.sub(r"[^a-z]", "", name.lower().removeprefix("els.events."))


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:60]
