"""Debian's Prometheus with our configuration logs in to the ops page and has its metrics."""

import json
import secrets
import subprocess
import urllib.parse

import yaml

from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.ops.conftest import ROOT, answering, fetch
from tests.servers.conftest import program

CONFIG = ROOT / "deploy/prometheus/prometheus.yml"


def asked(port, query):
    status, body = fetch(
        f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    )
    if status != 200:  # it starts
        return []
    return [each["value"][1] for each in json.loads(body)["data"]["result"]]


def test_prometheus_logs_in_to_the_ops_page(database_url, tmp_path):
    server, port = program("prometheus"), free_port()
    (tmp_path / "ops_password").write_text(password := secrets.token_hex(8))
    (tmp_path / "alerts.yml").write_text((CONFIG.parent / "alerts.yml").read_text())
    config = yaml.safe_load(CONFIG.read_text())
    [job] = config["scrape_configs"]
    job["basic_auth"]["password_file"] = str(tmp_path / "ops_password")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    user = job["basic_auth"]["username"]

    with answering("ops", "ELS_OPS_PORT", "/healthz", ELS_OPS_AUTH=f"{user}:{password}") as (
        url,
        _,
    ):
        job["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        process = subprocess.Popen(
            leashed(
                [
                    server,
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                15,
            ),
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: asked(port, 'up{job="els"}') == ["1"], 60, "the scrape is well")
            until(lambda: asked(port, 'els_up{part="postgres"}') == ["1"], 30, "it has metrics")
        finally:
            process.terminate()
            process.wait(15)
    assert fetch(url + "/metrics")[0] == 0
