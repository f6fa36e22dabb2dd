"""Messages between our own tasks: their version, and fields that this release does not know."""

import base64
import json
from uuid import uuid4

import pytest
from celery.result import denied_join_result

from core.lifecycle import Lifecycle
from core.signs import health_file, heartbeat, pauses
from ops.heartbeat import read_heartbeat
from tasks import completion, versions
from tasks.app import app
from tasks.completion import dispatch_completion
from tasks.worker import deaths
from tasks.worker.beat import Scheduler
from tests.core import looks
from tests.core.story import fill
from tests.tasks.test_deaths import delivered

DONE = ["BatchContentProvisioningCompleted", "BatchEssaysReady"]
STEPS = {
    "els.seal_slots": lambda batch: {"batches": {batch: ["", None]}},
    "els.seal_books": lambda batch: {"batches": [batch]},
    "els.announce_ready": lambda batch: {"batches": [batch], "results": sealed(batch)},
}


def sealed(batch):
    """Let the headers of a chord check a batch."""
    return [run(task, batch).get() for task in ("els.seal_slots", "els.seal_books")]


@pytest.fixture
def lifecycle(pool, slots):
    return Lifecycle(pool, slots)


@pytest.fixture
def full(lifecycle, batch_id):
    fill(lifecycle, batch_id, 2)
    return batch_id


def run(task, batch, **options):
    return app.tasks[task].apply(kwargs=STEPS[task](batch), **options)


@pytest.fixture
def brief(monkeypatch):
    """Hold what has another version for a few tries."""
    settings = completion.settings.model_copy(update={"retry_for": 1.0})
    monkeypatch.setattr(completion, "settings", settings)


# --- messages -------------------------------------------------------------------------------------


def test_the_messages_of_a_chord_and_the_ticks_of_beat_say_their_version(full, messages, valkey):
    before = app.conf.task_always_eager
    app.conf.task_always_eager = False
    try:
        with denied_join_result():
            dispatch_completion({full: 2})
        scheduler = Scheduler(app, lazy=True)
        scheduler.setup_schedule()
        for entry in scheduler.schedule.values():
            scheduler.apply_entry(entry)
        scheduler.close()
    finally:
        app.conf.task_always_eager = before

    queues = [key for key in valkey.keys("els*") if valkey.type(key) == "list"]
    sent = [message for queue in queues for message in messages(queue)]
    said = {m["headers"]["task"]: m["headers"].get(versions.HEADER) for m in sent}
    assert said == dict.fromkeys(
        ["els.seal_slots", "els.seal_books", "els.sweep", "els.relay"], versions.SENT
    )
    [header] = [m for m in sent if m["headers"]["task"] == "els.seal_slots"]
    _, _, embed = json.loads(base64.b64decode(header["body"]))
    assert embed["chord"]["options"]["headers"] == versions.headers()


@pytest.mark.parametrize("headers", [None, {}, {"other": "x"}, {versions.HEADER: 1}])
@pytest.mark.parametrize("task", STEPS)
def test_a_message_of_the_last_release_is_executed(full, task, headers, dead_letters):
    result = run(task, full, headers=headers, task_id="of-the-last")

    assert full in result.get()
    assert dead_letters("of-the-last") == []


@pytest.mark.parametrize("version", [2, 999, 0, -1, "2", "one", 1.5, True, [1], {"a": 1}])
@pytest.mark.parametrize("task", STEPS)
def test_a_message_of_another_version_is_held_and_then_kept(
    full, brief, task, version, dead_letters, logged, conn
):
    task_id = f"{task}-{full}-{version}"

    result = run(task, full, headers={versions.HEADER: version}, task_id=task_id)

    assert result.get() == {}
    [letter] = dead_letters(task_id)
    assert letter["code"] == "UNKNOWN_VERSION"
    assert letter["body"]["kwargs"] == json.loads(json.dumps(STEPS[task](full)))
    assert [line for line in logged if line["event"] == "held_for_another_release"]
    assert looks.types(conn, full) == []


def test_a_batch_whose_completion_is_of_another_version_is_announced_by_the_sweep(
    full, brief, conn
):
    run("els.seal_slots", full, headers={versions.HEADER: versions.NEWEST + 1})

    app.tasks["els.sweep"].apply().get()

    assert looks.types(conn, full) == DONE


@pytest.mark.parametrize("task", [*STEPS, "els.sweep", "els.relay"])
def test_a_field_that_a_step_does_not_know_is_ignored(full, task):
    kwargs = STEPS[task](full) if task in STEPS else {}

    result = app.tasks[task].apply(kwargs={**kwargs, "of_the_next_release": {"a": 1}})

    assert result.successful()


def test_what_a_step_finds_may_have_more_fields(full, conn):
    seals = app.tasks["els.seal_slots"].apply(kwargs={"batches": {full: ["", None, "more"]}}).get()
    agrees = app.tasks["els.seal_books"].apply(kwargs={"batches": [full]}).get()
    seals[full]["of_the_next_release"] = 1

    results = [seals, {**agrees, "another": {"a": 1}}]
    app.tasks["els.announce_ready"].apply(kwargs={"results": results, "batches": [full]}).get()

    assert looks.types(conn, full) == DONE


# --- what workers keep ----------------------------------------------------------------------------


def test_a_pause_may_have_more_fields(valkey):
    row = {"server": "redis", "error": "away", "since": 1.0, "at": pauses.server_time(valkey)}
    valkey.hset(pauses.PAUSES, "host:1", json.dumps({**row, "version": 2, "more": [1]}))

    [pause] = read_heartbeat(valkey, 0).pauses

    assert pause.outage == pauses.Outage("redis", "away")


def test_a_sign_may_have_more_fields(valkey):
    heartbeat.note_worker(valkey, "w@host")
    sign = {"at": pauses.server_time(valkey), "held": 3, "more": [1]}
    heartbeat.write_sign(valkey, "w@host", sign)

    assert read_heartbeat(valkey, 0).in_work() == (3, 0.0)


def test_a_mark_of_a_death_may_have_more_parts(valkey):
    task_id = str(uuid4())
    mark = "worker@there|another-host|17|1.00|of-the-next-release"
    valkey.sadd(f"els:begun:{task_id}", mark)

    assert deaths.count(delivered(task_id)) == 1


def test_a_health_file_may_have_more_lines(tmp_path):
    health_file.touch(tmp_path, "worker@here")
    [path] = tmp_path.iterdir()
    pid = path.read_text()
    path.write_text(f"{pid}\nof the next release\n")

    assert [*health_file.touched_at(tmp_path)] == [int(pid)]
