"""What keeps every batch waiting, told from the signs of life alone."""

import os
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from core.signs import installation as how
from core.signs.installation import Kind
from core.signs.pauses import Outage, Pause
from ops.explain.consumers import consumer_clues
from ops.explain.locks import Lock
from ops.explain.service_causes import look_at, service_causes
from ops.explain.sign_clues import sign_clues
from ops.heartbeat import Asked, Heartbeat, with_outages
from ops.installation import Installation
from ops.signs import Beats, Sign

OF_POSTGRES = {"postgres_unreachable", "cannot_read"}  # tests/explain makes them
NAME = "worker@one"


def ago(seconds):
    return datetime.now(UTC) - timedelta(seconds=seconds)


def sign(**fields):
    usual = {
        "at": ago(1),
        "queues": ("els", "els.control", "els.internal"),
        "database": "here",
        "database_name": "db:5432/els",
        "broker": "redis/0",
        "host": "one",
        "pid": 7,
    }
    return Sign(**{**usual, **fields})


def seen(worker=None, *, workers=(NAME,), installation=None, **fields):
    """The signs of one worker, and of a beat that leads."""
    asked = Asked("els", "here", "db:5432/els", "redis/0", installation or Installation())
    beats = Beats("host:1")
    signs = {NAME: worker} if worker else {}
    return Heartbeat(list(workers), ago(1), 0, beats=beats, signs=signs, asked=asked, **fields)


def causes(heartbeat, **more):
    return list(service_causes({}, heartbeat, **more))


def codes(heartbeat, **more):
    return [cause.code for cause in causes(heartbeat, **more)]


SEEN = [
    (
        lambda: seen(sign(queues=("other",))),
        "worker_other_queue",
        ["queue els", "worker@one takes those of other alone"],
    ),
    (
        lambda: seen(sign(broker="amqp/school")),
        "worker_other_broker",
        ["redis/0", "worker@one takes those of amqp/school"],
    ),
    (
        lambda: seen(sign(database="there", database_name="db:5432/old")),
        "worker_other_database",
        ["worker@one works on db:5432/old, and this is db:5432/els"],
    ),
    (
        lambda: seen(
            sign(held=3, task="els.sweep", task_pid=8, began_at=ago(40), progress_at=ago(40))
        ),
        "worker_stalled",
        ["process 8 has been at els.sweep since", "holds 3 messages", "kill -KILL 8"],
    ),
    (
        lambda: seen(sign(held=2, progress_at=ago(40))),
        "worker_stalled",
        ["no process takes the next message"],
    ),
    (
        lambda: seen(sign(waits={"wrong": "no schema", "why": "it is new", "step": "els migrate"})),
        "worker_waits",
        ["worker@one waits to start: no schema", "it is new", "els migrate"],
    ),
    (
        lambda: replace(seen(sign(at=ago(60), stopped=True), workers=()), waiting=1),
        "no_worker",
        ["No worker is running", "was stopped at", "1 message waits in the queue els"],
    ),
    (
        lambda: seen(sign(at=ago(60), task="els.sweep", began_at=ago(70)), workers=()),
        "no_worker",
        ["No worker gives a sign of life", "it was at els.sweep since"],
    ),
    (lambda: seen(workers=()), "no_worker", ["no worker has given a sign of life for 15 s"]),
    (
        lambda: replace(
            seen(sign(), workers=["worker@two", NAME]),
            signs={NAME: sign(), "worker@gone": sign(at=ago(40), held=4)},
        ),
        "worker_silent",
        ["worker@gone gives no sign of life, and held 4 messages"],
    ),
    (
        lambda: seen(
            sign(), pauses=[Pause("one:7", Outage("postgres", "no table", "42P01"), ago(9))]
        ),
        "schema_missing",
        ["no table", "els migrate"],
    ),
]


@pytest.mark.parametrize(("make", "code", "words"), SEEN)
def test_a_worker_that_serves_nobody_is_named_with_what_it_does(make, code, words):
    [cause] = causes(make())

    assert cause.code == code
    said = " ".join((cause.title, cause.reason, cause.by_itself, cause.command))
    assert [word for word in words if word not in said] == []
    assert "None" not in said
    assert "{" not in said


def test_what_whoever_asks_has_met_is_newer_than_what_a_process_noted():
    noted = Pause("one:8", Outage("postgres", "read-only", "25006"), ago(40))
    refused = with_outages(seen(sign(), pauses=[noted]), [Outage("postgres", "DiskFull", "53100")])
    taken = with_outages(seen(sign(), pauses=[noted]), [], tried="postgres")

    (of_disk,), (of_past,) = causes(refused), causes(taken)

    assert (of_disk.reason, of_disk.since) == ("DiskFull", noted.since)
    assert of_past.reason.startswith("read-only; it has just taken a write of whoever asks")
    assert "els health worker" in of_past.command


@pytest.mark.parametrize(
    ("server", "error", "step"),
    [
        ("postgres", 'FATAL: password authentication failed for user "els"', "new password"),
        ("postgres", "FATAL: pg_hba.conf rejects connection for host", "pg_hba.conf"),
        ("postgres", 'FATAL: no pg_hba.conf entry for host "10.0.0.1"', "pg_hba.conf"),
        ("postgres", "FATAL: remaining connection slots are reserved", "FROM pg_stat_activity"),
        ("postgres", "FATAL: sorry, too many clients already", "FROM pg_stat_activity"),
        ("postgres", "failed to resolve host 'db': Name or service not known", "in DNS"),
        ("postgres", "port 1 failed: Connection refused", "start it"),
        ("postgres", "FATAL: the database system is starting up", "wait"),
        ("postgres", 'FATAL: role "els" is not permitted to log in', "LOGIN"),
        ("redis", "invalid username-password pair or user is disabled.", "ELS_REDIS_URL"),
        ("redis", "max number of clients reached", "CLIENT LIST"),
        ("redis", "BUSY Redis is busy running a script.", "SCRIPT KILL"),
        ("redis", "Redis is loading the dataset in memory", "wait"),
        ("broker", "[Errno 111] Connection refused", "ELS_BROKER_URL"),
    ],
)
def test_the_step_fits_what_keeps_a_server_from_being_reached(server, error, step):
    assert step in look_at(server, error)


def test_a_statement_that_is_refused_is_no_server_that_is_away():
    said = look_at("postgres", "UndefinedFunction: function f() does not exist", "42883")

    assert "ELS_DATABASE_URL" not in said


def test_two_databases_of_one_name_are_told_apart():
    asked = Asked(queue="els", database="a", database_name="db:5432/els")
    theirs = sign(database="b", database_name="db:5432/els")

    (cause,) = causes(replace(seen(theirs), asked=asked))

    assert cause.code == "worker_other_database"
    assert "search_path" in cause.reason


def test_who_holds_a_lock_is_named_before_all_else():
    held = Lock(
        12, None, ["table essay_states"], "psql", "idle in transaction", ago(50), ago(40), 3
    )

    first, *_ = causes(seen(workers=()), locks=[held])

    assert first.code == "lock_held"
    assert "table essay_states (pid 12, psql, idle in transaction since" in first.title
    assert "3 other sessions wait" in first.reason
    assert "pg_terminate_backend(12)" in first.command
    assert first.since == held.since


def test_a_worker_of_an_older_release_gives_no_sign_and_counts_as_serving():
    assert codes(seen()) == []


def test_a_process_that_waits_for_a_server_does_not_hang():
    held = sign(held=3, task="els.sweep", began_at=ago(40), progress_at=ago(40))
    pause = Pause("one:8", Outage("postgres", "read-only", "25006"), ago(40))

    assert codes(seen(held, pauses=[pause])) == ["server_refuses"]


def test_where_redis_refuses_writes_nobody_is_said_to_be_gone():
    pause = Pause("this command", Outage("redis", "OutOfMemoryError: OOM"), ago(0))
    silent = replace(seen(sign(at=ago(60)), workers=(), pauses=[pause]), beats=Beats())

    assert codes(silent) == ["server_refuses"]


def test_where_a_beat_is_gone_the_sweep_is_known_to_be_silent_sooner():
    heartbeat = replace(seen(sign()), swept_at=ago(12))  # its last tick ran late

    assert codes(heartbeat) == []
    assert codes(replace(heartbeat, beats=Beats())) == []
    [cause] = causes(replace(heartbeat, beats=Beats(gone=True)))
    assert cause.code == "beat_silent"
    assert cause.title.startswith("No beat is running")


def test_a_worker_of_remote_control_that_gives_a_sign_is_no_other():
    heartbeat = replace(seen(sign()), others={NAME: ["els"], "celery@mail": ["els"]})

    [cause] = causes(heartbeat)

    assert cause.code == "foreign_consumer"
    assert "(celery@mail)" in cause.title
    assert cause.command.endswith("control -d celery@mail cancel_consumer els")


def test_more_consumers_than_workers_are_a_clue_on_rabbitmq_alone():
    one = sign(broker="amqp//")
    on_redis = replace(seen(sign()), consumers=2)
    on_rabbitmq = replace(seen(one), consumers=2, asked=Asked("els", broker="amqp//"))

    assert list(consumer_clues(on_redis)) == []
    assert list(consumer_clues(replace(on_rabbitmq, consumers=1))) == []
    assert list(consumer_clues(replace(on_rabbitmq, others={"celery@mail": ["els"]}))) == []
    [clue] = consumer_clues(on_rabbitmq)
    assert clue.text.startswith("2 consumers take from the queue els, and 1 worker of this service")


def test_a_worker_that_is_slowed_down_does_not_hang():
    held = sign(held=3, progress_at=ago(40), limited={"els.assign_content": "1/h"})

    assert codes(seen(held)) == ["worker_limited"]


def test_what_was_lost_before_the_registration_is_no_clue():
    ignored = sign(ignored=("chain",), ignored_at=ago(600))
    heartbeat = seen(ignored, since=ago(600))

    def clues(registered, **more):
        return list(sign_clues(heartbeat, ago(registered), **{"has_queue": True, **more}))

    assert clues(300) == []
    assert len(clues(900)) == 2
    assert len(clues(900, has_queue=False)) == 1  # its slots come back by themselves


def test_a_new_redis_has_lost_nothing():
    assert list(sign_clues(seen(sign(), since=ago(5)), None, has_queue=True)) == []


CONTAINER = [(0, 5, Kind.COMPOSE), (1, 1, Kind.COMPOSE), (1, 5, Kind.COMMAND), (4, 4, Kind.COMMAND)]


@pytest.mark.parametrize(("parent", "session", "kind"), CONTAINER)
def test_what_a_person_starts_in_a_container_is_no_part_of_compose(
    monkeypatch, tmp_path, parent, session, kind
):
    monkeypatch.setattr(how, "IN_A_CONTAINER", [tmp_path])
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "getsid", lambda _: session)

    assert how.detect(tmp_path, {}) is kind


STEPS = [
    (Installation(Kind.COMMAND), "els worker", "els beat"),
    (Installation(Kind.ELS_RUN, "/home/of"), "els run --home /home/of", "els run --home /home/of"),
    (
        Installation(Kind.ELS_RUN, "/home/of", up=True),
        "tail -n 20 /home/of/log/worker.log",
        "tail -n 20 /home/of/log/beat.log",
    ),
    (Installation(Kind.COMPOSE), "docker compose up -d worker", "docker compose up -d beat"),
    (
        Installation(Kind.KUBERNETES),
        "kubectl rollout restart deployment/els-worker",
        "kubectl rollout restart deployment/els-beat",
    ),
    (
        Installation(Kind.SYSTEMD),
        "systemctl start els-worker@1",
        "systemctl start els-beat",
    ),
]


@pytest.mark.parametrize(("installation", "worker", "beat"), STEPS)
def test_the_step_fits_how_the_service_runs(installation, worker, beat):
    gone = replace(seen(workers=(), installation=installation), swept_at=None, beats=Beats())

    assert [cause.command for cause in causes(gone)] == [worker, beat]


def test_a_prepared_transaction_has_no_session_to_end():
    lock = Lock(None, "bank's 7", ["rows"], None, None, None, None, 1)

    (cause,) = service_causes({}, seen(sign()), locks=[lock])

    assert "the prepared transaction bank's 7, which no session has" in cause.title
    assert shlex.split(cause.command)[-1] == "ROLLBACK PREPARED 'bank''s 7'"


def test_a_limit_of_time_of_one_worker_is_told_from_a_slow_postgres():
    outage = Outage("postgres", "QueryCanceled: statement timeout", "57014")
    heartbeat = seen(sign(), pauses=[Pause("one:9", outage, ago(5))])

    found = causes(with_outages(heartbeat, [], tried="postgres"))

    assert [cause.title for cause in found] == ["Postgres ends what one:9 begins"]
    assert "options=-cstatement_timeout" in found[0].command
