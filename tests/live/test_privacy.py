"""Nothing that a run writes names a person: not at DEBUG, not for any failure that we know.

Markers stand wherever others may write: in fields, names of fields, ids, bodies, headers, names of
tasks, addresses. Only Postgres, outgoing events and the messages that wait may hold them.
"""

import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import redis
from celery import Celery

from core import db
from core.settings import Settings
from ops.stack.home import running
from ops.stack.leash import leashed
from ops.torture import refusals
from tests import factories as make
from tests.live.conftest import until
from tests.live.test_traces import Collector

ROOT = Path(__file__).parents[2]
MARK = f"mk{uuid4().hex[:12]}"
NAME = f"Åsa {MARK} (A).docx"
QUEUE, EVENTS = "els", "els.events"
ENVIRON = {
    "ELS_LOG_LEVEL": "DEBUG",
    "ELS_RETRY_FOR": "1",
    "ELS_SWEEP_EVERY": "1",
    "ELS_FLOWER_AUTH": "flower:sesame",
    "ELS_VISIBILITY_TIMEOUT": "5",
    "OTEL_BSP_SCHEDULE_DELAY": "200",
}
if "remote_control" in Settings.model_fields:
    ENVIRON["ELS_REMOTE_CONTROL"] = "true"
KNOWN = {"Authorization": "Basic " + base64.b64encode(b"flower:sesame").decode()}

# What Postgres does to the batches of these names: each quotes the whole row.
FAULTS = {
    "raised": "RAISE EXCEPTION 'this row fails: %', NEW",
    "refused": "RAISE EXCEPTION 'row %', NEW USING ERRCODE = '23514', DETAIL = NEW::text",
    "timeout": "RAISE EXCEPTION 'row %', NEW USING ERRCODE = '57014'",
    "full": "RAISE EXCEPTION 'row %', NEW USING ERRCODE = '53100'",
    "slow": "PERFORM pg_sleep(5)",
}


def encoded(text):
    return base64.b64encode(text.encode()).decode()


class Traced(Collector):
    """A collector that keeps all that it gets, to the byte."""

    def __init__(self):
        self.bodies = []
        super().__init__()

    def take(self, request):
        self.bodies.append(request.SerializeToString())
        super().take(request)


class Listener(threading.Thread):
    """Keeps the events of the workers, as any monitor on the broker gets them."""

    def __init__(self, broker_url):
        super().__init__(daemon=True)
        self.app = Celery("monitor", broker=broker_url)
        self.events = []

    def run(self):
        with self.app.connection() as connection:
            self.receiver = self.app.events.Receiver(connection, {"*": self.events.append})
            self.receiver.capture(limit=None, timeout=None, wakeup=False)

    def stop(self):
        self.receiver.should_stop = True
        self.join(10)
        self.app.close()


class Run:
    """A whole service with its own servers, its monitors, and somebody who sends it messages."""

    workers_wait = True  # they hold a message until its time

    def __init__(self, home, env, listener, collector):
        self.home, self.env = home, env
        self.listener, self.collector = listener, collector
        self.pages = []
        self.redis = redis.Redis.from_url(env["redis_url"])
        self.sender = self.new_sender("sender")

    def new_sender(self, name):
        return Celery(name, broker=self.env["broker_url"])

    def send(self, task, event, **options):
        given = {"queue": QUEUE, "ignore_result": True, "kwargs": {"event": event}}
        return self.sender.send_task(task, **{**given, **options})

    def ask(self, task, event):
        """Send a message whose result is asked for, and so in Redis."""
        return self.send(task, event, ignore_result=False).id

    def value(self, task_id):
        """Wait for the result that was asked for; None for a task that failed."""

        def stored():
            meta = json.loads(self.redis.get(f"celery-task-meta-{task_id}") or "{}")
            return meta if meta.get("status") in {"SUCCESS", "FAILURE"} else None

        found = until(stored, 60, "the task has a result")
        return found["result"] if found["status"] == "SUCCESS" else None

    def push(self, **parts):
        """Put a message into the queue that no Celery client would write."""
        task_id = str(uuid4())
        message = {
            "body": base64.b64encode(
                json.dumps([[], {"event": {"x": MARK}}, {}]).encode()
            ).decode(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"lang": "py", "task": "els.assign_content", "id": task_id},
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
        for name, part in parts.items():
            known = message.get(name.replace("_", "-"))
            message[name.replace("_", "-")] = known | part if isinstance(known, dict) else part
        self.redis.lpush(QUEUE, json.dumps(message))

    def push_junk(self, *junk):
        """Put bytes into the queue that are no message."""
        self.redis.lpush(QUEUE, *junk)

    def send_for_later(self, event):
        """Send a message that a worker takes and holds until its time; return its id."""
        return self.send("els.assign_content", event, countdown=15).id

    @contextmanager
    def events_refused(self):
        """Let the broker take no event."""
        waiting = self.redis.lrange(EVENTS, 0, -1)
        self.redis.set(EVENTS, "no list")
        yield
        self.redis.delete(EVENTS)
        if waiting:
            self.redis.rpush(EVENTS, *waiting)

    def in_work(self):
        """List the messages that wait or that a worker holds."""
        waiting = self.redis.lrange(QUEUE, 0, -1) + self.redis.hvals("unacked")
        return [each for each in waiting if b"els.relay" not in each and b"els.sweep" not in each]

    def rows(self, query, *values):
        with db.connect_once(self.env["database_url"]) as conn:
            return conn.execute(query, values).fetchall()

    def letters(self, code):
        found = "SELECT count(*) AS n FROM dead_letters WHERE code = %s"
        return self.rows(found, code)[0]["n"]

    def get(self, url, **headers):
        request = urllib.request.Request(url, headers=headers)
        passing = suppress(urllib.error.URLError, http.client.HTTPException)
        with passing, urllib.request.urlopen(request, timeout=15) as answer:
            return answer.read().decode()
        return ""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with whole_service(tmp_path_factory.mktemp("private") / "home", Run) as started:
        yield started


@contextmanager
def whole_service(home, kind, **environ):
    """Run `els run` with these settings, watched."""
    collector = Traced()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
    with home.with_suffix(".out").open("w") as out:
        process = subprocess.Popen(
            leashed([sys.executable, "-m", "ops", "run", "--home", str(home)], signal.SIGTERM),
            env={**clean, **ENVIRON, **environ, "ELS_TRACES_ENDPOINT": collector.url},
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: process.poll() is None and running(home), 60, "the service is up")
        env = vars(running(home))
        listener = Listener(env["broker_url"])
        listener.start()
        found = kind(home, env, listener, collector)
        found.process = process
        yield found
        listener.stop()
        found.sender.close()
        found.redis.close()
    finally:
        process.terminate()
        process.wait(40)
        collector.close()


@contextmanager
def rows_quoted(stack):
    """Let Postgres quote the row of each batch that is named after a fault."""
    names = " ".join(
        f"IF NEW.batch_id LIKE '{name}-%' THEN {fault}; END IF;" for name, fault in FAULTS.items()
    )
    with db.connect_once(stack.env["database_url"]) as conn:
        conn.execute(
            "CREATE FUNCTION tell_the_row() RETURNS trigger LANGUAGE plpgsql AS"  # type: ignore
            f" $$ BEGIN {names} RETURN NEW; END $$"
        )
        for table in ("essay_states", "batch_pending_content"):
            conn.execute(
                f"CREATE TRIGGER tell_the_row BEFORE UPDATE OR INSERT ON {table}"
                " FOR EACH ROW EXECUTE FUNCTION tell_the_row()"
            )
        conn.execute(
            "ALTER TABLE batch_pending_content ADD CONSTRAINT ck_named CHECK (batch_id"
            " NOT LIKE 'checked-%') NOT VALID"
        )
        yield
        conn.execute("ALTER TABLE batch_pending_content DROP CONSTRAINT ck_named")
        conn.execute("DROP FUNCTION tell_the_row CASCADE")


def named(batch, essays=1, **fields):
    """Register a batch that names people wherever a registration may."""
    people = dict.fromkeys(("user_id", "org_id", "class_id", "course_code"), NAME)
    about = {"metadata": {MARK: NAME}, "student_prompt_ref": {"title": NAME}}
    return make.registration(batch, essays, **{**people, **about, **fields})


def content(batch, text="text-1", **fields):
    return make.content(batch, text, **{"original_file_name": NAME, **fields})


def bad_events(batch):
    """Yield events that do not validate, each with a name in another place."""
    good = {
        "els.register_batch": named(batch),
        "els.assign_content": content(batch),
        "els.assign_contents": make.contents(batch, ["text-1"]),
        "els.reject_content": make.rejection(batch, original_file_name=NAME),
        "els.confirm_students": make.confirmation(batch, [make.association("essay-1", NAME)]),
        "els.cancel_batch": make.cancellation(batch, NAME),
    }
    for task, event in good.items():
        for name in event:
            yield task, {**event, name: f"{NAME}\0\n"}
            yield task, {**event, name: {MARK: [NAME]}}
        yield task, {**event, MARK: NAME}
        yield task, {**event, f"batch_id {MARK}": NAME}
        yield task, NAME
        yield task, [NAME]
        yield task, {**event, "deep": {"a": [float("nan"), NAME]}}
    yield "els.assign_contents", make.contents(batch, ["t"]) | {"contents": [{MARK: NAME}]}
    odd = make.association("essay-1", NAME) | {MARK: NAME}
    yield "els.confirm_students", make.confirmation(batch, [odd], class_id=NAME)


def test_nothing_that_a_run_writes_names_a_person(stack):
    batches_that_fail(stack)
    what_does_not_validate(stack)
    what_is_no_task(stack)
    what_is_out_of_date(stack)
    servers_that_refuse(stack)
    pages_that_are_asked(stack)
    everything_is_at_rest(stack)

    stack.listener.stop()
    found = list(names_in(written(stack)))
    log = (stack.home / "log" / "worker.log").read_text()
    stack.process.terminate()
    stack.process.wait(40)
    found += names_in(files(stack.home))
    found += names_in(("a span", body) for body in stack.collector.bodies)

    assert stack.collector.bodies
    assert not found, "\n".join(found)
    for cause in ("RaiseException", "23514", "57014", "ck_named", "DiskFull", "read-only"):
        assert cause in log, f"the log does not name the cause: {cause}"


def batches_that_fail(stack):
    """Have batches complete, conflict and fail, with the rows that Postgres quotes."""
    batch, regular = make.new_batch(), make.new_batch()
    first = named(batch, 2, class_id=None)
    steps = [
        ("els.assign_content", content(batch, "early")),
        ("els.register_batch", first),
        ("els.register_batch", {**first, "user_id": f"other {MARK}"}),
        ("els.register_batch", named(batch, 3, class_id=None)),
        ("els.reject_content", make.rejection(batch, original_file_name=NAME)),
        ("els.assign_content", content(batch, "excess")),
        ("els.register_batch", named(regular)),
        ("els.assign_content", content(regular)),
        ("els.confirm_students", make.confirmation(regular, [make.association("none", NAME)])),
        ("els.cancel_batch", make.cancellation(make.new_batch(), NAME)),
    ]
    outcomes = [stack.value(stack.ask(*step))["outcome"] for step in steps]
    assert outcomes.count("dead_letter") == 4, outcomes
    with rows_quoted(stack):
        sent = [stack.ask("els.assign_content", content("checked-1"))]
        sent += [stack.ask("els.assign_content", content(f"{name}-1")) for name in FAULTS]
        sent += [stack.ask("els.register_batch", named(f"{name}-2")) for name in FAULTS]
        kill_a_process_at_work(stack)
        for task_id in sent:
            stack.value(task_id)


def kill_a_process_at_work(stack):
    """Kill a process of the pool while it waits for Postgres."""
    sleeping = "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    until(lambda: stack.rows(sleeping)[0]["n"], what="a process executes the slow message")
    below = psutil.Process(stack.process.pid).children(recursive=True)
    pools, workers = [], []
    for process in below:
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            pools += [process] if "ForkPoolWorker" in process.name() else []
            workers += [process] if "worker" in process.cmdline() else []
    children = pools or [c for worker in workers for c in worker.children() if not c.children()]
    assert children
    for child in children:
        child.kill()


def what_does_not_validate(stack):
    sent = [stack.ask(task, event) for task, event in bad_events(make.new_batch())]
    values = [stack.value(task_id) for task_id in sent]
    assert {value["outcome"] for value in values} <= {"dead_letter", "confirmed", "cancelled"} | {
        "pending",
        "registered",
        "already_registered",
        "assigned",
        "accepted",
    }


def what_is_no_task(stack):
    """Send what Celery would log whole, and what calls tasks that are not for others."""
    event, before = content(make.new_batch()), stack.letters("MALFORMED_MESSAGE")
    stack.send(f"els.{MARK}", event)
    stack.send(f"els.{NAME}", event, task_id=f"id of {MARK}")
    stack.send("els.assign_content", event, serializer="pickle")
    stack.send("els.assign_content", event, compression="gzip")
    stack.push(body=encoded(f"{{no json {MARK}"))
    stack.push(body=f"no base64 {NAME}")
    stack.push(content_type=f"text/{MARK}")
    stack.push(content_encoding=MARK)
    stack.push(headers={"compression": MARK})
    stack.push(headers={"eta": f"{MARK}", "x-name": NAME})
    stack.push(headers={"expires": f"{NAME}"})
    stack.push(headers={"task": {MARK: 1}})
    stack.push(headers={"timelimit": [NAME, MARK], "tracestate": f"a={MARK}", "traceparent": MARK})
    stack.push(headers={"argsrepr": NAME, "kwargsrepr": NAME, "root_id": NAME, "origin": NAME})
    stack.push(properties={"delivery_tag": MARK, "reply_to": MARK, "correlation_id": NAME})
    stack.push_junk(f"no message {MARK}", json.dumps([NAME]), b"\xff" + MARK.encode())
    for task in ("els.seal_slots", "els.seal_books", "els.announce_ready"):
        stack.send(task, None, kwargs={"batches": [NAME]})
        stack.send(task, None, kwargs={MARK: NAME}, args=[NAME])
    stack.send("els.sweep", None, kwargs={MARK: NAME})
    stack.send("els.seal_failed", None, args=[NAME, NAME, NAME, [NAME]], kwargs={})
    stack.send("celery.accumulate", None, args=[NAME], kwargs={})
    until(lambda: stack.letters("UNKNOWN_TASK") >= 2, what="unknown tasks are kept")
    until(lambda: stack.letters("MALFORMED_MESSAGE") >= before + 6, what="malformed ones are kept")


def what_is_out_of_date(stack):
    event = content(make.new_batch())
    past = datetime.now(UTC) - timedelta(hours=1)
    stack.send("els.assign_content", event, expires=past)
    revoked = str(uuid4())
    stack.sender.control.revoke(revoked)
    stack.send("els.assign_content", content(make.new_batch()), task_id=revoked, countdown=2)
    until(lambda: stack.letters("EXPIRED") and stack.letters("REVOKED"), what="both are kept")


def servers_that_refuse(stack):
    """Send while Postgres is read-only, and while nobody takes an event."""
    batch = make.new_batch()
    with refusals.read_only(stack.env["database_url"]):
        sent = stack.ask("els.register_batch", named(batch, class_id=None))
        log = stack.home / "log" / "worker.log"
        until(lambda: "paused" in log.read_text(), what="the worker pauses")
    assert stack.value(sent)["outcome"] == "registered"
    failed = "SELECT FROM event_outbox WHERE batch_id = %s AND last_error IS NOT NULL"
    with stack.events_refused():
        stack.value(stack.ask("els.assign_content", content(batch)))
        until(lambda: stack.rows(failed, batch), what="an event is not taken")


def pages_that_are_asked(stack):
    """Ask the pages for names, and keep what they show to somebody who asks for none."""
    ops, flower = stack.env["ops_url"], stack.env["flower_url"]
    name = urllib.parse.quote(NAME)
    held = stack.send_for_later(content(make.new_batch()))
    told = stack.new_sender("teller")
    told.conf.task_send_sent_event = True
    told.send_task(f"els.{MARK}", kwargs={"x": NAME}, queue=QUEUE, ignore_result=True)
    told.close()
    for path in (f"/{name}", f"/batches/{name}", f"/?q={name}", f"/?search={name}&page={MARK}"):
        stack.get(ops + path)
        stack.get(flower + path, **KNOWN)
    stack.get(f"{flower}/task/{name}", **KNOWN)
    stack.get(f"{flower}/api/task/info/{name}", **KNOWN)
    ask_badly(ops)
    workers = stack.sender.control.inspect(timeout=1)
    waiting = until(workers.scheduled, what="the worker says what waits for its time")
    assert held in str(waiting) or not stack.workers_wait
    answers = [waiting, workers.active(), workers.reserved(), workers.query_task(held)]
    [worker] = waiting
    tasks = json.loads(stack.get(f"{flower}/api/tasks?limit=1000", **KNOWN))
    assert tasks
    pages = [
        "/",
        "/tasks",
        "/workers?json=1",
        "/broker",
        "/api/tasks?limit=1000",
        "/api/task/types",
    ]
    pages += [f"/worker/{worker}", "/api/workers?refresh=1"]
    pages += [f"/task/{task}" for task in list(tasks)[:40]]
    stack.pages = [(f"flower {page}", stack.get(flower + page, **KNOWN)) for page in pages]
    stack.pages += [("an answer of the worker", str(answer)) for answer in answers]
    stack.pages += [(page, stack.get(ops + page)) for page in ("/metrics", "/readyz", "/healthz")]


def ask_badly(url):
    at = urllib.parse.urlsplit(url)
    for line in (f"GET /{MARK} HTTP/9", MARK, f"PUT /?{MARK} HTTP/1.1"):
        connection = http.client.HTTPConnection(at.hostname, at.port, timeout=5)
        connection.connect()
        connection.sock.sendall(f"{line}\r\n\r\n".encode())
        with suppress(OSError):
            connection.sock.recv(1000)
        connection.close()


def everything_is_at_rest(stack):
    """Wait until no message waits or is in work, except those of events."""
    until(lambda: not stack.in_work(), 40, "no message is in work")


def written(stack):
    """Yield all that a run wrote, except to files: events, pages, and what Redis holds."""
    for event in stack.listener.events:
        if event["type"] != "task-sent":  # their sender's
            yield f"event {event['type']}", repr(event)
    yield from stack.pages
    for key in stack.redis.scan_iter(count=1000):
        if key == EVENTS.encode():
            continue  # events that wait for a receiver
        yield f"key {key!r}", repr((key, value_of(stack.redis, key)))


def value_of(client, key):
    read = {
        b"string": client.get,
        b"list": lambda k: client.lrange(k, 0, -1),
        b"set": client.smembers,
        b"hash": client.hgetall,
        b"zset": lambda k: client.zrange(k, 0, -1, withscores=True),
    }
    kind = client.type(key)
    return read[kind](key) if kind in read else kind


def files(home):
    """Yield the logs of the processes and of the servers, and what `els run` printed."""
    logs = sorted((home / "log").iterdir())
    assert {path.stem for path in logs} >= {"worker", "beat", "ops", "flower", "postgres", "valkey"}
    for path in (*logs, home.with_suffix(".out")):
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            yield f"{path.name}:{number}", line


def names_in(written):
    """Name the places that hold the marker: as it is, or as it looks in hex or in base64."""
    for where, text in written:
        raw = text if isinstance(text, bytes) else text.encode(errors="replace")
        for found in SEARCHED.finditer(raw):
            yield f"{where}: {raw[max(0, found.start() - 300) : found.end() + 100]!r}"


def forms():
    mark = MARK.encode()
    yield mark
    yield mark.hex().encode()
    for offset in range(3):
        yield base64.b64encode(b"x" * offset + mark)[offset and 4 : -4]


SEARCHED = re.compile(b"|".join(map(re.escape, forms())))
