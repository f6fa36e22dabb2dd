import json
import re
import subprocess
from pathlib import Path

import pytest

COMPOSE_FILE = Path(__file__).parents[2] / "docker-compose.yml"
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
    names = set(run(*compose, "config", "--services").stdout.split())

    assert names == {"postgres", "valkey", "migrate", "worker", "beat", "ops", "flower"}


def test_the_migration_waits_for_postgres(depends_on):
    assert depends_on["migrate"] == {"postgres": READY}


@pytest.mark.parametrize("service", ["worker", "beat", "ops"])
def test_a_part_that_reads_the_schema_waits_for_the_migration(depends_on, service):
    assert depends_on[service] == {"postgres": READY, "valkey": READY, "migrate": DONE}


def test_flower_waits_for_the_broker_alone(depends_on):
    assert depends_on["flower"] == {"valkey": READY}
