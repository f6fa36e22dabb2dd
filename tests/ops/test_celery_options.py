"""Options of Celery's that `els worker` and `els beat` refuse, each with its reason."""

import os
import socket
import subprocess
import sys
from uuid import uuid4

import pytest
from celery.bin.base import CLIContext
from click import UsageError

from core.signs.heartbeat import STARTS
from ops.stack.celery_command import command
from tasks.app import app

QUEUES = "the queues of the service are els.control, els.internal, els"
REFUSED = {
    ("worker", "--purge"): "it deletes the messages that wait",
    ("worker", "--discard"): "it deletes the messages that wait",
    ("worker", "-D"): "supervisor",
    ("worker", "--without-heartbeat"): "a sign of life",
    ("worker", "--heartbeat-interval", "60"): "a sign of life",
    ("worker", "--scheduler", "celery.beat:PersistentScheduler"): "in its own way",
    ("worker", "-Q", "elss"): QUEUES,
    ("worker", "-Q", "els,elss"): QUEUES,
    ("worker", "-X", "elss"): QUEUES,
    ("worker", "-X", "els,els.internal,els.control"): "no queue would be left",
    ("worker", "-I", "nowhere.at_all"): "cannot be imported: No module named 'nowhere'",
    ("worker", "--pool", "gevent"): "is not one of 'prefork'",
    ("worker", "-A", "other"): "No such option",
    ("beat", "--detach"): "supervisor",
    ("beat", "-S", "celery.beat:PersistentScheduler"): "in its own way",
    ("beat", "-A", "other"): "No such option",
}


@pytest.mark.parametrize(
    ("given", "why"), REFUSED.items(), ids=[" ".join(each) for each in REFUSED]
)
def test_an_option_is_refused_in_one_line(given, why):
    name, *options = given
    context = CLIContext(app, no_color=False, workdir=None, quiet=True)

    with pytest.raises(UsageError) as refused:
        command(name).main(options, f"els {name}", obj=context, standalone_mode=False)

    assert why in refused.value.format_message()
    assert "\n" not in refused.value.format_message()


def test_a_worker_that_is_to_purge_deletes_nothing(database_url, valkey):
    queue = f"kept-{uuid4().hex[:8]}"
    valkey.lpush(queue, "a message")
    environ = {**os.environ, "ELS_QUEUE": queue}

    ended = subprocess.run(
        [sys.executable, "-m", "ops", "worker", "--purge"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 2
    assert "--purge: it deletes the messages that wait" in ended.stderr
    assert valkey.lrange(queue, 0, -1) == ["a message"]
    valkey.delete(queue)


NEVER_STARTS = {
    "a misspelt setting": ({"ELS_CONCURENCY": "2"}, []),
    "a wrong setting": ({"ELS_CONCURRENCY": "many"}, []),
    "no Postgres": ({"ELS_DATABASE_URL": ""}, []),
    "a secret that is not there": ({"ELS_BROKER_URL_FILE": "/nowhere"}, []),
    "a refused option": ({}, ["--purge"]),
    "an unknown option": ({}, ["--conurrency", "2"]),
}


@pytest.mark.parametrize("name", NEVER_STARTS)
def test_a_worker_that_never_starts_counts_as_started(database_url, valkey, tmp_path, name):
    """Its supervisor starts it again and again, which a person should see."""
    settings, options = NEVER_STARTS[name]
    before = {*valkey.zrange(STARTS, 0, -1)}

    ended = subprocess.run(
        [sys.executable, "-m", "ops", "worker", *options],
        env={**os.environ, "ELS_HOME": str(tmp_path), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    [start] = {*valkey.zrange(STARTS, 0, -1)} - before
    assert ended.returncode != 0
    assert start.partition(" ")[2] == f"celery@{socket.gethostname()}"
    valkey.zrem(STARTS, start)


def test_options_that_are_refused_are_not_offered():
    for name in ("worker", "beat"):
        context = CLIContext(app, no_color=False, workdir=None, quiet=True)
        shown = command(name).get_help(command(name).make_context(name, [], obj=context))
        assert not {"--purge", "--detach", "--scheduler", "--without-heartbeat"} & {*shown.split()}
