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
    secrets: dict[str, str]  # file in that folder to what it is called where all secrets are
    checks: list[list[str]] = field(default_factory=list)  # commands of health checks
    pages: set[str] = field(default_factory=set)  # paths that a health check asks for


def read(platform, **variables):
    """Return the programs of a platform by name; compose also takes variables of its caller."""
    if platform == "compose":
        programs = _compose(variables)
    else:
        programs = {"kubernetes": _kubernetes, "systemd": _systemd}[platform]()
    return {program.name: program for program in programs}


def _compose(variables):
    for name, service in COMPOSE["services"].items():
        if service.get("build"):
            check = service.get("healthcheck", {}).get("test", ["CMD"])[1:]
            url = re.search(r'urlopen\("http://127.0.0.1:\d+(/\w+)"', " ".join(check))
            environ = {k: _value(v, variables) for k, v in service["environment"].items()}
            yield Program(
                name,
                [each.replace("/run/secrets", "{secrets}") for each in service["command"]],
                {k: v.replace("/run/secrets", "{secrets}") for k, v in environ.items()},
                int(service.get("stop_grace_period", "10s").removesuffix("s")),
                secrets_of(service),
                [check] if check and not url else [],
                {url[1]} if url else set(),
            )


def secrets_of(service):
    """Return the secrets of a service of compose: file in `/run/secrets` to the secret's name."""
    given = [(each, each) if isinstance(each, str) else (each["target"], each["source"])
             for each in service.get("secrets", [])]  # fmt: skip
    return dict(given)


def _value(text, variables):
    """Return what compose makes of a value in an environment with these variables."""
    found = re.fullmatch(r"\$\{(\w+):?-([^}]*)\}", str(text))
    return variables.get(found[1], found[2]) if found else str(text)


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
            [each.replace("/run/secrets/els", "{secrets}") for each in container["command"]],
            {k: v.replace("/run/secrets/els", "{secrets}") for k, v in environ.items()},
            spec["terminationGracePeriodSeconds"],
            {each["path"]: each["key"] for each in _secrets_of(spec)},
            [probe["exec"]["command"] for probe in probes if "exec" in probe],
            {probe["httpGet"]["path"] for probe in probes if "httpGet" in probe},
        )


def _secrets_of(spec):
    [volume] = [each for each in spec["volumes"] if each["name"] == "secrets"]
    return volume["secret"]["items"]


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
        loaded = dict(each.split(":") for each in values["LoadCredential"])
        secrets = {name: Path(source).name for name, source in loaded.items()}
        checks = [["els", "health", "worker"]] if name == "worker" else []  # as the timer does
        yield Program(name, ["els", *command[1:]], common | own, grace_s, secrets, checks)


def _specified(text):
    """Replace the specifiers of systemd that the units use."""
    return text.replace("%i", "1").replace("%d", "{secrets}").replace("%%", "%")
