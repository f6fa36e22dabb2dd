"""Which servers a command acts on, and whether it asks first."""

import json
import os
import pty
import re
import select
import time
from uuid import uuid4

import pytest

from core.settings import Settings
from ops.cli.target import location
from tests import factories as make
from tests.ops import forked
from tests.ops.conftest import ROOT, els
from tests.ops.served import own_database

CHANGING = [
    ("migrate",),
    ("cancel", "nobody", "--reason", "x"),
    ("submit", "examples/events.jsonl"),
    ("reconcile",),
    ("dead-letters", "replay", "1"),
    ("dead-letters", "discard", "1"),
    ("outbox", "republish", "--since", "1s"),
    ("purge", "--older-than", "36500"),
]
READING = [("status",), ("dead-letters", "list"), ("outbox", "list"), ("reconcile", "--dry-run")]
GENTLE = {"submit", "reconcile", "replay"}


@pytest.fixture(scope="module")
def other(database_url):
    """Servers that are not those of the running service: a database and a Redis database."""
    with own_database(database_url, f"other_{uuid4().hex[:8]}") as url:
        redis_url = os.environ["ELS_REDIS_URL"].rpartition("/")[0] + "/8"
        yield {"ELS_DATABASE_URL": url, "ELS_REDIS_URL": redis_url}


@pytest.fixture
def beside(service, tmp_path):
    """Run `els` in a folder whose `.els` is the home of the running service."""
    (tmp_path / ".els").symlink_to(service.home)

    def run(*arguments, **environ):
        return els(*arguments, cwd=tmp_path, **environ)

    return run


def test_urls_win_over_the_stack_that_runs_in_the_folder(beside, service, other):
    batch = make.new_batch()
    event = json.dumps(make.registration(batch, 1))
    service.els("submit", "-", "--wait", stdin=event)

    here, there = beside("status", "--json"), beside("status", "--json", **other)
    database_alone = {"ELS_DATABASE_URL": other["ELS_DATABASE_URL"]}
    alone = beside("status", "--json", **database_alone)
    named = beside("env", **other)

    assert batch in here.stdout
    assert json.loads(there.stdout) == json.loads(alone.stdout) == []
    assert (there.stderr, alone.stderr) == ("", "")
    assert json.loads(named.stdout)["broker_url"] == other["ELS_REDIS_URL"]


def test_a_url_of_the_running_stack_is_used_to_the_letter(beside, service):
    wrong = re.sub("//.*@", "//els:wrong@", service.env["database_url"])

    refused = beside("status", ELS_DATABASE_URL=wrong)

    assert refused.returncode == 1
    assert "Postgres does not answer" in refused.stderr


def test_a_broker_that_takes_nothing_is_told_with_the_next_step(beside, other):
    urls = {**other, "ELS_BROKER_URL": "redis://127.0.0.1:1/0"}

    told = beside("submit", str(ROOT / "examples" / "events.jsonl"), **urls)

    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].endswith("Next: start it, or mend ELS_BROKER_URL")


def test_what_is_changed_is_what_the_urls_name(beside, other):
    told = beside("purge", "--older-than", "36500", "--json", **other)

    assert json.loads(told.stdout)["batches"] == 0
    assert other["ELS_DATABASE_URL"].rpartition("@")[2] in told.stderr
    assert "test-password" not in told.stderr


@pytest.mark.parametrize("command", CHANGING, ids=" ".join)
def test_a_change_is_refused_where_the_home_and_the_urls_differ(service, other, command):
    told = els(*command, "--json", home=service.home, **other)

    assert told.returncode == 2, told.stderr
    assert "ELS_DATABASE_URL names" in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert "ELS_DATABASE_URL names" in json.loads(told.stdout)["error"]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_look_notes_that_the_home_and_the_urls_differ(service, other, command):
    told = els(*command, "--json", "--home", str(service.home), **other)

    assert told.returncode == 0, told.stderr
    assert told.stderr.startswith("note: ELS_DATABASE_URL names")
    json.loads(told.stdout)


def test_urls_of_the_running_stack_are_no_contradiction(service):
    spelt = service.env["database_url"].replace("127.0.0.1", "localhost")

    told = els("migrate", "--json", home=service.home, ELS_DATABASE_URL=spelt)

    assert told.returncode == 0, told.stderr
    assert "note" not in told.stderr


@pytest.mark.parametrize(
    ("set_", "command", "missing"),
    [
        ("ELS_REDIS_URL", ("status",), "ELS_DATABASE_URL"),
        ("ELS_DATABASE_URL", ("explain", "x"), "ELS_REDIS_URL"),
        ("ELS_DATABASE_URL", ("cancel", "x", "--reason", "y"), "ELS_BROKER_URL"),
    ],
)
def test_a_missing_url_is_named(beside, other, set_, command, missing):
    told = beside(*command, **{set_: other[set_]})

    assert told.returncode == 1
    assert f"needs {missing}" in told.stderr
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", CHANGING, ids=" ".join)
def test_a_change_says_where_it_is_made(service, command):
    told = service.els(*command, "--json")

    json.loads(told.stdout)
    database = service.env["database_url"].rpartition("@")[2]
    assert database in told.stderr
    assert "broker redis://127.0.0.1:" in told.stderr


@pytest.fixture
def typed(tmp_path):
    """Run `els` on a terminal where a person answers; return status, stdout and what was shown."""

    def run(arguments, answer, **environ):
        ours, theirs = pty.openpty()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
        terminal, told = os.ttyname(theirs), tmp_path / f"{uuid4().hex}.out"
        environ = {**clean, "COLUMNS": "200", **environ}
        process = forked.start(list(arguments), environ, ROOT, terminal, told, terminal)
        shown, deadline = "", time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 4096).decode()
            elif process.exitcode is not None:
                break
            if answer and "[y/N]" in shown:
                os.write(ours, f"{answer}\n".encode())
                answer = ""
        process.join(60)
        os.close(theirs)
        os.close(ours)
        return process.exitcode, told.read_text(), shown

    return run


@pytest.mark.parametrize("command", CHANGING, ids=" ".join)
@pytest.mark.parametrize("by", ["home", "urls"])
def test_a_person_is_asked_before_a_change_that_cannot_be_repeated(
    service, other, typed, command, by
):
    urls = {"ELS_HOME": str(service.home)} if by == "home" else other

    status, out, shown = typed(command, "n", **urls)

    asked = by == "urls" or not GENTLE & set(command)
    assert ("[y/N]" in shown) == asked
    if asked:
        assert status == 1
        assert "nothing was changed" in shown
        assert out == ""


def test_a_person_who_says_yes_is_obeyed_and_yes_is_not_asked_at_all(service, typed):
    home = {"ELS_HOME": str(service.home)}

    answered = typed(["purge", "--older-than", "36500", "--json"], "y", **home)
    given = typed(["purge", "--older-than", "36500", "--json", "--yes"], "", **home)

    assert (answered[0], given[0]) == (0, 0)
    assert json.loads(answered[1]) == json.loads(given[1])
    assert "[y/N]" not in given[2]


@pytest.mark.parametrize(
    ("command", "name", "wrong", "said"),
    [
        ("migrate", "ELS_DATABASE_URL", "nonsense", "ELS_DATABASE_URL"),
        ("migrate", "ELS_DATABASE_URL", "postgresql://u:sesame@127.0.0.1:9/d", "not answer"),
        ("status", "ELS_DATABASE_URL", "postgresql://u:sesame@127.0.0.1:9,127.0.0.1:8/d", "answer"),
        ("status", "ELS_DATABASE_URL", "postgresql://u:sesame@127.0.0.1:no/d", "its port must be"),
        ("explain x", "ELS_REDIS_URL", "http://u:sesame@h", "ELS_REDIS_URL"),
        ("worker", "ELS_REDIS_URL", "redis+cluster://:sesame@h", "Redis Cluster is not supported"),
        ("beat", "ELS_BROKER_URL", "sqs://u:sesame@h", "ELS_BROKER_URL: it must begin with one of"),
        ("status", "ELS_REDIS_URL", "memcached://u:sesame@h", "ELS_REDIS_URL: it must begin with"),
        ("ops", "ELS_REDIS_URL", "sentinel://:sesame@h:1/0", "ELS_REDIS_MASTER"),
        ("run", "ELS_BROKER_URL", "rediss://:sesame@h/0?ssl_ca_certs=/no", "No such file"),
        ("cancel x --reason y", "ELS_REDIS_URL", "redis://:sesame@h:no/0", "ELS_REDIS_URL"),
        ("purge --older-than 1", "ELS_BROKER_URL", "kafka://:sesame@h:1", "ELS_BROKER_URL"),
        ("reconcile", "ELS_REDIS_URL", "redis://:sesame@127.0.0.1:9/0", "Redis does not answer"),
        ("reconcile", "ELS_DATABASE_URL", "postgresql://u:sesame@127.0.0.1:9/d", "refused"),
        ("cancel x --reason y", "ELS_DATABASE_URL", "postgresql://:sesame@127.1:9/d", "refused"),
        ("submit examples/events.jsonl", "ELS_BROKER_URL", "redis://:x@127.1:9/0", "els: broker: "),
    ],
)
def test_a_wrong_url_is_one_line_that_says_what_to_do(tmp_path, other, command, name, wrong, said):
    told = els(*command.split(), home=tmp_path, **{**other, name: wrong})

    assert told.returncode == 1, told.stdout + told.stderr
    errors = [line for line in told.stderr.splitlines() if line.startswith("els: ")]
    assert len(errors) == 1, told.stderr
    assert said in errors[0]
    assert "Traceback" not in told.stderr
    assert "sesame" not in told.stderr
    assert "psycopg" not in told.stderr  # no log of a pool that tries again


@pytest.mark.parametrize(
    ("name", "url", "written"),
    [
        ("database_url", "postgresql://u:p@h/d?options=-csearch_path=x", "h:5432/d"),
        ("database_url", "postgresql://u:p@a:1,b:2/d", "a:1,b:2/d"),
        ("database_url", "postgresql+psycopg://u:p@/d?host=a:1&host=b:2", "a:1,b:2/d"),
        ("redis_url", "rediss://u:p@h/3", "rediss://h:6379/3"),
        ("broker_url", "amqp://u:p@a//;amqp://u:p@b:7//", "amqp://a:5672//, amqp://b:7//"),
    ],
)
def test_a_place_is_written_without_its_password(name, url, written):
    assert Settings(**{name: url})
    assert location(name, url) == written
