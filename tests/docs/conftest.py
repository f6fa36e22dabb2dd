"""The service that the pages talk to, with the routes that they ask for."""

import json
import re

import pytest

from core.catalogue import EVENTS, OPT_IN
from core.routes import EVERY
from core.settings import Settings
from tests.docs import pages
from tests.live.conftest import until
from tests.ops.conftest import Service, fetch

ALL = EVENTS.keys() - OPT_IN  # the types that "*" stands for
ROUTES = re.compile(r"ELS_EVENT_ROUTES='([^']*)'")


def routes():
    """Add up the routes of all pages; each type also goes where it goes by default."""
    asked: dict[str, list] = {}
    for page in pages.names():
        for block in pages.blocks(page):
            for given in ROUTES.findall(block.text):
                for event_type, consumers in json.loads(given).items():
                    for each_type in ALL if event_type == EVERY else [event_type]:
                        known = asked.setdefault(each_type, [])
                        known += [each for each in consumers if each not in known]
    for event_type, consumers in asked.items():
        consumers += [route.model_dump() for route in Settings().routes(event_type)]
    return asked


@pytest.fixture(scope="package")  # even one without work takes time of the others
def service(memory):
    running = Service(memory / "home", ELS_EVENT_ROUTES=json.dumps(routes()))
    health = f"{running.env['ops_url']}/healthz"
    until(lambda: fetch(health)[0] == 200, 60, "the page answers")  # docs/api.md asks it at once
    yield running
    running.stop()
