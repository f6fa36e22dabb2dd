"""Options of Celery's that `els worker` and `els beat` refuse, each with its reason."""

import os
import subprocess
import sys
from uuid import uuid4

import pytest
from celery.bin.base import CLIContext
from click import UsageError

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


def test_options_that_are_refused_are_not_offered():
    for name in ("worker", "beat"):
        context = CLIContext(app, no_color=False, workdir=None, quiet=True)
        shown = command(name).get_help(command(name).make_context(name, [], obj=context))
        assert not {"--purge", "--detach", "--scheduler", "--without-heartbeat"} & {*shown.split()}
