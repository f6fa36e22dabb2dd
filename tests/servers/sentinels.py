"""Debian's Redis: a primary, a replica, and three Sentinels that watch them, on loopback.

With certificates all of them speak TLS only, want a certificate of their clients, and give each
other's names, which a certificate can hold.
"""

import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.servers.conftest import program

LOOPBACK = "127.0.0.1"
PRIMARY, PASSWORD, SENTINELS_PASSWORD = "els-primary", "of-redis", "of-sentinels"
DOWN_AFTER_MS = 1000
ELECTION_MS = 1500  # Sentinels vote again after twice this time if they chose nobody
BY_NAME = "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"


@dataclass(frozen=True)
class Certificates:
    """Folders with ca.pem, server.pem and server.key: of the servers, the Sentinels, a client."""

    servers: Path
    sentinels: Path
    client: Path

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of the client, who trusts the authority of its own certificate."""
        files = {"CA": "ca.pem", "CERT": "server.pem", "KEY": "server.key"}
        return {f"ELS_TLS_{name}": str(self.client / file) for name, file in files.items()}


class Group:
    """A primary and its replica; each may be killed and started again."""

    def __init__(self, folder: Path, tls: Certificates | None = None):
        self.folder, self.tls = folder, tls
        self.host = "localhost" if tls else LOOPBACK
        self.servers = {free_port(): None for _ in range(2)}
        self.sentinels: dict[int, subprocess.Popen] = {}
        first, second = self.servers
        self.start(first)
        self.start(second, first)
        until(lambda: self.in_sync(first), what="the replica is in sync")
        for _ in range(3):
            self._watch(first)
        until(
            lambda: all(map(self._sees_all, self.sentinels)), what="the Sentinels know each other"
        )

    @property
    def url(self) -> str:
        """As Celery's users write it; the password is that of the servers."""
        at = [f"sentinel://:{PASSWORD}@{self.host}:{port}" for port in self.sentinels]
        secure = "&ssl_cert_reqs=required" if self.tls else ""
        return ";".join(at) + f"/0?sentinel_password={SENTINELS_PASSWORD}{secure}"

    def client(self, port: int, password: str = PASSWORD) -> redis.Redis:
        return redis.Redis(
            port=port,
            password=password,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=2,
            **self._unverified(),
        )

    def _unverified(self) -> dict:
        if not self.tls:
            return {}
        ours = self.tls.client
        files = {"ssl_certfile": str(ours / "server.pem"), "ssl_keyfile": str(ours / "server.key")}
        return {"ssl": True, "ssl_cert_reqs": "none", **files}

    def _listens(self, port: int, certificates: Path | None) -> str:
        if certificates is None:
            return f"port {port}\nbind {LOOPBACK}\n"
        return (
            f"port 0\ntls-port {port}\nbind {LOOPBACK}\ntls-replication yes\n"
            f"tls-ca-cert-file {certificates / 'ca.pem'}\n"
            f"tls-cert-file {certificates / 'server.pem'}\n"
            f"tls-key-file {certificates / 'server.key'}\n"
        )

    def start(self, port: int, primary: int | None = None) -> None:
        """Start a server on its data, as a replica of `primary` if one is given."""
        home = self.folder / str(port)
        home.mkdir(exist_ok=True)
        words = self._listens(port, self.tls and self.tls.servers)
        words += f'dir {home}\nappendonly yes\nsave ""\nreplica-announce-ip {self.host}\n'
        words += f"requirepass {PASSWORD}\nmasterauth {PASSWORD}\nrepl-diskless-sync-delay 0\n"
        words += f"replicaof {self.host} {primary}\n" if primary else ""
        (home / "redis.conf").write_text(words)  # Redis writes into it when its role changes
        self.servers[port] = self._run("redis-server", home / "redis.conf")
        until(lambda: self._answers(port), what="Redis answers")

    def _run(self, name: str, config: Path) -> subprocess.Popen:
        argv = leashed([program(name), str(config)], signal.SIGKILL)
        with config.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def _answers(self, port: int) -> bool:
        with suppress(redis.RedisError), self.client(port) as client:
            return bool(client.ping())
        return False

    def in_sync(self, port: int) -> bool:
        """Say whether the primary at this port has a replica that is in sync."""
        with suppress(redis.RedisError), self.client(port) as client:
            replica = client.info("replication").get("slave0", {})
            return replica.get("state") == "online"
        return False

    def _watch(self, primary: int) -> None:
        port = free_port()
        home = self.folder / f"sentinel-{port}"
        home.mkdir()
        (home / "sentinel.conf").write_text(
            self._listens(port, self.tls and self.tls.sentinels) + BY_NAME + f"dir {home}\n"
            f"sentinel announce-ip {self.host}\n"
            f"requirepass {SENTINELS_PASSWORD}\nsentinel sentinel-pass {SENTINELS_PASSWORD}\n"
            f"sentinel monitor {PRIMARY} {self.host} {primary} 2\n"
            f"sentinel auth-pass {PRIMARY} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {PRIMARY} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {PRIMARY} {ELECTION_MS}\n"
        )
        self.sentinels[port] = self._run("redis-sentinel", home / "sentinel.conf")

    def _ask(self, port: int) -> dict:
        with suppress(redis.RedisError), self.client(port, SENTINELS_PASSWORD) as client:
            return client.sentinel_master(PRIMARY)
        return {}

    def _sees_all(self, port: int) -> bool:
        seen = self._ask(port)
        return seen.get("num-other-sentinels") == 2 and seen.get("num-slaves") == 1

    @property
    def primary(self) -> int:
        """The port of the primary, by most of the Sentinels."""
        named = [self._ask(port).get("port") for port in self.sentinels]
        return max(named, key=named.count)

    def kill_primary(self) -> int:
        """Kill the primary by SIGKILL; return its port."""
        port = self.primary
        process = self.servers[port]
        process.kill()
        process.wait(10)
        return port

    def promoted(self, dead: int) -> bool:
        """Say whether the other server is the primary, and every Sentinel says so."""
        ports = {self._ask(port).get("port") for port in self.sentinels}
        if len(ports) != 1 or dead in ports:
            return False
        with suppress(redis.RedisError), self.client(ports.pop()) as client:
            return client.info("replication")["role"] == "master"
        return False

    def revive(self, dead: int) -> None:
        """Start a killed server again, as the replica of the primary; wait until it is in sync."""
        primary = self.primary
        self.start(dead, primary)
        until(lambda: self.in_sync(primary), 60, "the replica is in sync again")
        until(lambda: all(map(self._sees_well, self.sentinels)), 60, "the Sentinels see both")

    def _sees_well(self, port: int) -> bool:
        return self._ask(port).get("flags") == "master" and self._replica_is_well(port)

    def _replica_is_well(self, port: int) -> bool:
        with suppress(redis.RedisError), self.client(port, SENTINELS_PASSWORD) as client:
            return all(
                each["flags"] == "slave" and each["master-link-status"] == "ok"
                for each in client.sentinel_slaves(PRIMARY)
            )
        return False

    def stop(self) -> None:
        for process in (*self.sentinels.values(), *filter(None, self.servers.values())):
            process.kill()
            process.wait(10)
