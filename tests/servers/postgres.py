"""Debian's Postgres and PgBouncer, each in a folder of its own, on a port of loopback."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from ops.stack.leash import Account, leashed
from ops.stack.ports import free_port
from tests.live.conftest import until
from tests.servers.conftest import program

PASSWORD = "word"


def account() -> Account:
    """Whom the servers run as: ourselves, or, as they refuse root, nobody."""
    if os.geteuid():
        return Account()
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


@contextmanager
def folder(name: str):
    """A folder of the servers' account, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    give(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def give(path: Path):
    if account().uid is not None:
        os.chown(path, account().uid, account().gid)


class Program:
    """One server process that ends with the tests."""

    def __init__(self, path: Path):
        self.path, self.port = path, free_port()
        self.log = path.with_name(f"{path.name}.log")
        self.process = None

    def launch(self, *argv):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                leashed([str(each) for each in argv], signal.SIGQUIT, account()),
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )

    def end(self, number=signal.SIGINT):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


class Node(Program):
    """A Postgres, primary or standby, with a superuser `els` and, once it serves, a database."""

    def run(self, name, *args):
        uid, gid, _ = account()
        argv = [program(name), *map(str, args)]
        done = subprocess.run(
            argv, user=uid, group=gid, capture_output=True, text=True, check=False, cwd="/",
            env={**os.environ, "PGPASSWORD": PASSWORD}, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def create(self, **settings):
        with tempfile.NamedTemporaryFile("w") as password:
            password.write(PASSWORD)
            password.flush()
            give(Path(password.name))
            self.run(
                "initdb", "--username=els", f"--pwfile={password.name}", "--auth=scram-sha-256",
                "--encoding=UTF8", "--locale=C", "-D", self.path,
            )  # fmt: skip
        return self.configure(**settings)

    def copy(self, primary: "Node", name: str):
        """Make this node a standby that streams from a primary, under this name."""
        source = f"host=127.0.0.1 port={primary.port} user=els application_name={name}"
        self.run("pg_basebackup", "-d", source, "-D", self.path, "-R", "-X", "stream", "-c", "fast")
        with (self.path / "postgresql.auto.conf").open("a") as conf:
            conf.write("synchronous_standby_names = ''\n")  # the primary's are not its own
        return self

    def configure(self, **settings):
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        with (self.path / "postgresql.conf").open("a") as conf:
            conf.writelines(lines)
        return self

    def start(self):
        self.launch(
            program("postgres"), "-D", self.path, "-p", self.port,
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
        )  # fmt: skip
        until(self.serves, 60, f"Postgres serves; see {self.log}")
        return self

    def serves(self):
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url_of("postgres"), connect_timeout=5).close()
            return True
        return False

    def make(self, database="els"):
        with psycopg.connect(self.url_of("postgres"), autocommit=True) as conn:
            conn.execute(f'CREATE DATABASE "{database}"')
        return self

    def kill(self):
        """End it without a word, as a machine that loses its power."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        for each in processes:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait(10)
        psutil.wait_procs(processes, 10)

    def promote(self):
        self.run("pg_ctl", "promote", "-D", self.path, "-w", "-t", "10")

    @property
    def url(self):
        return self.url_of("els")

    def url_of(self, database, user="els", password=PASSWORD):
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"


class PgBouncer(Program):
    """A PgBouncer before one node, for its user `els` and others that are named."""

    def start(self, node: Node, mode="transaction", users=(), **settings):
        self.path.mkdir(mode=0o755)
        names = "".join(f'"{user}" "{PASSWORD}"\n' for user in ("els", *users))
        (self.path / "users").write_text(names)
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self.path / "users",
            "pool_mode": mode,
            "default_pool_size": 4,
            **settings,
        }
        lines = [f"{name} = {value}\n" for name, value in options.items()]
        databases = f"[databases]\n* = host=127.0.0.1 port={node.port}\n[pgbouncer]\n"
        (self.path / "pgbouncer.ini").write_text(databases + "".join(lines))
        self.launch(program("pgbouncer"), self.path / "pgbouncer.ini")
        until(self.serves, 20, f"PgBouncer serves; see {self.log}")
        return self

    def serves(self):
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        with suppress(psycopg.OperationalError):
            psycopg.connect(self.url, connect_timeout=5).close()
            return True
        return False

    @property
    def url(self):
        return self.url_of()

    def url_of(self, user="els", password=PASSWORD):
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/els"


def wait_for_replay(primary: str, standby: str):
    """Wait until a standby shows what its primary holds now."""
    with (
        psycopg.connect(primary, autocommit=True) as one,
        psycopg.connect(standby, autocommit=True) as other,
    ):
        (at,) = one.execute("SELECT pg_current_wal_lsn()").fetchone()
        until(
            lambda: other.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [at]).fetchone()[
                0
            ],
            what="the standby follows",
        )


def elapsed(since: float) -> float:
    return time.monotonic() - since
