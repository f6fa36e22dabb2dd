"""The places of the causes, and a line that says how many explanations were right."""

from collections import Counter
from urllib.parse import urlsplit

import psycopg
import pytest

from migrations import upgrade
from tests.explain.place import servers
from tests.rabbitmq.node import MISSING, SERVER, Node

VERDICTS = ("right", "true symptom", "wrong", "empty")


@pytest.fixture(scope="session")
def template(database_url):
    """A migrated database that nobody uses, to be copied."""
    url = urlsplit(database_url)._replace(path="/explain_template").geturl()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE explain_template")
    upgrade(url)
    return url


@pytest.fixture(scope="session")
def running(template, tmp_path_factory):
    """A whole stack that many causes share."""
    with servers(tmp_path_factory.mktemp("running"), template) as place:
        place.run()
        yield place


@pytest.fixture
def place(template, tmp_path):
    with servers(tmp_path, template) as made:
        yield made


@pytest.fixture
def alone(tmp_path):
    with servers(tmp_path, None) as made:
        yield made


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    if not SERVER.exists():
        pytest.skip(MISSING)
    started = Node(tmp_path_factory.mktemp("rabbitmq"))
    started.start()
    yield started
    started.do("stop")


@pytest.fixture
def rabbitmq(template, tmp_path, node):
    with servers(tmp_path, template, ELS_BROKER_URL=node.url) as made:
        made.node = node
        yield made


def pytest_terminal_summary(terminalreporter):
    """Print how many explanations were right, and what was amiss with the others."""
    tests = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            said = dict(getattr(report, "user_properties", ()))
            if "verdict" in said:
                tests[report.nodeid] = said
    if not tests:
        return
    number = Counter(said["verdict"] for said in tests.values())
    counts = ", ".join(f"{number[each]} {each}" for each in VERDICTS)
    terminalreporter.write_line(f"explained: {len(tests)} causes: {counts}")
    for said in tests.values():
        if said["verdict"] != "right":
            terminalreporter.write_line(f"  {said['verdict']:12} {said['case']}: {said['amiss']}")
