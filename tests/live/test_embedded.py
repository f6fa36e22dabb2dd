"""The embedded servers, started, hurt and started again for real."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from core.errors import StackError
from ops.stack import accounts
from ops.stack.embedded import POSTGRES_BIN, Postgres, Valkey
from ops.stack.home import make_home
from ops.stack.ports import choose_port, free_port
from ops.stack.server import Server, until

pytestmark = pytest.mark.redis_only("no broker in it")
KINDS = [Postgres, Valkey]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def make() -> Iterator[Callable[..., Server]]:
    """Build a server that is stopped at the end of the test."""
    with ExitStack() as undo:

        def build(kind: type[Server], home: Path, password: str = "secret") -> Server:
            server = kind(home / kind.name, free_port(), password)
            undo.callback(server.stop)
            return server

        yield build


def remember(server: Server, word: str) -> None:
    if isinstance(server, Postgres):
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
            connection.execute("INSERT INTO words VALUES (%s)", [word])
    else:
        with redis.Redis.from_url(server.url) as client:
            client.rpush("words", word)
            client.execute_command("WAITAOF", 1, 0, 5000)


def words(server: Server) -> list[str]:
    if isinstance(server, Postgres):
        with psycopg.connect(server.url) as connection:
            return [word for (word,) in connection.execute("SELECT word FROM words").fetchall()]
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.lrange("words", 0, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_data_survives_a_restart(kind, make, tmp_path):
    server = make(kind, tmp_path)
    server.start()
    remember(server, "kept")

    server.stop()
    server.start()

    assert words(server) == ["kept"]


@pytest.mark.parametrize("kind", KINDS)
def test_data_survives_a_kill(kind, make, tmp_path):
    server = make(kind, tmp_path)
    server.start()
    remember(server, "kept")

    server.process.kill()
    server.process.wait()
    again = make(kind, tmp_path)
    again.start()

    assert words(again) == ["kept"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "folder",
    ["two words", 'it\'s "quoted"', "Größe 大", "$HOME `id` \\n %s #", "x" * 150],
    ids=["space", "quotes", "unicode", "shell", "long"],
)
def test_any_folder_name_will_do(kind, folder, make, tmp_path):
    server = make(kind, tmp_path / folder)

    server.start()
    remember(server, "kept")

    assert words(server) == ["kept"]
    assert server.data.is_relative_to(tmp_path / folder)


@pytest.mark.parametrize("kind", KINDS)
def test_an_orphan_of_an_earlier_run_is_taken_over(kind, make, tmp_path):
    orphan = make(kind, tmp_path)
    orphan.start()
    remember(orphan, "kept")

    heir = make(kind, tmp_path)
    heir.start()

    assert orphan.process.wait(10) == 0
    assert words(heir) == ["kept"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_who_has_the_old_pid_is_spared(kind, make, tmp_path):
    server = make(kind, tmp_path)
    server.start()
    server.process.kill()
    server.process.wait()
    pid_file = next(server.data.glob("*.pid"))
    # A plain user sees the stranger with Postgres's eyes as well: give it the same account.
    owner = {"user": server.data.stat().st_uid} if os.geteuid() == 0 else {}

    with subprocess.Popen(["sleep", "1000"], **owner) as stranger:
        pid_file.write_text(
            pid_file.read_text().replace(str(server.process.pid), str(stranger.pid))
        )
        server.start()
        fate = stranger.poll()
        stranger.kill()

    assert fate is None
    assert server.process.poll() is None


@pytest.mark.parametrize("kind", KINDS)
def test_strangers_are_refused(kind, make, tmp_path):
    server = make(kind, tmp_path)
    server.start()
    url = server.url.replace("secret", "guessed")

    with pytest.raises((psycopg.OperationalError, redis.AuthenticationError), match=r"pass"):
        psycopg.connect(url) if kind is Postgres else redis.Redis.from_url(url).ping()


@pytest.mark.parametrize("kind", KINDS)
def test_only_loopback_listens(kind, make, tmp_path):
    server = make(kind, tmp_path)

    server.start()

    listening = psutil.Process(server.process.pid).net_connections(kind="all")
    assert {(each.laddr) for each in listening if each.status == "LISTEN"} == {
        ("127.0.0.1", server.port)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_start_shows_the_end_of_the_log(kind, make, tmp_path):
    server = make(kind, tmp_path)

    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(StackError, match=r"(?s)exited with status 1.*log.*in use") as caught,
    ):
        server.start()

    assert str(server.log) in str(caught.value)
    assert server.process.poll() is not None


def test_lost_passwords_are_told_apart_from_a_slow_start(make, tmp_path):
    server = make(Postgres, tmp_path)
    server.start()
    server.stop()

    forgetful = make(Postgres, tmp_path, "another")
    with pytest.raises(StackError, match=r"secrets\.json"):
        forgetful.start()

    assert forgetful.process.poll() is not None


def test_a_half_made_database_is_made_anew(make, tmp_path):
    partial = tmp_path / "postgres.partial"
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18")
    server = make(Postgres, tmp_path)

    server.start()
    remember(server, "kept")

    assert words(server) == ["kept"]
    assert not partial.exists()


def test_postgres_is_durable_and_speaks_unicode(make, tmp_path):
    server = make(Postgres, tmp_path)

    server.start()

    with psycopg.connect(server.url) as connection:
        found = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]
            for name in ("fsync", "synchronous_commit", "full_page_writes", "server_encoding")
        }
    assert found == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "server_encoding": "UTF8",
    }


def test_no_password_stands_on_a_command_line(make, tmp_path):
    servers = [make(kind, tmp_path, "conspicuous") for kind in KINDS]

    for server in servers:
        server.start()

    assert not [
        line
        for server in servers
        for line in psutil.Process(server.process.pid).cmdline()
        if "conspicuous" in line
    ]
    assert (tmp_path / "valkey" / "valkey.conf").stat().st_mode & 0o077 == 0


@as_root
def test_root_below_a_closed_folder_needs_no_chmod(make, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = make(Postgres, closed / "home")

    server.start()
    remember(server, "kept")

    assert words(server) == ["kept"]
    assert psutil.Process(server.process.pid).uids().effective != 0
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_root_in_an_open_folder_keeps_no_capability(make):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        if not enterable(POSTGRES_BIN / "postgres", Path(folder)):
            pytest.skip("the binaries lie below a closed folder")
        home = Path(folder) / "home"
        make_home(home)
        server = make(Postgres, home)

        server.start()

        status = Path(f"/proc/{server.process.pid}/status").read_text()
        server.stop()
    assert "CapEff:\t0000000000000000" in status


def enterable(*paths: Path) -> bool:
    test = 'for path; do test -x "$path" || exit 1; done'
    argv = ["sh", "-c", test, "sh", *map(str, paths)]
    return (
        subprocess.run(argv, user=65534, group=65534, extra_groups=[], check=False).returncode == 0
    )


@as_root
def test_root_without_setpriv_is_told_the_ways_out(make, tmp_path, monkeypatch):
    monkeypatch.setattr(accounts.shutil, "which", lambda _name: None)
    server = make(Postgres, tmp_path)

    with pytest.raises(StackError, match=r"ELS_HOME.*plain user.*ELS_DATABASE_URL"):
        server.start()


def test_a_given_port_that_is_taken_is_an_error_that_names_its_setting():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]

        with pytest.raises(StackError, match=f"ELS_OPS_PORT={port}"):
            choose_port("ELS_OPS_PORT", port)


def test_a_default_port_that_is_taken_is_replaced():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]

        chosen = choose_port("ELS_OPS_PORT", None, port)

    assert chosen != port


def test_a_server_that_ignores_the_polite_signal_is_ended(make, tmp_path):
    server = make(Valkey, tmp_path)
    server.start()
    server.process.send_signal(signal.SIGSTOP)

    server.stop(timeout=0.2)

    assert until(lambda: server.process.poll() == -signal.SIGKILL, 1)
