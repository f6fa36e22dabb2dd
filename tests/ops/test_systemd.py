"""`deploy/systemd`: systemd takes the units, and finds little that they expose."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings import Settings
from tests.ops.manifests import SYSTEMD, read, unit

UNITS = sorted(path.name for path in SYSTEMD.iterdir() if path.suffix in (".service", ".timer"))
OURS = [name for name in UNITS if name.endswith(".service") and "health" not in name]
VALUES = {
    "ELS_DATABASE_URL_FILE": "postgresql://host/els",
    "ELS_REDIS_URL_FILE": "redis://host/0",
    "ELS_BROKER_URL_FILE": "amqp://host//",
}
EXPOSURE = 20  # of 100; 0 is nothing at all


@pytest.fixture
def analyze(tmp_path):
    """Call systemd-analyze on the units, as they are where the service is installed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed here (Debian: in the package systemd)")
    for name in UNITS:
        here = (
            (SYSTEMD / name)
            .read_text()
            .replace("/opt/els/venv/bin", str(Path(sys.executable).parent))
        )
        (tmp_path / name).write_text(here)

    def call(*arguments):
        return subprocess.run(
            [program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return call


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_a_unit(analyze, name):
    told = analyze("verify", "--man=no", f"./{name}")

    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_a_unit_exposes_little(analyze, name):
    told = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", f"./{name}")

    assert told.returncode == 0, told.stdout[-200:]


def test_every_part_of_the_service_has_a_unit():
    assert read("systemd").keys() == {"migrate", "worker", "beat", "ops", "flower"}


@pytest.mark.parametrize("name", OURS)
def test_a_unit_gets_each_secret_that_it_names(name):
    values = unit(SYSTEMD / name)

    loaded = {each.split(":")[0] for each in values["LoadCredential"]}
    named = {m[1] for each in values["Environment"] if (m := re.search(r"_FILE=%d/(.+)$", each))}
    named |= {*re.findall(r"%d/(\S+)", values["ExecStart"][0])}
    assert named == loaded
    assert all(":/etc/els/secrets/" in each for each in values["LoadCredential"])


@pytest.mark.parametrize("part", ["worker", "beat", "ops", "flower", "migrate"])
def test_the_settings_of_a_unit_are_known(part, tmp_path):
    environ = read("systemd")[part].environ
    (tmp_path / "secrets").mkdir()
    given = {name: value.format(secrets=tmp_path / "secrets") for name, value in environ.items()}
    for name, value in given.items():
        if name.endswith("_FILE"):
            Path(value).write_text(VALUES.get(name, "user:value"))

    assert Settings.from_env(given)


@pytest.mark.parametrize("name", [name for name in OURS if "migrate" not in name])
def test_a_unit_starts_again_without_end(name):
    values = unit(SYSTEMD / name)

    assert (values["Restart"], values["StartLimitIntervalSec"]) == (["always"], ["0"])
