"""The programs that the manifests in `deploy/` and `docker-compose.yml` start, read from them."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES, SYSTEMD = ROOT / "deploy/kubernetes", ROOT / "deploy/systemd"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PLATFORMS = ("compose", "kubernetes", "systemd")


@dataclass(frozen=True)
class Program:
    """One process of the service, as a manifest starts it; `{secrets}` is the folder of secrets."""

    name: str
    command: list[str]
    environ: dict[str, str]
    grace_s: int
    checks: list[list[str]] = field(default_factory=list)  # commands of health checks
    pages: set[str] = field(default_factory=set)  # paths that a health check asks for


def read(platform):
    """Return the programs of a platform by name."""
    programs = {"compose": _compose, "kubernetes": _kubernetes, "systemd": _systemd}[platform]()
    return {program.name: program for program in programs}


def _compose():
    for name, service in COMPOSE["services"].items():
        if service.get("build"):
            check = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
            url = re.search(r'urlopen\("http://127.0.0.1:\d+(/\w+)"', " ".join(check))
            environ = {key: _value(value) for key, value in service["environment"].items()}
            yield Program(
                name,
                service["command"],
                {k: v.replace("/run/secrets", "{secrets}") for k, v in environ.items()},
                int(service.get("stop_grace_period", "10s").removesuffix("s")),
                [check] if check and not url else [],
                {url[1]} if url else set(),
            )


def _value(text):
    """Return what compose makes of a value where the environment has no variables of ours."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", str(text))


def documents(*folders):
    """Return every Kubernetes object in the files of these folders."""
    for folder in folders:
        for path in sorted((KUBERNETES / folder).glob("*.yaml")):
            if path.name != "kustomization.yaml":
                yield from yaml.safe_load_all(path.read_text())


def pods():
    """Return the pod template of each workload, with its name."""
    for document in documents("base", "migrate"):
        if document["kind"] in ("Deployment", "Job"):
            yield document["metadata"]["name"], document["spec"]["template"]


def _kubernetes():
    for name, template in pods():
        spec = template["spec"]
        [container] = spec["containers"]
        probes = [probe for key, probe in container.items() if key.endswith("Probe")]
        environ = {each["name"]: str(each["value"]) for each in container["env"]}
        yield Program(
            name.removeprefix("els-"),
            container["command"],
            {k: v.replace("/run/secrets/els", "{secrets}") for k, v in environ.items()},
            spec["terminationGracePeriodSeconds"],
            [probe["exec"]["command"] for probe in probes if "exec" in probe],
            {probe["httpGet"]["path"] for probe in probes if "httpGet" in probe},
        )


def unit(path):
    """Return the settings of a systemd unit: name to its values."""
    values = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            values.setdefault(name, []).append(value)
    return values


def _systemd():
    common = dict(
        line.split("=", 1)
        for line in (SYSTEMD / "els.env").read_text().splitlines()
        if line and not line.startswith("#")
    )
    for path in sorted(SYSTEMD.glob("els-*.service")):
        values = unit(path)
        command = shlex.split(_specified(values["ExecStart"][-1]))
        if not command[0].endswith("/els"):
            continue
        own = dict(_specified(each).split("=", 1) for each in values["Environment"])
        name = path.stem.removeprefix("els-").removesuffix("@")
        grace_s = int(values.get("TimeoutStopSec", ["90"])[0])
        yield Program(name, ["els", *command[1:]], common | own, grace_s)


def _specified(text):
    """Replace the specifiers of systemd that the units use."""
    return text.replace("%i", "1").replace("%d", "{secrets}").replace("%%", "%")
