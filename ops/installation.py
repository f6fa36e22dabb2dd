"""The commands that start the parts of the service again, as it was started here."""

from dataclasses import dataclass

from core.signs.installation import Kind

PSQL = "els env  # then psql DATABASE_URL"
POSTGRES = PSQL + " -c '{}'"
START = {
    Kind.ELS_RUN: "els run --home {home}",
    Kind.KUBERNETES: "kubectl rollout restart deployment/els-{part}",
    Kind.COMPOSE: "docker compose up -d {part}",
    Kind.SYSTEMD: "systemctl start {unit}",
    Kind.COMMAND: "els {part}",
}
RESTART = START | {
    Kind.COMPOSE: "docker compose restart {part}",
    Kind.SYSTEMD: "systemctl restart {unit}",
    Kind.COMMAND: "kill -KILL {pid}; els {part}",
}
LOG = {
    Kind.ELS_RUN: "tail -n 20 {home}/log/{part}.log",
    Kind.KUBERNETES: "kubectl logs deployment/els-{part} --tail 20",
    Kind.COMPOSE: "docker compose logs --tail 20 {part}",
    Kind.SYSTEMD: "journalctl -n 20 -u '{unit}'",
}
MIGRATE = {
    Kind.KUBERNETES: "kubectl apply -k deploy/kubernetes/migrate",
    Kind.COMPOSE: "docker compose run --rm migrate",
    Kind.SYSTEMD: "systemctl start els-migrate",
}
UNITS = {"worker": "els-worker@*", "beat": "els-beat"}


def command(step: str) -> str:
    """Write the step of a finding about Postgres as a command: it may be SQL, or words."""
    if step.startswith("els "):
        return step
    if not step.partition(" ")[0].isupper():
        return f"els env  # then {step}"
    return " ".join([PSQL, *(f"-c '{each}'" for each in step.split("; "))])  # ALTER SYSTEM: alone


@dataclass(frozen=True)
class Installation:
    """What starts the processes of this service, and where. `up`: an `els run` lives there."""

    kind: Kind = Kind.COMMAND
    home: str = ".els"
    up: bool = False

    def start(self, part: str) -> str:
        """Return the command that starts a part that is gone: `worker` or `beat`."""
        if self.kind is Kind.ELS_RUN and self.up:  # it starts the part again itself
            return self.log(part)
        unit = "els-worker@1" if part == "worker" else UNITS[part]
        return START[self.kind].format(part=part, home=self.home, unit=unit)

    def serve(self, queue: str) -> str:
        """Return the command that starts a worker of this queue."""
        setting = f"ELS_QUEUE={queue}"
        if self.kind is Kind.KUBERNETES:
            return f"kubectl set env deployment/els-worker {setting}"
        if self.kind is Kind.SYSTEMD:
            return f"{self.start('worker')}  # with {setting} in its environment file"
        if self.kind is Kind.ELS_RUN:
            return f"{setting} {START[self.kind].format(home=self.home)}"
        return f"{setting} {self.start('worker')}"

    def restart(self, part: str, pid: int | None) -> str:
        """Return the command that ends a part that hangs, and starts it again."""
        if pid is not None and self.kind in (Kind.ELS_RUN, Kind.COMMAND):
            again = "" if self.kind is Kind.ELS_RUN else f"; els {part}"
            return f"kill -KILL {pid}{again}"
        unit = UNITS[part]
        return RESTART[self.kind].format(part=part, home=self.home, unit=unit, pid=pid)

    def log(self, part: str) -> str:
        """Return the command that shows what a part has logged last."""
        if self.kind not in LOG:
            return f"els health {part}"
        return LOG[self.kind].format(part=part, home=self.home, unit=UNITS[part])

    @property
    def why_it_ends(self) -> str:
        """Return the command that shows why a worker ends: its log, else that of the kernel."""
        if self.kind in LOG:
            return self.log("worker")
        return "dmesg -T | grep -i 'killed process'  # nothing? read what it printed at its end"

    @property
    def migrate(self) -> str:
        return MIGRATE.get(self.kind, "els migrate")
