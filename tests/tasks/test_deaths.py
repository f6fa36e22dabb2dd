"""A death is a process that ended while it carried a message out, and nothing else."""

import os
import subprocess
import sys
from types import SimpleNamespace
from uuid import uuid4

import pytest

from core.signs import heartbeat
from tasks.worker import deaths
from tasks.worker.batching import run_batch
from tests.factories import content, registration
from tests.tasks.conftest import call

DIE = """
import os, sys
from types import SimpleNamespace
from tasks.worker import deaths
request = SimpleNamespace(id=sys.argv[1], hostname="w@host", delivery_info={"redelivered": True})
with deaths.marked(request):
    os._exit(0)
"""


def delivered(task_id, *, before=True, lost=0):
    """Make a message's request as a task sees it."""
    headers = {"x-delivery-count": lost}
    return SimpleNamespace(
        id=task_id, hostname="worker@here", delivery_info={"redelivered": before}, get=headers.get
    )


@pytest.fixture
def again():
    return delivered(str(uuid4()))


def die(request):
    subprocess.run([sys.executable, "-c", DIE, request.id], check=True, env=dict(os.environ))


def test_a_process_that_ends_while_it_carries_a_message_out_counts(again):
    for _ in range(2):
        die(again)

    assert deaths.count(again) == 2


JUNK = ["", "junk", "a|b", "a|b|c|d|e", f"worker|{deaths._host()}|-|1.00"]


@pytest.mark.parametrize("mark", JUNK)
def test_a_mark_that_no_process_wrote_is_no_death(again, valkey, mark):
    valkey.sadd(deaths._key(again.id), mark)

    assert deaths.count(again) == 0


def test_a_process_that_is_done_or_failed_does_not_count(again):
    with deaths.marked(again):
        during = deaths.count(again)
    with pytest.raises(KeyError), deaths.marked(again):
        raise KeyError

    assert (during, deaths.count(again)) == (0, 0)


def test_a_death_that_the_parent_saw_counts_once_with_the_loss_of_a_worker(again):
    deaths.note(again.id)

    assert deaths.count(again) == 1
    assert deaths.count(delivered(again.id, lost=1)) == 1


def test_the_first_loss_of_a_worker_counts_once_however_often_it_is_delivered():
    assert deaths.count(delivered(str(uuid4()), lost=6)) == 1


def test_a_first_delivery_is_neither_marked_nor_looked_up(valkey):
    first = delivered(str(uuid4()), before=False)

    with deaths.marked(first):
        assert valkey.keys("els:begun:*") == []
    assert deaths.count(first) == 0


def test_a_worker_elsewhere_is_alive_while_it_gives_signs(again, valkey):
    key = f"els:begun:{again.id}"
    valkey.sadd(key, "worker@there|another-host|17|1.00")

    gone = deaths.count(again)
    heartbeat.note_worker(valkey, "worker@there")

    assert (gone, deaths.count(again)) == (1, 0)


def test_what_is_done_is_forgotten(again, valkey):
    die(again)

    deaths.forget(again)

    assert valkey.keys("els:begun:*") == []
    assert deaths.count(again) == 0


def test_a_message_that_killed_five_processes_is_kept(send, batch_id, dead_letters):
    send("els.register_batch", registration(batch_id))
    event = content(batch_id)
    message = call(event)
    message.request["delivery_info"] = {"redelivered": True}
    for _ in range(5):
        deaths.note(message.task_id)

    run_batch([message])

    (letter,) = dead_letters(message.task_id)
    assert (letter["code"], letter["body"]) == ("POISON_MESSAGE", event)
    assert letter["deliveries"] == 5
