"""The commands of a night on call: on a running service, and on servers where no worker is."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
import redis
import typer.main
from typer.testing import CliRunner

from core import db
from core.db.dead_letters import DeadLetter
from core.errors import NotSent
from core.outbox import relay
from ops.cli.main import app
from ops.client import Sender, outcomes
from ops.heartbeat import read_heartbeat
from ops.queries import dead_letters
from tests import factories as make
from tests.core import looks, story
from tests.live.conftest import until
from tests.ops.conftest import els

ON_CALL = [
    ("explain",),
    ("find",),
    ("reconcile",),
    ("purge",),
    *[("dead-letters", name) for name in ("list", "show", "replay", "discard")],
    *[("outbox", name) for name in ("list", "republish")],
]
NOBODY = 999_999_999


@pytest.fixture(scope="module")
def books(service):
    """The service's Postgres."""
    with db.connect_once(service.env["database_url"]) as conn:
        yield conn


@pytest.fixture(scope="module")
def tell(service, books):
    """Send events to the service, each after the outcome of the one before; return those."""
    with Sender(service.env["broker_url"], "els") as sender:

        def told(*messages):
            return [outcomes(books, [sender.send(*message)], 30)[0] for message in messages]

        yield told


@pytest.fixture
def quiet(tmp_path):
    """Run `els` in a process of its own on the servers of the test run, where no worker is."""

    def run(*arguments, **environ):
        urls = {name: os.environ[name] for name in ("ELS_DATABASE_URL", "ELS_REDIS_URL")}
        return els(*arguments, home=tmp_path, **urls, **environ)

    return run


@pytest.fixture
def here(tmp_path, database_url):
    """Run `els` in this process, on the servers of the test run."""

    def run(*arguments, **environ):
        env = {"ELS_HOME": str(tmp_path), "COLUMNS": "120", **environ}
        return CliRunner().invoke(app, [str(each) for each in arguments], env=env)

    return run


@pytest.fixture
def batch_id():
    return make.new_batch()


def registration(batch_id, essays=2, **fields):
    return "els.register_batch", make.registration(batch_id, essays, **fields)


def content(batch_id, text="text-1"):
    return "els.assign_content", make.content(batch_id, text)


def is_ready(books, batch_id):
    return (looks.batch(books, batch_id) or {}).get("ready_at")


def delivered(books, batch_id):
    """When each event was delivered, once all were."""
    moments = [row["published_at"] for row in looks.events(books, batch_id)]
    return moments if moments and all(moments) else None


# --- explain -------------------------------------------------------------------------------------


def test_a_waiting_batch_is_explained_to_people_and_to_programs(service, tell):
    batch = make.new_batch()
    tell(registration(batch, 2), content(batch))
    with redis.Redis.from_url(service.env["redis_url"], decode_responses=True) as client:
        until(lambda: read_heartbeat(client, 0).workers, what="a worker has given a sign of life")
        until(lambda: not read_heartbeat(client, 0).beat_silent, what="the sweep has run")

    told, as_json = service.els("explain", batch), service.els("explain", batch, "--json")

    assert (told.returncode, as_json.returncode) == (0, 0), told.stderr + as_json.stderr
    assert f"{batch}: awaiting_content_validation" in told.stdout
    assert "The batch waits for contents (1 of 2 slots are open), since " in told.stdout
    assert "registered with 2 slots" in told.stdout
    assert "POSTGRES" in told.stdout
    assert "✘" not in told.stdout
    explained = json.loads(as_json.stdout)
    assert [cause["code"] for cause in explained["causes"]] == ["waiting_for_contents"]
    assert explained["sides"]["postgres"]["open"] == explained["sides"]["redis"]["free"] == 1
    assert explained["disagreements"] == []


def test_a_ready_batch_has_nothing_to_explain(service, books, tell):
    batch = make.new_batch()
    tell(registration(batch, 1), content(batch))
    until(lambda: is_ready(books, batch) and delivered(books, batch), what="the batch is ready")

    told = service.els("explain", batch)

    assert told.returncode == 0
    assert f"{batch}: ready_for_pipeline_execution" in told.stdout
    assert "Nothing is missing" in told.stdout
    assert "event delivered: BatchEssaysReady" in told.stdout


def test_a_batch_that_nobody_has_seen_is_said_to_be_so(service):
    told = service.els("explain", make.new_batch(), "--json")

    assert told.returncode == 1
    explained = json.loads(told.stdout)
    assert explained["state"] == "unknown"
    assert explained["causes"][-1]["code"] == "unknown_batch"


def test_a_broker_that_does_not_answer_is_told_apart_from_redis(here, lifecycle, batch_id, valkey):
    story.register(lifecycle, batch_id)
    valkey.zadd("els:workers", {"worker@one": datetime.now(UTC).timestamp()})
    valkey.set("els:swept_at", datetime.now(UTC).timestamp())

    told = here("explain", batch_id, "--json", ELS_BROKER_URL="redis://127.0.0.1:9")

    codes = [cause["code"] for cause in json.loads(told.stdout)["causes"]]
    assert codes == ["broker_unreachable", "waiting_for_contents"]


def test_a_redis_that_does_not_answer_leaves_the_rest_explained(here, lifecycle, batch_id):
    story.register(lifecycle, batch_id)

    told = here("explain", batch_id, ELS_REDIS_URL="redis://127.0.0.1:9")

    assert told.exit_code == 0
    assert told.stdout.index("Redis does not answer") < told.stdout.index("waits for contents")


def test_servers_that_accept_and_never_answer_are_named(here):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        urls = {
            "ELS_DATABASE_URL": f"postgresql://a:b@{at}/els",
            "ELS_REDIS_URL": f"redis://{at}/0",
        }

        told = here("explain", "batch-1", **urls)
        as_json = json.loads(here("explain", "batch-1", "--json", **urls).stdout)

    assert told.exit_code == 1
    assert told.stdout.startswith("batch-1: unread")
    assert [cause["code"] for cause in as_json["causes"]] == [
        "postgres_unreachable",
        "redis_unreachable",
    ]
    assert sorted(as_json["unanswered"]) == ["broker", "postgres", "redis"]


# --- find ----------------------------------------------------------------------------------------


def found(here, wanted):
    told = here("find", wanted, "--json")
    return [] if told.exit_code else json.loads(told.stdout)


def test_whatever_bears_an_id_is_found(here, conn, lifecycle, batch_id):
    early, refused = f"early-{batch_id}", f"refused-{batch_id}"
    correlation = str(uuid4())
    story.assign(lifecycle, batch_id, early)
    registered = make.registration(batch_id, 2, correlation_id=correlation)
    make.take(lifecycle, "els.register_batch", registered)
    last, over = make.content(batch_id, f"last-{batch_id}"), f"over-{batch_id}"
    make.take(lifecycle, "els.assign_content", last)
    story.assign(lifecycle, batch_id, over)
    body = json.dumps({**make.content(batch_id, refused), "surprise": "\0"})
    letter = db.dead_letters.add(
        conn,
        DeadLetter("els.assign_content", f"task-{refused}", None, body, "X", "-"),
    )

    (slot,) = found(here, early)
    assert (slot["place"], slot["name"], slot["state"]) == (
        "slot",
        "essay-000000",
        "ready_for_processing",
    )
    (message,) = found(here, last["event_id"])
    assert (message["place"], message["state"]) == ("message", "assigned")
    assert [row["place"] for row in found(here, over)] == ["excess"]
    assert [row["place"] for row in found(here, refused)] == [f"dead letter {letter}"]
    assert [row["place"] for row in found(here, f"task-{refused}")] == [f"dead letter {letter}"]
    places = ["slot", "slot", "excess", "event"]
    assert sorted(row["place"] for row in found(here, correlation)) == sorted(places)
    of_batch = found(here, batch_id)
    assert sorted(row["place"] for row in of_batch) == sorted([*places, f"dead letter {letter}"])
    (event,) = [row for row in of_batch if row["place"] == "event"]
    assert (event["name"], event["state"]) == ("ExcessContentProvisioned", "waits for delivery")
    assert found(here, event["content"]) == [event]


def test_open_slots_and_waiting_contents_are_found_and_told_to_people(here, lifecycle, batch_id):
    other = make.new_batch()
    story.register(lifecycle, batch_id, 1)
    story.assign(lifecycle, other, f"text-{other}")

    is_open, waits = here("find", batch_id), here("find", f"text-{other}")

    assert is_open.stdout == f"slot  {batch_id}  essay-000000  awaiting_content\n"
    start = f"pending  {other}  content  waits for the registration  text-{other}  20"
    assert waits.stdout.startswith(start)


def test_an_id_that_nothing_bears_is_said_to_be_so(here):
    told = here("find", "nobody's")

    assert told.exit_code == 1
    assert "nothing here has the id nobody's" in told.stderr


# --- dead letters --------------------------------------------------------------------------------


def test_a_dead_letter_is_listed_shown_and_replayed_once_its_cause_is_mended(service, books, tell):
    batch, essays = make.new_batch(), make.essay_ids(1)
    confirmed = make.confirmation(batch, [make.association(essays[0])])
    (refused,) = tell(("els.confirm_students", confirmed))
    assert refused["outcome"] == "dead_letter"

    listed = service.els("dead-letters", "list", "--batch", batch)
    (row,) = json.loads(service.els("dead-letters", "list", "--batch", batch, "--json").stdout)
    shown = service.els("dead-letters", "show", row["id"])
    tell(registration(batch, 1, class_id="class-1"), content(batch))
    until(lambda: looks.batch(books, batch)["completed_at"], what="the batch is complete")
    replayed = [
        service.els("dead-letters", "replay", row["id"]),
        service.els("dead-letters", "replay", row["id"], "--json"),
    ]
    until(lambda: is_ready(books, batch), what="the batch is ready")

    assert f"{row['id']}  els.confirm_students  {batch}  UNKNOWN_BATCH" in listed.stdout
    assert json.loads(shown.stdout)["body"] == confirmed
    assert [told.returncode for told in replayed] == [0, 0]
    assert json.loads(replayed[1].stdout) == {"replayed": [row["id"]]}
    key = [confirmed["event_id"]]
    assert books.execute("SELECT 1 FROM idempotency_keys WHERE key = %s", key).rowcount == 1
    until(lambda: not redis.Redis.from_url(service.env["broker_url"]).llen("els"))
    assert looks.types(books, batch).count("BatchEssaysReady") == 1
    assert dead_letters.letters(books, batch_id=batch, task=None, every=False, limit=9) == []
    assert len(dead_letters.letters(books, batch_id=batch, task=None, every=True, limit=9)) == 1


def test_a_dead_letter_that_needs_nothing_is_discarded(service, tell):
    batch = make.new_batch()
    (letter,) = tell(("els.cancel_batch", make.cancellation(batch)))
    assert letter["outcome"] == "dead_letter"
    (row,) = json.loads(service.els("dead-letters", "list", "--batch", batch, "--json").stdout)

    told = service.els("dead-letters", "discard", row["id"])
    listed = service.els("dead-letters", "list", "--batch", batch)

    assert (told.returncode, told.stdout) == (0, "1 discarded\n")
    assert listed.stdout == "No dead letters wait.\n"


def park(conn, batch_id, task="els.cancel_batch"):
    body = json.dumps(make.cancellation(batch_id))
    task_id = f"task-{batch_id}-{task}"
    return db.dead_letters.add(
        conn, DeadLetter(task, task_id, batch_id, body, "UNKNOWN_BATCH", "-")
    )


@pytest.mark.parametrize("command", ["show", "replay", "discard"])
def test_a_number_that_is_none_is_said_to_be_so(here, command):
    told = here("dead-letters", command, NOBODY, "--json")

    assert told.exit_code == 1
    assert json.loads(told.stdout) == {"error": f"there is no dead letter {NOBODY}"}


@pytest.mark.parametrize("command", ["replay", "discard"])
@pytest.mark.parametrize("wrong", ["no number", "no message"])
def test_of_several_numbers_none_is_done_when_one_is_wrong(
    here, conn, slots, batch_id, command, wrong
):
    letter = park(conn, batch_id)
    other = NOBODY if wrong == "no number" else park(conn, batch_id, "unknown")

    told = here("dead-letters", command, letter, other)

    untouched = wrong == "no number" or command == "replay"
    assert told.exit_code == (1 if untouched else 0)
    row = dead_letters.letter(conn, letter)
    assert (row["replayed_at"] or row["discarded_at"]) is None or not untouched
    assert slots.client.llen("els") == 0


# --- the outbox ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready_batch(books, tell):
    batch = make.new_batch()
    tell(registration(batch, 1), content(batch))
    until(lambda: is_ready(books, batch) and delivered(books, batch), what="the batch is ready")
    return batch


@pytest.mark.parametrize("since", ["2h", "ISO"])
def test_events_are_delivered_again(service, books, ready_batch, since):
    before = delivered(books, ready_batch)
    hour_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    given = hour_ago if since == "ISO" else since

    told = service.els("outbox", "republish", "--since", given, "--batch", ready_batch, "--json")

    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["republished"] == 2
    again = until(lambda: delivered(books, ready_batch), what="the events are delivered again")
    assert min(again) > max(before)


def test_what_was_written_before_is_not_delivered_again(service, books, ready_batch):
    before = delivered(books, ready_batch)

    told = service.els("outbox", "republish", "--since", "2099-01-01", "--batch", ready_batch)

    assert told.stdout.startswith("0 events")
    assert delivered(books, ready_batch) == before


@pytest.mark.parametrize("since", ["", "yesterday", "h", ".h", "2x", "999999999999d", "2026-13-01"])
def test_a_moment_that_is_none_is_bad_usage(here, since):
    told = here("outbox", "republish", "--since", since)

    assert told.exit_code == 2
    assert "--since" in told.stderr


def no_broker(events):
    raise NotSent("the broker is away", 0)


def test_undelivered_events_are_listed_with_their_last_error(here, conn, lifecycle, batch_id):
    story.fill(lifecycle, batch_id, 1)
    lifecycle.complete(batch_id)
    relay(lifecycle.pool, [batch_id], no_broker)
    conn.execute(  # the oldest of all, so that no other test's events hide it
        "UPDATE event_outbox SET created_at = created_at - interval '10 years' WHERE batch_id = %s",
        [batch_id],
    )

    told, as_json = here("outbox", "list"), here("outbox", "list", "--limit", "2", "--json")

    (line,) = [line for line in told.stdout.splitlines() if f"{batch_id}  1  " in line]
    assert line.endswith("tried 1 time: the broker is away")
    assert [row["type"] for row in json.loads(as_json.stdout) if row["batch_id"] == batch_id] == [
        "BatchContentProvisioningCompleted",
        "BatchEssaysReady",
    ]


# --- reconcile -----------------------------------------------------------------------------------


def test_reconcile_says_what_it_found_and_mended(quiet, conn, lifecycle, slots, batch_id):
    story.register(lifecycle, batch_id, 3)
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id,"
        " original_file_name) SELECT %s, 'content', 'file-' || n, 'text-' || n, 'a.txt'"
        " FROM generate_series(1, 2) n",
        [batch_id],
    )
    slots.client.flushdb()
    codes = ["pending_though_registered", "slot_drift"]

    looked = quiet("reconcile", batch_id, "--dry-run", "--json")
    told = quiet("reconcile", batch_id)
    again = quiet("reconcile", batch_id, "--json")

    assert looked.returncode == 1, looked.stderr
    assert [(each["rule"], each["mended"]) for each in json.loads(looked.stdout)] == [
        (code, False) for code in codes
    ]
    assert told.returncode == 0, told.stdout + told.stderr
    title = "Contents wait although the batch is registered"
    assert f"mended  pending_though_registered  {batch_id}: {title} (2 waiting)\n" in told.stdout
    assert (again.returncode, json.loads(again.stdout)) == (0, [])
    assert set(looks.placed(conn, batch_id)) == {"text-1", "text-2"}
    assert slots.free(batch_id) == looks.open_slots(conn, batch_id)


def test_the_output_for_programs_is_json_alone_though_something_is_mended(
    quiet, conn, lifecycle, batch_id
):
    story.fill(lifecycle, batch_id, 2)

    told = quiet("reconcile", batch_id, "--json")

    assert told.returncode == 0, told.stderr
    (found,) = json.loads(told.stdout)
    assert (found["rule"], found["mended"]) == ("full_not_announced", True)
    assert found["finding"]["batch_id"] == batch_id
    assert looks.batch(conn, batch_id)["status"] == "ready_for_pipeline_execution"


def test_reconcile_tells_of_what_only_a_person_can_mend(service, tell):
    batch = make.new_batch()
    tell(registration(batch), ("els.confirm_students", make.confirmation(batch, [])))

    def alone():
        told = service.els("reconcile", batch)
        return None if "another sweep" in told.stderr else told

    told = until(alone, what="no other sweep is at work")

    assert told.returncode == 1
    assert f"not mended  dead_letter_waiting  {batch}: The service could not carry" in told.stdout
    assert "(WRONG_BATCH_STATE)" in told.stdout


def test_reconcile_tells_of_a_repair_that_does_not_help(quiet, conn, lifecycle, batch_id):
    story.fill(lifecycle, batch_id, 2)
    conn.execute(
        "INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id, data,"
        " published_at) VALUES (gen_random_uuid(), %s, 'ByHand', '1', 1, gen_random_uuid(), '{}',"
        " now())",
        [batch_id],
    )

    quiet("reconcile", batch_id)
    told = quiet("reconcile", batch_id)
    explained = quiet("explain", batch_id)

    assert told.returncode == 1
    assert f"not mended  full_not_announced  {batch_id}" in told.stdout
    assert "tried 2 times in a row: UniqueViolation" in told.stdout
    assert "by itself  not mending itself: the sweep has tried 2 times since" in explained.stdout


def test_reconcile_names_the_session_that_holds_the_lock(quiet, database_url):
    with psycopg.connect(database_url, autocommit=True, application_name="somebody") as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('sweep', 0))")
        pid = other.info.backend_pid
        told = quiet("reconcile")

    assert told.returncode == 1
    assert f"another sweep is at work (pid {pid}, somebody, idle since" in told.stderr


def test_slots_are_told_where_a_route_asks_for_it(quiet, lifecycle, conn, batch_id):
    story.register(lifecycle, batch_id, 2)
    conn.execute(
        "INSERT INTO batch_pending_content (batch_id, kind, essay_file_id, text_storage_id,"
        " original_file_name) VALUES (%s, 'content', 'file-1', 'text-1', 'a.txt')",
        [batch_id],
    )
    routes = {"EssaySlotAssigned": [{"task": "slots.taken", "queue": "slots"}]}

    told = quiet("reconcile", batch_id, ELS_EVENT_ROUTES=json.dumps(routes))

    assert told.returncode == 0, told.stderr
    assert looks.types(conn, batch_id) == ["EssaySlotAssigned"]


# --- purge ---------------------------------------------------------------------------------------


def test_purge_counts_first_and_deletes_then(service, books, tell):
    old, young, waiting = (make.new_batch() for _ in range(3))
    for batch in (old, young):
        tell(registration(batch, 1), content(batch))
    tell(content(waiting))
    for batch in (old, young):
        until(lambda b=batch: is_ready(books, b) and delivered(books, b), what="it is ready")
    books.execute(
        "UPDATE batch_essay_trackers SET completed_at = now() - interval '400 days',"
        " ready_at = now() - interval '400 days' WHERE batch_id = %s",
        [old],
    )
    books.execute(
        "UPDATE batch_pending_content SET received_at = now() - interval '400 days'"
        " WHERE batch_id = %s",
        [waiting],
    )

    counted = service.els("purge", "--older-than", 365, "--dry-run", "--json")
    there = looks.batch(books, old), looks.waiting(books, waiting)
    purged = service.els("purge", "--older-than", 365)

    assert json.loads(counted.stdout) == {
        "batches": 1,
        "pending": 1,
        "refusals": 0,
        "letters": 0,
        "keys": 0,
        "actions": 0,
        "dry_run": True,
    }
    assert all(there)
    start = "1 batch, 1 pending content, 0 refusals, 0 dead letters, 0 keys, 0 actions"
    assert purged.stdout == f"{start} deleted\n"
    assert looks.batch(books, old) is None
    assert looks.waiting(books, waiting) == []
    assert looks.batch(books, young) is not None
    with redis.Redis.from_url(service.env["redis_url"]) as client:
        assert client.keys(f"batch:{{{old}}}:*") == []
        assert client.keys(f"batch:{{{young}}}:*") != []


@pytest.mark.parametrize("days", ["-1", "a week", "1e9"])
def test_days_that_are_none_are_bad_usage(here, days):
    told = here("purge", "--older-than", days)

    assert told.exit_code == 2


# --- every command -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ON_CALL, ids=" ".join)
def test_a_command_explains_itself_and_takes_json(here, path):
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]

    told = here(*path, "-h")

    assert told.exit_code == 0
    assert command.help.split("\n")[0] in told.stdout
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--home"} <= options
