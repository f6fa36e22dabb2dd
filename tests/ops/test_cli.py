"""`els`, run as a person runs it, against a whole running service."""

import json
import re
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from tests import factories as make
from tests.live.conftest import until
from tests.ops.conftest import Service, els, fetch, without_colour


def lines(events):
    return "\n".join(json.dumps(event) for event in events)


def test_env_names_servers_that_answer(service):
    env = service.env

    with psycopg.connect(env["database_url"]) as conn:
        revision = conn.execute("SELECT version_num FROM alembic_version").fetchone()
    with redis.Redis.from_url(env["redis_url"]) as client:
        answered = client.ping()

    assert revision is not None
    assert answered
    assert env["broker_url"] == env["redis_url"]


def test_submitted_events_are_carried_out_and_shown(service):
    batch = make.new_batch()
    first = [{"task": "els.register_batch", "event": make.registration(batch, 2)}]
    service.els("submit", "-", "--wait", stdin=lines(first))
    events = [*first, make.content(batch, "text-1"), make.rejection(batch, "file-2")]

    told = service.els("submit", "-", "--wait", "--json", stdin=lines(events))
    status = service.els("status", batch, "--json")

    assert told.returncode == 0, told.stderr
    assert [line["outcome"] for line in json.loads(told.stdout)] == [
        "registered",
        "assigned",
        "failed_slot",
    ]
    [row] = json.loads(status.stdout)
    assert (row["assigned"], row["failed"], row["available_slots"]) == (1, 1, 0)


@pytest.fixture
def several(service):
    """Register batches of two users; one of them is full, and ready."""
    batches = {name: make.new_batch() for name in ("anna", "berit", "ready")}
    events = [
        make.registration(batches["anna"], 2, user_id="anna"),
        make.registration(batches["berit"], 2, user_id="berit"),
        make.registration(batches["ready"], 1, user_id="anna"),
        make.content(batches["ready"], "text-1"),
    ]
    service.els("submit", "-", "--wait", stdin=lines(events))
    return batches


def listed(service, *arguments):
    status = service.els("status", "--json", "--limit", "1000", *arguments)
    assert status.returncode == 0, status.stderr
    return {row["batch_id"] for row in json.loads(status.stdout)}


def test_status_shows_the_batches_of_a_user_or_in_a_state(service, several):
    ready = several["ready"]
    until(lambda: ready in listed(service, "--state", "ready_for_pipeline_execution"), what="ready")

    assert {several["anna"], ready} <= listed(service, "--user", "anna")
    assert several["berit"] not in listed(service, "--user", "anna")
    assert ready not in listed(service, "--state", "awaiting_content_validation")
    assert several["anna"] not in listed(service, "--stuck")


def test_status_says_how_many_it_does_not_show(service, several):
    cut = service.els("status", "--limit", "1")

    assert re.search(r"^\d+ more: --limit shows", cut.stdout, re.MULTILINE)


def test_status_shows_no_more_batches_than_its_limit(service, several):
    service.els("submit", "-", "--wait", stdin=lines([make.content(make.new_batch())]))

    assert len(json.loads(service.els("status", "--json", "--limit", "2").stdout)) == 2


def test_status_counts_the_contents_of_a_cancelled_batch(service):
    batch = make.new_batch()
    for messages in (
        [make.registration(batch, 3), make.content(batch)],
        [make.cancellation(batch)],
    ):
        service.els("submit", "-", "--wait", stdin=lines(messages))

    [row] = json.loads(service.els("status", batch, "--json").stdout)

    counts = ("expected_count", "assigned", "failed", "available_slots", "unfilled")
    assert [row[name] for name in counts] == [3, 1, 0, 0, 2]
    assert "UNFILLED" in service.els("status", batch).stdout


def test_a_reason_cannot_command_the_terminal(service):
    batch = make.new_batch()
    reason = "why\x1b[2J\x9b31m\u202e\r\n  2026-01-31 08:00:00 UTC  ready"
    cancellation = make.cancellation(batch) | {"reason": reason}
    for event in (make.registration(batch, 3), cancellation):  # which may overtake it
        service.els("submit", "-", "--wait", stdin=lines([event]))

    told, as_json = service.els("explain", batch).stdout, service.els("explain", batch, "--json")

    assert r"why\x1b[2J\x9b31m\u202e 2026-01-31" in told
    assert not set(told) & {"\x1b", "\x9b", "\u202e", "\r"}
    assert r"why\u001b[2J\u009b31m\u202e\r\n" in as_json.stdout


def test_status_fits_a_narrow_terminal_and_cuts_no_id(service):
    batch = make.new_batch() + "-" + "x" * 40
    service.els("submit", "-", "--wait", stdin=lines([make.registration(batch, 2)]))

    shown = service.els("status", batch, FORCE_COLOR="1", COLUMNS="80")

    text = without_colour(shown.stdout)
    assert max(map(len, text.splitlines())) <= 80
    assert batch in text
    assert "2 slots, 0 assigned, 2 open" in text


def test_els_tells_its_version():
    shown = subprocess.run(
        [sys.executable, "-m", "ops", "--version"], capture_output=True, text=True, check=True
    )

    assert shown.stdout == f"els {version('essay-lifecycle-service')}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("els schema els.am", {"els.amend_batch"}),
        ("els schema Batch", {"BatchEssaysReady", "BatchCancelled"}),
        ("els worker --conc", {"--concurrency"}),
        ("els worker --pool pre", {"prefork"}),
        ("els worker --purge --host", {"--hostname"}),
        ("els beat --sched", {"--schedule"}),
        ("els health ", {"worker", "beat"}),
        ("els health worker --max", {"--max-age"}),
        ("els dead-letters list --code UNKNOWN_B", {"UNKNOWN_BATCH"}),
        ("els dead-letters replay --task els.ca", {"els.cancel_batch"}),
        ("els outbox republish --type Mess", {"MessageRefused"}),
        ("els actions list --action re", {"replay", "republish", "reconcile"}),
        ("els status --state timed", {"timed_out"}),
    ],
)
def test_a_shell_completes(line, offered):
    asked = {"_ELS_COMPLETE": "complete_bash", "COMP_WORDS": line}
    asked["COMP_CWORD"] = str(len(line.split(" ")) - 1)

    shown = els(**asked)

    assert offered <= {*shown.stdout.split()}, shown.stderr


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_help_speaks_of_els_and_not_of_celery_alone(command):
    shown = els(command, "--help").stdout

    assert f"els {command}" in shown
    assert "celery -A" not in shown
    assert "--hostname" in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "standard input holds no events"),
        (" \n", "standard input holds no events"),
        ("{", "standard input: not JSON: Expecting property name"),
        ("\ufeff[1]", "standard input: entry 1 is not a JSON object"),
    ],
)
def test_what_is_no_event_is_not_submitted(text, said):
    told = els("submit", "-", stdin=text)

    assert told.returncode == 1
    assert said in told.stderr


def test_one_is_no_plural(service):
    event = make.registration(make.new_batch(), 1)

    assert "1 event enqueued" in service.els("submit", "-", stdin=lines([event])).stdout
    republished = service.els("outbox", "republish", "--since", "1s", "--batch", "none", "--yes")
    assert "0 events queued" in republished.stdout


def test_an_action_that_nobody_can_take_is_no_filter(service):
    told = service.els("actions", "list", "--action", "replaid")

    assert told.returncode == 2
    assert "there is no action replaid" in without_colour(told.stderr)


@pytest.mark.parametrize("command", ["cancel", "amend"])
def test_an_unknown_batch_names_the_next_step(service, command):
    more = ["--deadline", "1d"] if command == "amend" else []

    told = service.els(command, "batch-of-nobody", "--reason", "why", *more)

    assert told.returncode == 1
    assert "batch-of-nobody is not registered; register it and resend" in told.stdout


def test_status_and_health_name_the_beat_that_leads(service):
    def page_and_command_agree():
        beat = json.loads(fetch(service.env["ops_url"] + "/health/batches")[1])["beat"]
        alone = f"beat {beat['leader']} leads, none stands by"
        return beat["standing_by"] == [] and alone in service.els("status").stdout

    until(page_and_command_agree, what="both name the same beat")


@pytest.mark.parametrize("form", ["one object", "an array", "json lines"])
def test_submit_reads_json_and_json_lines(service, tmp_path, form):
    batch = make.new_batch()
    events = [make.registration(batch, 1), make.content(batch)]
    events = events[:1] if form == "one object" else events
    text = {
        "one object": json.dumps(events[0], indent=2),
        "an array": json.dumps(events),
        "json lines": lines(events) + "\n",
    }[form]
    (tmp_path / "events").write_text(text)

    told = service.els("submit", tmp_path / "events", "--json")

    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {"enqueued": len(events)}


def test_submit_shows_a_dead_letter_and_fails(service):
    bad = make.content(make.new_batch(), "text-1", file_size_bytes=-1)

    told = service.els("submit", "-", "--wait", stdin=lines([bad]))

    assert told.returncode == 1
    assert "dead_letter" in told.stdout
    assert "file_size_bytes" in told.stdout


def test_a_batch_is_cancelled_from_the_command_line(service):
    batch = make.new_batch()
    service.els("submit", "-", "--wait", stdin=lines([make.registration(batch, 2)]))

    told = service.els("cancel", batch, "--reason", "the teacher asked")

    assert told.returncode == 0, told.stderr
    assert "cancelled" in told.stdout
    assert "cancelled" in service.els("status", batch).stdout


def test_cancelling_an_unknown_batch_says_so_and_fails(service):
    told = service.els("cancel", "batch-nobody-knows", "--reason", "x")

    assert told.returncode == 1
    assert "batch-nobody-knows is not registered" in told.stdout


def test_status_shows_what_waits_for_a_batch_that_nobody_registered(service):
    batch = make.new_batch()
    service.els("submit", "-", "--wait", stdin=lines([make.content(batch)]))

    told = service.els("status", batch)

    assert told.returncode == 0
    assert "not_registered" in told.stdout


def test_migrate_can_be_run_again(service):
    told = service.els("migrate", "--json")

    assert told.returncode == 0
    found = json.loads(told.stdout)
    assert found["before"] == found["revision"]


def test_a_second_run_on_the_same_home_says_so(service):
    told = service.els("run")

    assert told.returncode == 1
    assert str(service.env["pid"]) in told.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["status"], 1, "els run"),
        (["env"], 1, "els run"),
        (["submit", "no such file"], 2, "no such file"),
        (["cancel", "batch-1"], 2, "--reason"),
        (["nonsense"], 2, "nonsense"),
        (["dead-letters", "list", "--code", "EXPIRE"], 2, "there is no code EXPIRE"),
        (["outbox", "republish", "--since", "1h", "--type", "Ready"], 2, "there is no event Ready"),
        (["dead-letters", "list", "--since", "soon"], 2, "'soon' is no moment"),
        (["explain", ""], 2, "is the variable set"),
        (["find", " "], 2, "is the variable set"),
        (["reconcile", ""], 2, "is the variable set"),
        (["schema", "nonsense"], 1, "`els schema` lists all"),
        (["demo", "--folder", "no such folder"], 1, "no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_says_what_to_do(tmp_path, arguments, status, said):
    told = els(*arguments, home=tmp_path / "home")

    assert told.returncode == status
    assert said in told.stderr
    assert "Traceback" not in told.stderr


def test_a_home_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "home").touch()

    told = els("status", home=tmp_path / "home")

    assert told.returncode == 1
    assert told.stderr.startswith(f"els: [Errno 20] Not a directory: '{tmp_path / 'home'}")
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    "entry", [{"task": "els.cancel_batch", "event": 5}, {"task": 5, "event": {}}]
)
def test_what_is_no_message_is_not_submitted(tmp_path, entry):
    told = els("submit", "-", "--wait", home=tmp_path, stdin=lines([make.content("b"), entry]))

    assert told.returncode == 1
    assert "entry 2: its task must be a text, and its event an object" in told.stderr


def test_the_page_says_that_its_port_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        urls = {"ELS_DATABASE_URL": "postgresql://x/x", "ELS_REDIS_URL": "redis://127.0.0.1:9"}
        told = els("ops", home=tmp_path, ELS_OPS_PORT=port, **urls)

    assert told.returncode == 1
    assert f"127.0.0.1:{port}: Address already in use; set ELS_OPS_HOST" in told.stderr


def test_control_c_while_modules_are_imported_is_no_traceback():
    with subprocess.Popen([sys.executable, "-m", "ops", "--help"], stderr=subprocess.PIPE) as els:
        maps = Path(f"/proc/{els.pid}/maps")
        until(lambda: "_socket" in maps.read_text(), what="it imports the modules of `els`")
        els.send_signal(signal.SIGINT)
        said = els.stderr.read()

    assert els.returncode in {130, -signal.SIGINT}
    assert b"ops" not in said


def test_an_unknown_setting_is_an_error_that_names_it(tmp_path):
    told = els("status", home=tmp_path, ELS_QUEU="els")

    assert told.returncode == 1
    assert "ELS_QUEU" in told.stderr


def test_a_server_that_does_not_answer_is_named(tmp_path):
    url = "postgresql://els@127.0.0.1:9/els"
    told = els("status", home=tmp_path, ELS_DATABASE_URL=url, ELS_REDIS_URL="redis://127.0.0.1:9")

    assert told.returncode == 1
    assert "Postgres does not answer" in told.stderr
    assert "Traceback" not in told.stderr


def test_the_ops_page_tells_health(service):
    url = service.env["ops_url"]
    until(lambda: fetch(f"{url}/healthz")[0] == 200, what="the ops page is up")

    ready = json.loads(fetch(f"{url}/readyz")[1])
    batches = json.loads(fetch(f"{url}/health/batches")[1])

    assert ready == {"ready": True, "postgres": "ok", "redis": "ok", "broker": "ok"}
    assert batches["status"] in ("ok", "degraded")
    assert fetch(f"{url}/nothing/here")[0] == 404


def test_a_killed_worker_is_started_again_and_the_next_batch_gets_ready(service):
    def workers():
        family = psutil.Process(service.process.pid).children(recursive=True)
        return [p for p in family if "els worker" in " ".join(p.cmdline())]

    batch = make.new_batch()
    until(workers, what="there are workers")[0].kill()

    told = service.els(
        "submit", "-", "--wait", stdin=lines([make.registration(batch, 1), make.content(batch)])
    )

    assert told.returncode == 0, told.stdout
    until(
        lambda: "ready_for_pipeline_execution" in service.els("status", batch).stdout,
        what="the batch is ready",
    )


def test_a_stopped_service_leaves_nothing_behind_and_goes_on_where_it_stopped(tmp_path):
    batch = make.new_batch()
    first = Service(tmp_path / "home")
    first.els("submit", "-", "--wait", stdin=lines([make.registration(batch, 1)]))
    family = psutil.Process(first.process.pid).children(recursive=True)

    status = first.stop(signal.SIGINT)
    gone, alive = psutil.wait_procs(family, timeout=10)
    second = Service(tmp_path / "home")
    told = second.els("submit", "-", "--wait", "--json", stdin=lines([make.content(batch)]))
    second.stop()

    assert status == 0
    assert len(gone) > 4
    assert alive == []
    assert [line["outcome"] for line in json.loads(told.stdout)] == ["assigned"]
