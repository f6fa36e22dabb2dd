"""`deploy/kubernetes`: what each pod may do, and that the parts fit together."""

import shutil
import subprocess

import promql_parser
import pytest
import yaml

from core.settings import Settings
from tests.ops.manifests import KUBERNETES, ROOT, documents, pods, read

PODS = dict(pods())
OBJECTS = {(each["kind"], each["metadata"]["name"]): each for each in documents("base", "migrate")}
FOLDERS = ["account", "base", "migrate", "prometheus", "example", "example/migrate"]


def container(pod):
    [only] = pod["spec"]["containers"]
    return only


@pytest.mark.parametrize("name", PODS)
def test_a_pod_has_no_rights(name):
    spec = PODS[name]["spec"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == "els"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001  # as in the Dockerfile
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(PODS[name])["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert all({"emptyDir", "secret"} & volume.keys() for volume in spec["volumes"])


@pytest.mark.parametrize("name", PODS)
def test_services_put_no_variables_into_a_pod(name):
    """Kubernetes would set ELS_OPS_PORT=tcp://… for the service els-ops."""
    assert PODS[name]["spec"]["enableServiceLinks"] is False


@pytest.mark.parametrize("name", PODS)
def test_a_pod_asks_for_memory_and_is_limited(name):
    resources = container(PODS[name])["resources"]

    assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_reads_only_secrets_that_it_has(name):
    [volume] = [each for each in PODS[name]["spec"]["volumes"] if each["name"] == "secrets"]
    paths = {each["path"] for each in volume["secret"]["items"]}

    asked = {
        each["value"].rpartition("/")[2]
        for each in container(PODS[name])["env"]
        if each["name"].endswith("_FILE")
    }
    asked |= {
        each.rpartition("/")[2]
        for each in container(PODS[name])["command"]
        if each.startswith("/run/secrets")
    }
    assert asked == paths
    assert not any("valueFrom" in each for each in container(PODS[name])["env"])


@pytest.mark.parametrize("name", [name for name in PODS if name != "els-migrate"])
def test_a_pod_that_stays_has_a_probe_that_asks_no_server(name):
    for probe in ("startupProbe", "livenessProbe"):
        given = container(PODS[name])[probe]
        assert "readyz" not in str(given)
        assert given.get("exec") or given["httpGet"]["path"] in ("/healthz", "/healthcheck")


def test_every_part_of_the_service_has_a_pod():
    assert read("kubernetes").keys() == {"migrate", "worker", "beat", "ops", "flower"}


@pytest.mark.parametrize("part", ["worker", "beat", "ops"])
def test_a_part_that_must_stay_is_there_twice_with_a_budget(part):
    budget = OBJECTS["PodDisruptionBudget", f"els-{part}"]["spec"]
    deployment = OBJECTS["Deployment", f"els-{part}"]["spec"]

    assert deployment["replicas"] >= 2
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == deployment["selector"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]


@pytest.mark.parametrize("part", ["ops", "flower"])
def test_a_service_leads_to_its_pod(part):
    service = OBJECTS["Service", f"els-{part}"]["spec"]
    labels = PODS[f"els-{part}"]["metadata"]["labels"]
    port = container(PODS[f"els-{part}"])["ports"][0]
    [served] = service["ports"]

    assert service["selector"].items() <= labels.items()
    assert served["targetPort"] == port["name"]
    assert port["containerPort"] == Settings.model_fields[f"{part}_port"].default


def test_without_a_rule_nothing_is_reached():
    rules = [each["spec"] for (kind, _), each in OBJECTS.items() if kind == "NetworkPolicy"]

    closed = [each for each in rules if not each.keys() & {"ingress", "egress"}]
    assert [each["policyTypes"] for each in closed] == [["Ingress", "Egress"]]
    assert all("from" in rule for each in rules for rule in each.get("ingress", []))


def test_the_number_of_workers_follows_what_waits_and_what_is_in_work():
    scaled = yaml.safe_load((KUBERNETES / "keda/worker.yaml").read_text())["spec"]
    [trigger] = scaled["triggers"]

    query = trigger["metadata"]["query"]
    promql_parser.parse(query)
    assert {"els_queue_messages", "els_messages_in_work"} <= set(
        query.replace("(", " ").replace(")", " ").split()
    )
    assert scaled["scaleTargetRef"]["name"] == "els-worker"
    assert scaled["minReplicaCount"] >= 2
    assert trigger["type"] == "prometheus"


def of_prometheus(kind):
    [found] = [each for each in documents("prometheus") if each["kind"] == kind]
    return found["spec"]


def test_the_operator_gets_every_alert():
    given = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())

    assert of_prometheus("PrometheusRule") == given, "make reference"


def test_prometheus_may_scrape_the_page_although_the_rest_is_closed():
    rule, monitor = of_prometheus("NetworkPolicy"), of_prometheus("ServiceMonitor")
    scaled = yaml.safe_load((KUBERNETES / "keda/worker.yaml").read_text())["spec"]

    [ingress] = rule["ingress"]
    [peer] = ingress["from"]
    [namespace] = peer["namespaceSelector"]["matchLabels"].values()
    assert rule["podSelector"] == monitor["selector"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": Settings().ops_port}]
    assert f".{namespace}:" in scaled["triggers"][0]["metadata"]["serverAddress"]


def test_prometheus_names_the_job_as_the_alerts_do():
    monitor = {"spec": of_prometheus("ServiceMonitor")}

    labels = monitor["spec"]["selector"]["matchLabels"]
    assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/name"
    assert labels["app.kubernetes.io/name"] == "els"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_names_files_that_exist(folder):
    names = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())

    for each in [*names["resources"], *names.get("components", [])]:
        assert (KUBERNETES / folder / each).exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_builds_a_folder(folder):
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl, which has kustomize, is not installed here")

    built = subprocess.run(
        [kubectl, "kustomize", KUBERNETES / folder], capture_output=True, text=True, check=False
    )

    assert built.returncode == 0, built.stderr
    objects = [*yaml.safe_load_all(built.stdout)]
    assert objects
    if folder.startswith("example"):
        spaced = [each for each in objects if each["kind"] != "Namespace"]
        assert {each["metadata"]["namespace"] for each in spaced} == {"els"}
        assert "essay-lifecycle-service:local" not in built.stdout
