"""The alerts and the dashboard ask for what a running service exports, in PromQL that parses."""

import json
import re
import shutil
import subprocess

import promql_parser
import pytest
import yaml

from tests.live.conftest import until
from tests.ops.conftest import ROOT, fetch

PROMETHEUS, GRAFANA = ROOT / "deploy/prometheus", ROOT / "deploy/grafana"
[GROUP] = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"]}
PANELS = [
    panel
    for panel in json.loads((GRAFANA / "dashboards/els.json").read_text())["panels"]
    if panel["type"] != "row"
]
QUERIES = [(name, rule["expr"]) for name, rule in ALERTS.items()] + [
    (panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]
]
OF_PROMETHEUS = {"up"}  # written by the scrape itself
RUNBOOK = ROOT / "docs/runbook.md"


def selectors(expression):
    """List the selectors of a PromQL expression: metric name, and the labels that it asks for."""
    tree = promql_parser.parse(expression.replace("$__rate_interval", "1m"))
    found = []

    def look(node):
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(tree, look)
    return found


@pytest.fixture(scope="module")
def exported(service):
    """Every line of `/metrics` of the running service."""
    url = f"{service.env['ops_url']}/metrics"

    def complete():
        status, page = fetch(url)
        return status == 200 and not re.search(r"^els_up{.*} 0", page, re.MULTILINE) and page

    return until(complete, what="/metrics has every part")


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_asks_for_a_metric_that_is_exported(exported, where, query):
    names = {selector.name for selector in selectors(query)} - OF_PROMETHEUS

    there = set(re.findall(r"^(\w+)[{ ]", exported, re.MULTILINE))
    assert names or "up" in query
    assert names <= there


def test_an_alert_on_a_reason_asks_for_one_that_exists(exported):
    asked = {
        reason
        for _, query in QUERIES
        for given in re.findall(r'reason=~?"([^"]+)"', query)
        for reason in given.split("|")
    }

    assert asked
    assert asked <= set(re.findall(r'els_stuck_batches\{reason="(\w+)"', exported))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_section_of_the_runbook(name):
    rule = ALERTS[name]

    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]


def test_the_runbook_has_a_section_for_every_alert():
    sections = re.findall(r"^#+ (\w+)$", RUNBOOK.read_text(), re.MULTILINE)

    assert set(ALERTS) <= set(sections)


def test_every_alert_that_was_agreed_is_there():
    assert set(ALERTS) == {
        "ElsServiceDown",
        "ElsNoWorker",
        "ElsWorkerRestarts",
        "ElsSweepSilent",
        "ElsBatchStuck",
        "ElsBatchPastDeadline",
        "ElsOutboxOld",
        "ElsPendingThoughRegistered",
        "ElsSlotDrift",
        "ElsDeadLettersWaiting",
        "ElsRegistrationFailing",
        "ElsQueueGrows",
        "ElsQueueOld",
        "ElsEventsNotTaken",
        "ElsWorkerPaused",
        "ElsWritesRefused",
        "ElsNotReady",
        "ElsMessageStuck",
        "ElsReadinessSilent",
        "ElsMessagesFail",
    }


def test_every_metric_of_the_service_is_documented(exported):
    told = (ROOT / "docs/metrics.md").read_text()

    families = set(re.findall(r"^# TYPE (els_\w+) ", exported, re.MULTILINE))
    assert {name for name in families if f"`{name}" not in told} == set()


@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml"],
    ],
    ids=" ".join,
)
def test_promtool_agrees(command):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed here (Debian: in the package prometheus)")

    told = subprocess.run(
        [promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )

    assert told.returncode == 0, told.stdout + told.stderr


def test_promtool_takes_the_metrics_of_the_running_service(exported):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed here (Debian: in the package prometheus)")

    told = subprocess.run(
        [promtool, "check", "metrics"], input=exported, capture_output=True, text=True, check=False
    )

    assert told.returncode == 0, told.stdout + told.stderr
