"""Where events go: by the routes that a worker noted last, else by the settings of whoever asks."""

import json
from contextlib import suppress
from typing import cast

from redis import Redis, RedisError

from core.catalogue import EVENTS, OPT_IN
from core.routes import Route
from core.settings import Settings
from core.signs.heartbeat import ROUTES


def read_routes(client: Redis, queue: str) -> str | None:
    """Read what a worker noted last; None: no worker has, or Redis does not answer."""
    try:
        return cast("str | None", client.get(ROUTES.format(queue=queue)))
    except RedisError:
        return None


def routed_as(settings: Settings, routing: str | None) -> Settings:
    """Return the settings with the routes of a worker; unchanged where it noted none.

    Or where another program has written that key.
    """
    with suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
        noted = json.loads(routing or "")
        led = {
            event_type: [Route.model_construct(**route) for route in those]
            for event_type, those in noted["event_routes"].items()
        }
        events_queue = str(noted["events_queue"])
        return settings.model_copy(update={"events_queue": events_queue, "event_routes": led})
    return settings


def types_by_queue(settings: Settings) -> dict[str, frozenset[str]]:
    """Return the queues that receivers consume, each with the event types that lead there."""
    led = [(route.queue, name) for name in EVENTS for route in settings.routes(name)]
    return {
        queue: frozenset(name for to, name in led if to == queue)
        for queue in sorted({queue for queue, _ in led})
    }


def types_to_nobody(settings: Settings) -> frozenset[str]:
    """Return the types that are written and that no route leads anywhere."""
    return frozenset(name for name in EVENTS if name not in OPT_IN and not settings.routes(name))
