"""`docker-compose.yml`: valid, complete, and as closed as it says."""

import json
import re
import runpy
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from core.settings import Settings
from ops.access import as_json, redis_lines
from tests.ops.manifests import secrets_of

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES = COMPOSE["services"]
PARTS = {"postgres", "valkey", "migrate", "worker", "beat", "ops", "flower"}
MONITORING = {"prometheus", "grafana"}
RABBITMQ = {"rabbitmq"}
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


def depends_on(service: str) -> dict[str, str]:
    """Service to the condition that it waits for; what only a profile starts is left out."""
    waits = SERVICES[service]["depends_on"].items()
    return {name: how["condition"] for name, how in waits if how.get("required", True)}


def test_the_compose_file_is_valid(compose):
    answer = run(*compose, "config", "-q")

    assert answer.returncode == 0, answer.stderr


def test_every_part_of_the_service_has_a_container(compose):
    profiles = ("--profile", "monitoring", "--profile", "rabbitmq")
    names = set(run(*compose, *profiles, "config", "--services").stdout.split())

    assert names == PARTS | MONITORING | RABBITMQ


def test_monitoring_and_rabbitmq_start_only_where_they_are_asked_for():
    assert {name for name, it in SERVICES.items() if "profiles" not in it} == PARTS
    assert all(SERVICES[name]["profiles"] == ["monitoring"] for name in MONITORING)
    assert SERVICES["rabbitmq"]["profiles"] == ["rabbitmq"]


def test_what_monitoring_mounts_is_there():
    mounts = [mount for name in MONITORING for mount in SERVICES[name]["volumes"]]

    folders = [mount.partition(":")[0] for mount in mounts if mount.startswith(".")]
    assert folders
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_prometheus_scrapes_the_ops_page_of_this_file():
    [job] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())[
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


def test_the_migration_waits_for_postgres():
    assert depends_on("migrate") == {"postgres": READY}


@pytest.mark.parametrize("service", ["worker", "beat", "ops"])
def test_a_part_that_reads_the_schema_waits_for_the_migration(service):
    assert depends_on(service) == {"postgres": READY, "valkey": READY, "migrate": DONE}


def test_flower_waits_for_the_broker_alone():
    assert depends_on("flower") == {"valkey": READY}


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_rights_and_a_limit_for_everything(service):
    it = SERVICES[service]

    assert it["cap_drop"] == ["ALL"]
    assert "cap_add" not in it
    assert "no-new-privileges:true" in it["security_opt"]
    assert it["read_only"] is True
    assert not it.keys() & {"privileged", "network_mode", "pid", "ipc", "devices"}
    assert it["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert it["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("service", SERVICES)
def test_no_password_stands_in_an_environment_or_has_a_default(service):
    environ = SERVICES[service].get("environment", {})
    named = [name for name in environ if re.search("PASS|AUTH|_URL|SECRET", name)]

    assert all(name.endswith("_FILE") for name in named)
    assert not re.search(r"\$\{\w*(PASS|AUTH)", json.dumps(SERVICES[service]))


def test_every_secret_is_a_file_that_one_command_makes(tmp_path):
    main = runpy.run_path(str(ROOT / "scripts/secrets"))["main"]
    main(tmp_path / "secrets")
    first = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    main(tmp_path / "secrets")

    files = {each["file"].removeprefix("deploy/secrets/") for each in COMPOSE["secrets"].values()}
    assert files <= first.keys()
    assert first == {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    passwords = [first[name] for name in first if name.endswith("_password")]
    assert len({*passwords}) == len(passwords) == 14
    sources = {each for it in SERVICES.values() for each in secrets_of(it).values()}
    assert sources == COMPOSE["secrets"].keys()


def test_the_rights_are_those_of_els_access():
    rights = ROOT / "deploy/access"

    assert (rights / "valkey.acl").read_text().splitlines() == [*redis_lines(Settings())]
    assert json.loads((rights / "rabbitmq.json").read_text()) == as_json(Settings(), "rabbitmq")


def test_the_policy_of_rabbitmq_is_the_documented_one(tmp_path):
    runpy.run_path(str(ROOT / "scripts/secrets"))["main"](tmp_path)
    policies = json.loads((tmp_path / "rabbitmq_definitions").read_text())["policies"]
    page = (ROOT / "docs/tasks.md").read_text()

    for policy in policies:
        command = f"set_policy {policy['name']} '{policy['pattern']}' "
        more = f"--apply-to {policy['apply-to']} --priority {policy['priority']}"
        assert f"{command}'{json.dumps(policy['definition'])}' {more}" in page


def test_git_and_images_leave_the_secrets_out():
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert "!deploy" not in (ROOT / ".dockerignore").read_text().splitlines()


def test_an_image_has_an_exact_version():
    images = [it["image"] for it in SERVICES.values() if "build" not in it]
    [base] = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert {*re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)} == {
        "${PYTHON}"
    }
    assert all(re.search(r":v?\d+\.\d+(\.\d+)?(-[\w-]+)?$", image) for image in [*images, base])


def test_only_who_reads_the_tables_reaches_postgres():
    on = {
        network: {name for name, it in SERVICES.items() if network in it["networks"]}
        for network in COMPOSE["networks"]
    }

    assert on["data"] == {"postgres", "migrate", "worker", "ops"}
    assert on["data"] & on["edge"] == {"ops"}
    assert not on["edge"] & {"valkey", "rabbitmq", "worker", "beat"}
    assert on["watch"] == {"worker", "ops", *MONITORING}
    assert all(COMPOSE["networks"][name]["internal"] for name in ("data", "broker", "watch"))


def test_what_is_published_is_on_loopback():
    ports = [port for it in SERVICES.values() for port in it.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert all("edge" in it["networks"] for it in SERVICES.values() if "ports" in it)


def test_valkey_refuses_writes_before_its_container_is_full():
    valkey = SERVICES["valkey"]
    options = dict(pairwise(valkey["command"]))

    limit = int(valkey["deploy"]["resources"]["limits"]["memory"].removesuffix("M"))
    assert 2 * int(options["--maxmemory"].removesuffix("mb")) <= limit
    assert options["--maxmemory-policy"] == "noeviction"


def test_prometheus_logs_in_with_the_password_of_the_ops_page(tmp_path):
    runpy.run_path(str(ROOT / "scripts/secrets"))["main"](tmp_path)
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    [job] = config["scrape_configs"]

    login = job["basic_auth"]
    password = (tmp_path / Path(login["password_file"]).name).read_text()
    assert (tmp_path / "ops_auth").read_text() == f"{login['username']}:{password}\n"
    assert Path(login["password_file"]).name in SERVICES["prometheus"]["secrets"]
