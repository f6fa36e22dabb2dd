"""Each program logs in as itself: in compose, in Kubernetes and under systemd."""

import runpy

import pytest

from tests.ops.manifests import PLATFORMS, ROOT, read

OF_POSTGRES = {
    "migrate": "migrate_database_url",
    "worker": "database_url",
    "ops": "page_database_url",
}
OF_PAGES = {"ops": {"ops_auth"}, "flower": {"flower_auth"}}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_program_gets_its_own_logins_and_no_others(platform):
    for name, program in read(platform).items():
        own = OF_PAGES.get(name, {"roles"} if name == "migrate" else set())
        if name != "migrate":
            own = own | {f"{name}_redis_url", f"{name}_broker_url"}
        if name in OF_POSTGRES:
            own = own | {OF_POSTGRES[name]}
        assert {*program.secrets.values()} == own, name


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_migration_writes_the_roles_that_the_others_log_in_as(platform):
    migrate = read(platform)["migrate"]

    assert {"--roles", "--passwords"} <= {*migrate.command}
    assert migrate.command[-1] == "{secrets}/roles"
    assert "ELS_RETENTION_DAYS" in migrate.environ  # or the workers could not delete


@pytest.mark.parametrize("platform", PLATFORMS)
def test_one_command_makes_every_secret(platform, tmp_path):
    runpy.run_path(str(ROOT / "scripts/secrets"))["main"](tmp_path / "made")

    made = {path.name for path in (tmp_path / "made").iterdir()}
    assert {each for it in read(platform).values() for each in it.secrets.values()} <= made


def test_the_urls_of_servers_of_ones_own_keep_all_but_the_login():
    script = runpy.run_path(str(ROOT / "scripts/secrets"))
    given = dict.fromkeys(script["PASSWORDS"], "word")
    servers = {
        "postgres": "postgresql://owner@db1,db2:5433/els?sslmode=verify-full",
        "redis": "rediss://redis:6380/0",
        "rabbitmq": "amqps://rabbit/essays",
    }

    made = dict(script["following"](given, servers))

    where = "db1,db2:5433/els?sslmode=verify-full"
    assert made["migrate_database_url"] == f"postgresql://owner:word@{where}"
    assert made["page_database_url"] == f"postgresql://els_page:word@{where}"
    assert made["beat_redis_url"] == "rediss://els-beat:word@redis:6380/0"
    assert made["worker_broker_url"] == "amqps://els-worker:word@rabbit/essays"
