"""Certificates made by openssl, and Debian's Postgres, Redis and RabbitMQ that use them.

Each server has a certificate for the host `localhost` and wants one of its clients.
"""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops.stack import embedded
from ops.stack.embedded import Postgres
from ops.stack.leash import leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.rabbitmq.node import SCRIPT
from tests.servers.conftest import program

HOST = "localhost"
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(folder: Path, *args: object) -> None:
    argv = [program("openssl"), *map(str, args)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """A certification authority in a folder, which signs certificates into folders of their own."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self.folder, self.ca = folder, folder / "ca.pem"
        about = ["-subj", f"/CN={folder.name}", "-days", 2, "-keyout", "ca.key", "-out", "ca.pem"]
        openssl(folder, "req", "-x509", *EC, *about)

    def sign(self, name: str, host: str = HOST, days: int = 2) -> Path:
        """Return a folder with `ca.pem`, `server.pem` and `server.key`."""
        made = self.folder / name
        made.mkdir()
        (made / "ca.pem").write_text(self.ca.read_text())
        (made / "ext").write_text(f"subjectAltName=DNS:{host}\n")
        openssl(made, "req", *EC, "-subj", "/CN=els", "-keyout", "server.key", "-out", "csr")
        signed = ["-CA", self.ca, "-CAkey", self.folder / "ca.key", "-CAcreateserial"]
        openssl(
            made,
            *("x509", "-req", "-in", "csr", *signed, "-days", days, "-extfile", "ext"),
            *("-out", "server.pem"),
        )
        return made

    def settings(self, name: str) -> dict[str, str]:
        """Return the settings of a client of this authority, with a certificate of its own."""
        made = self.sign(name)
        return {
            "ELS_TLS_CA": str(self.ca),
            "ELS_TLS_CERT": str(made / "server.pem"),
            "ELS_TLS_KEY": str(made / "server.key"),
        }


class SecurePostgres(Postgres):
    """Debian's Postgres, which takes no connection without TLS and a client's certificate."""

    def __init__(self, folder: Path, certificates: Path, client: Path):
        super().__init__(folder / "postgres", free_port(), "password")
        self.certificates, self.client = certificates, client

    def start(self, timeout: float = 60) -> None:
        before = embedded.POSTGRES_BIN
        embedded.POSTGRES_BIN = Path(program("postgres")).parent
        try:
            super().start(timeout)
        finally:
            embedded.POSTGRES_BIN = before

    @property
    def url(self) -> str:
        port = urlsplit(super().url).port
        return f"postgresql://els:password@{HOST}:{port}/els?sslmode=verify-full"

    def _prepare(self) -> None:
        super()._prepare()
        rules = "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n"
        (self.data / "pg_hba.conf").write_text(rules)

    def _command(self) -> list[str]:
        files = {"ssl_ca_file": "ca.pem", "ssl_cert_file": "server.pem"}
        files |= {"ssl_key_file": "server.key"}
        given = [f"{name}={self.certificates / file}" for name, file in files.items()]
        options = [part for each in ["ssl=on", *given] for part in ("-c", each)]
        return [*super()._command(), *options]

    def _url(self, database: str) -> str:
        made = self.client
        mine = f"sslcert={made / 'server.pem'}&sslkey={made / 'server.key'}"
        return f"postgresql://els:password@127.0.0.1:{self.port}/{database}?{mine}"


class SecureRedis:
    """Debian's Redis, which speaks TLS only and wants a client's certificate."""

    def __init__(self, folder: Path, certificates: Path, client: Path):
        self.port = free_port()
        self.url = f"rediss://{HOST}:{self.port}/0"
        folder.mkdir(exist_ok=True)
        files = {"--tls-ca-cert-file": "ca.pem", "--tls-cert-file": "server.pem"}
        files |= {"--tls-key-file": "server.key"}
        given = [part for name, file in files.items() for part in (name, str(certificates / file))]
        argv = [program("redis-server"), "--port", "0", "--tls-port", str(self.port), *given]
        argv += ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(leashed(argv, signal.SIGKILL), stdout=log)
        self._client = client

    def start(self) -> None:
        until(self._answers, what="Redis answers")

    def _answers(self) -> bool:
        made = self._client
        with suppress(redis.ConnectionError):
            client = redis.Redis(
                port=self.port,
                ssl=True,
                ssl_cert_reqs="none",
                ssl_certfile=str(made / "server.pem"),
                ssl_keyfile=str(made / "server.key"),
                retry=Retry(NoBackoff(), 0),
            )
            with client:
                return bool(client.ping())
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class SecureRabbit:
    """Debian's RabbitMQ, whose TLS listener wants a client's certificate."""

    def __init__(self, folder: Path, certificates: Path, client: Path):
        self.folder = folder
        self.environ = {**os.environ, "RABBITMQ_TLS": str(certificates)}

    def start(self) -> None:
        self.url = self.do("start")

    def do(self, command: str, *args: str) -> str:
        argv = ["sh", str(SCRIPT), command, str(self.folder), *args]
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=120, check=False, env=self.environ
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    def stop(self) -> None:
        self.do("stop")
