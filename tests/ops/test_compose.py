import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"
SERVICES = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
PARTS = {"postgres", "valkey", "migrate", "worker", "beat", "ops", "flower"}
MONITORING = {"prometheus", "grafana"}
READY = "service_healthy"
DONE = "service_completed_successfully"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def compose() -> tuple[str, ...]:
    for tool in (("docker", "compose"), ("docker-compose",)):
        try:
            answer = run(*tool, "version")
        except FileNotFoundError:
            continue
        if answer.returncode == 0:
            return (*tool, "-f", str(COMPOSE_FILE))
    pytest.skip("neither `docker compose` nor `docker-compose` is installed here")


@pytest.fixture(scope="module")
def depends_on(compose: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Service to the services it waits for, each with the condition; as the tool reads the file."""
    as_json = run(*compose, "config", "--format", "json")
    if as_json.stdout.startswith("{"):
        services = json.loads(as_json.stdout)["services"]
        return {
            name: {other: how["condition"] for other, how in it.get("depends_on", {}).items()}
            for name, it in services.items()
        }
    # docker-compose 1.29 knows only YAML (asked for JSON, it prints its usage and exits 0), always
    # in this one layout: no parser is needed.
    text = run(*compose, "config").stdout
    blocks = re.findall(r"^  ([\w-]+):\n((?:    .*\n)+)", text, re.MULTILINE)
    condition = re.compile(r"^      ([\w-]+):\n        condition: (\w+)", re.MULTILINE)
    return {name: dict(condition.findall(block)) for name, block in blocks}


def test_the_compose_file_is_valid(compose):
    answer = run(*compose, "config", "-q")

    assert answer.returncode == 0, answer.stderr


def test_every_part_of_the_service_has_a_container(compose):
    names = set(run(*compose, "--profile", "monitoring", "config", "--services").stdout.split())

    assert names == PARTS | MONITORING


def test_monitoring_starts_only_where_it_is_asked_for():
    assert {name for name, it in SERVICES.items() if "profiles" not in it} == PARTS
    assert all(SERVICES[name]["profiles"] == ["monitoring"] for name in MONITORING)


def test_what_monitoring_mounts_is_there():
    mounts = [mount for name in MONITORING for mount in SERVICES[name]["volumes"]]

    folders = [mount.partition(":")[0] for mount in mounts if mount.startswith(".")]
    assert folders
    assert all((COMPOSE_FILE.parent / folder).is_dir() for folder in folders)


def test_prometheus_scrapes_the_ops_page_of_this_file():
    [job] = yaml.safe_load((COMPOSE_FILE.parent / "deploy/prometheus/prometheus.yml").read_text())[
        "scrape_configs"
    ]

    [target] = job["static_configs"][0]["targets"]
    assert target == "ops:9095"
    assert SERVICES["ops"]["ports"] == ["127.0.0.1:9095:9095"]


def test_the_health_of_a_worker_is_a_command_that_exists():
    from ops.stack.worker_health import main

    *els, part = SERVICES["worker"]["healthcheck"]["test"]

    assert els == ["CMD", "els", "health"]
    assert main([part, "--home", "/nowhere"]) == 1


def test_the_migration_waits_for_postgres(depends_on):
    assert depends_on["migrate"] == {"postgres": READY}


@pytest.mark.parametrize("service", ["worker", "beat", "ops"])
def test_a_part_that_reads_the_schema_waits_for_the_migration(depends_on, service):
    assert depends_on[service] == {"postgres": READY, "valkey": READY, "migrate": DONE}


def test_flower_waits_for_the_broker_alone(depends_on):
    assert depends_on["flower"] == {"valkey": READY}
