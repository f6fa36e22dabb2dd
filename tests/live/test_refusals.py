"""Servers that are up and refuse: whatever was sent meanwhile is carried out afterwards.

No message ends as a dead letter, and no worker process ends, because a server refused.
"""

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import redis
from kombu.exceptions import OperationalError
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from migrations import upgrade
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from ops.stack.proxy import Proxy
from ops.torture import refusals
from tests import factories as make
from tests.core.babbling import REPLIES_OF_NOBODY, Babbling
from tests.live.conftest import Workers, until

CONTENTS = 48  # of a batch: some are carried out together, some are not
REFUSED_S = 4  # how long a refusal lasts: long enough for five tries that do not wait
MENDED_S = 30  # how soon after it everything must be carried out
PREFORK = "worker --pool prefork --concurrency 2"
ONE_PROCESS = "worker --pool prefork --concurrency 1"  # no other one takes what it holds
SOLO = "worker --pool solo"
SQLSTATES = ["53100", "53200", "58030", "57014", "42501", "XX123", "ZZ001"]
SQLSTATES += ["23514", "2200H"]  # a constraint, and a sequence that has ended, refuse all alike
A_REDIS = pytest.mark.redis_only("the broker that refuses is a Redis")
REDIS = {
    "a replica": refusals.replica,
    "out of memory": refusals.out_of_memory,
    "without its replicas": refusals.without_replicas,
    "failing to save itself": refusals.snapshots_failing,
}


class Service:
    """Workers on a database and on Redis servers of their own, and what became of messages."""

    def __init__(self, folder, database_url, slots, broker):
        self.folder = folder
        self.url = database_url
        self.slots, self.broker = slots, broker
        self.sent = []
        self.workers = self._staff()

    def _staff(self):
        return Workers(
            self.folder,
            ELS_DATABASE_URL=self.url,
            ELS_REDIS_URL=self.slots.url,
            ELS_BROKER_URL=self.broker.url,
        )

    def start(self, command, **settings):
        self.workers.start(command=command, **settings)
        self.workers.ready(len(self.workers.processes))
        return self

    def starts_over(self, command):
        """End the workers of a test that left them unwell; start others."""
        self.workers.stop()
        self.workers = self._staff()
        self.start(command)

    def restart(self, command):
        """Stop a worker as a deployment does, and start another one on its queue."""
        self.end()
        self.start(command)

    def end(self):
        """Stop a worker, which gives its messages back."""
        process = self.workers.processes.pop()
        process.terminate()
        process.wait(20)

    def is_well(self):
        batch = make.new_batch()
        self.send("els.register_batch", make.registration(batch, 1))
        try:
            until(lambda: self.registered(batch), 5)
        except AssertionError:
            return False
        return all(process.poll() is None for process in self.workers.processes)

    def rows(self, query, *values):
        with refusals.owner(self.url) as conn:
            return conn.execute(query, values).fetchall()

    def registered(self, batch):
        return self.rows("SELECT FROM batch_essay_trackers WHERE batch_id = %s", batch)

    def send(self, task, event, **options):
        """Send until the broker takes it, as every upstream service must."""
        sent = []

        def taken():
            with suppress(redis.RedisError, OperationalError, OSError):
                sent.append(self.workers.send(task, event, **options))
            return sent

        until(taken, MENDED_S, "the broker takes messages")
        self.sent.append(event["event_id"])

    def a_batch(self, slots):
        """Register a batch, now."""
        batch = make.new_batch()
        self.send("els.register_batch", make.registration(batch, slots))
        until(lambda: self.registered(batch), what=f"{batch} is registered")
        self.sent.clear()
        return batch

    def send_contents(self, batch, first=0, last=CONTENTS):
        for n in range(first, last):
            self.send("els.assign_content", make.content(batch, f"text-{n}"))

    def send_a_whole_batch(self):
        """Register a batch of four, and send its slots a bulk upload and a rejected file."""
        batch = make.new_batch()
        self.send("els.register_batch", make.registration(batch, 4))
        self.send("els.assign_contents", make.contents(batch, ["text-1", "text-2", "text-3"]))
        self.send("els.reject_content", make.rejection(batch, "file-4"))
        return batch

    def open_slots(self, *batches):
        return [
            self.rows(
                "SELECT essay_id FROM essay_states"
                " WHERE batch_id = %s AND current_status = 'awaiting_content'",
                batch,
            )
            for batch in batches
        ]

    def letters(self):
        """Read why messages of this test were given up."""
        return [
            (row["code"], row["sqlstate"], row["message"])
            for row in self.rows(
                "SELECT code, sqlstate, message FROM dead_letters"
                " WHERE body ->> 'event_id' = ANY(%s)",
                self.sent,
            )
        ]

    def unanswered(self):
        """List the events of this test that have led to nothing."""
        found = "SELECT key::text FROM idempotency_keys WHERE key::text = ANY(%s)"
        return set(self.sent) - {row["key"] for row in self.rows(found, self.sent)}

    def assert_carried_out(self, *batches, within_s=MENDED_S):
        """Wait until each message sent has its outcome, and none was given up."""
        deadline = time.monotonic() + within_s
        while self.unanswered() and not self.letters() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.letters() == [], self.last_words()
        lost = len(self.unanswered())
        assert lost == 0, f"{lost} of {len(self.sent)} have no outcome; {self.last_words()}"
        assert self.open_slots(*batches) == [[] for _ in batches]
        ended = [process for process in self.workers.processes if process.poll() is not None]
        assert ended == [], self.last_words()

    def count_of(self, line):
        """Count the lines of this event that the workers have logged."""
        return sum(log.read_text(errors="replace").count(line) for log in self.logs())

    def logs(self):
        return [self.folder / f"{n}.log" for n in range(len(self.workers.processes))]

    def last_words(self):
        """Show the end of what each worker wrote."""
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in self.logs())


@contextmanager
def a_database():
    """A database of its own, without a schema."""
    shared = os.environ["ELS_DATABASE_URL"]
    name = f"refusing_{uuid4().hex[:12]}"
    with psycopg.connect(shared, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield shared.rpartition("/")[0] + f"/{name}"
    finally:
        with psycopg.connect(shared, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def brokered(tmp_path_factory, on_broker):
    """The servers of this module beside Postgres: a Redis for slots, and a broker."""
    home = tmp_path_factory.mktemp("redis")
    with ExitStack() as undo:
        servers = []
        for name in ("slots",) if on_broker else ("slots", "broker"):
            server = Valkey(home / name / "valkey", free_port(), "test-password")
            undo.callback(server.stop)
            server.start()
            servers.append(server)
        rabbitmq = [SimpleNamespace(url=on_broker["ELS_BROKER_URL"])] if on_broker else []
        yield servers + rabbitmq


@contextmanager
def _service(folder, brokered, *, schema=True):
    with a_database() as url:
        if schema:
            upgrade(url)
        service = Service(folder, url, *brokered)
        try:
            yield service
        finally:
            service.workers.stop()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory, brokered):
    """The workers that the tests of this module share for as long as they stay well."""
    with _service(tmp_path_factory.mktemp("workers"), brokered) as service:
        yield service.start(PREFORK)


@pytest.fixture
def service(lasting):
    """Two processes of a worker, well at the start of each test."""
    if not lasting.is_well():
        lasting.starts_over(PREFORK)
    lasting.sent.clear()
    return lasting


@pytest.fixture
def others(tmp_path, brokered):
    """A service of this test alone, whose workers it starts itself."""
    with _service(tmp_path, brokered) as service:
        yield service


def _admin(server):
    return redis.Redis.from_url(
        server.url, decode_responses=True, socket_timeout=5, retry=Retry(NoBackoff(), 0)
    )


# --- Postgres ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sessions_stay", [False, True], ids=["ended", "left"])
def test_what_is_sent_while_postgres_is_read_only_is_carried_out(service, sessions_stay):
    batch = service.a_batch(CONTENTS)

    with refusals.read_only(service.url, sessions_stay=sessions_stay):
        service.send_contents(batch)
        other = service.send_a_whole_batch()
        time.sleep(3 * REFUSED_S)

    service.assert_carried_out(batch, other)


@pytest.mark.outage
def test_one_process_by_itself_outlives_a_postgres_that_is_read_only(others):
    others.start(SOLO)
    batch = others.a_batch(CONTENTS)

    with refusals.read_only(others.url):
        others.send_contents(batch)
        time.sleep(REFUSED_S)

    others.assert_carried_out(batch)


@pytest.mark.outage
@pytest.mark.parametrize("sqlstate", SQLSTATES)
def test_what_is_sent_while_every_write_fails_is_carried_out(service, sqlstate):
    batch = service.a_batch(CONTENTS)

    with refusals.raising(service.url, sqlstate):
        service.send_contents(batch)
        other = service.send_a_whole_batch()
        time.sleep(REFUSED_S)

    service.assert_carried_out(batch, other)


@pytest.mark.outage
def test_a_table_locked_for_longer_than_anybody_waits_gives_no_dead_letter(others):
    others.url += "?options=-c%20lock_timeout%3D500ms%20-c%20statement_timeout%3D1s"
    others.starts_over(PREFORK)
    batch = others.a_batch(CONTENTS)

    with refusals.locked(others.url):
        others.send_contents(batch)
        time.sleep(2 * REFUSED_S)

    others.assert_carried_out(batch)


@pytest.mark.outage
def test_statements_that_somebody_cancels_are_tried_again(service):
    batch = service.a_batch(CONTENTS)

    with refusals.locked(service.url):
        service.send_contents(batch)
        until(lambda: refusals.cancel_statements(service.url), what="a statement is cancelled")
        deadline = time.monotonic() + REFUSED_S
        while time.monotonic() < deadline:
            refusals.cancel_statements(service.url)
            time.sleep(0.2)

    service.assert_carried_out(batch)


@pytest.mark.outage
def test_sessions_that_somebody_ends_again_and_again_cost_nothing(service):
    """For longer than a message is tried that no outage explains."""
    batch = service.a_batch(CONTENTS)

    for n in range(CONTENTS):
        service.send_contents(batch, n, n + 1)
        for _ in range(3):
            refusals.end_sessions(service.url)
            time.sleep(0.08)

    service.assert_carried_out(batch)


@pytest.mark.outage
def test_what_is_refused_at_the_commit_is_carried_out(service):
    batch = service.a_batch(CONTENTS)

    with refused_at_commit(service.url):
        service.send_contents(batch)
        time.sleep(3 * REFUSED_S)

    service.assert_carried_out(batch)


@contextmanager
def refused_at_commit(url):
    """Raise 53100 at the end of each transaction that has written a key."""
    with refusals.owner(url) as conn:
        conn.execute(refusals.REFUSE)
        conn.execute(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON idempotency_keys DEFERRABLE"
            " INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION torture_refuses('53100')"
        )
    try:
        yield
    finally:
        with refusals.owner(url) as conn:
            conn.execute("DROP TRIGGER late ON idempotency_keys")


@pytest.mark.outage
def test_a_batch_whose_row_somebody_keeps_locked_delays_no_other_for_long(service):
    locked, other = service.a_batch(CONTENTS), service.a_batch(1)

    with refusals.owner(service.url) as conn, conn.transaction():
        row = "SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE"
        conn.execute(row, [locked])
        service.send_contents(locked)
        service.send("els.assign_content", make.content(other))
        until(lambda: service.open_slots(other) == [[]], MENDED_S, "the other one is placed")

    service.assert_carried_out(locked)


@pytest.mark.outage
def test_sessions_that_end_when_they_are_idle_cost_nothing(service):
    batch = service.a_batch(CONTENTS)

    with refusals.idle_sessions_ended(service.url):
        for n in range(0, CONTENTS, 8):
            service.send_contents(batch, n, n + 8)
            time.sleep(0.8)

    service.assert_carried_out(batch)


@pytest.mark.outage
def test_a_postgres_that_stands_still_for_ten_seconds_costs_nothing(others):
    others.start(PREFORK)
    batch = others.a_batch(CONTENTS)
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    sessions = [row["pid"] for row in others.rows(query)]

    with ExitStack() as stopped:
        others.send_contents(batch, 0, 24)
        for pid in sessions:
            stopped.enter_context(refusals.frozen(pid))
        others.send_contents(batch, 24)
        time.sleep(10)

    others.assert_carried_out(batch)


def test_a_worker_waits_for_the_schema_that_it_needs(tmp_path, brokered):
    with _service(tmp_path, brokered, schema=False) as service:
        service.workers.start(command=PREFORK)
        batch = make.new_batch()
        service.send("els.register_batch", make.registration(batch, CONTENTS))
        service.send_contents(batch)
        time.sleep(2 * REFUSED_S)  # about half of it is the start of the worker

        upgrade(service.url)

        service.assert_carried_out(batch)


@pytest.mark.outage
@pytest.mark.parametrize(
    "right",
    [
        "INSERT ON idempotency_keys",
        "INSERT ON ALL TABLES IN SCHEMA public",
        "SELECT ON idempotency_keys",  # which contents do without, and so does the probe
    ],
)
def test_a_worker_waits_for_a_right_that_its_role_lacks(others, right):
    role = f"worker_{uuid4().hex[:8]}"
    with refusals.owner(others.url) as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'test-password'")
        conn.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        conn.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    try:
        others.start(SOLO, ELS_DATABASE_URL=others.url.replace("//els:", f"//{role}:"))
        batch = others.a_batch(CONTENTS)
        with refusals.owner(others.url) as conn:
            conn.execute(f"REVOKE {right} FROM {role}")

        others.send_contents(batch)
        others.send_a_whole_batch()
        time.sleep(3 * REFUSED_S)
        with refusals.owner(others.url) as conn:
            conn.execute(f"GRANT {right} TO {role}")

        others.assert_carried_out(batch)
    finally:
        others.workers.stop()
        with refusals.owner(others.url) as conn:
            conn.execute(f"DROP OWNED BY {role}")
            conn.execute(f"DROP ROLE {role}")


def test_one_odd_message_becomes_a_dead_letter_while_the_others_go_on(service):
    odd, batch = service.a_batch(1), service.a_batch(CONTENTS)

    with refusals.raising(service.url, "58030", ["essay_states"], odd):
        for n in range(CONTENTS):
            if n == 5:
                service.send("els.assign_content", make.content(odd))
            service.send("els.assign_content", make.content(batch, f"text-{n}"))
        until(service.letters, 2 * MENDED_S, "the odd message is given up")
        until(lambda: service.open_slots(batch) == [[]], what="the others are placed")

    [(_, sqlstate, message)] = service.letters()
    assert sqlstate == "58030", message
    assert len(service.unanswered()) == 1


@pytest.mark.parametrize("sqlstate", ["53100", "40001"])
def test_a_message_whose_dead_letter_cannot_be_written_stays_with_the_broker(service, sqlstate):
    batch = service.a_batch(1)
    bad = make.content(batch, file_size_bytes=-1)
    before = service.count_of("message_goes_back")

    with refusals.raising(service.url, sqlstate, ["dead_letters"]):
        service.send("els.assign_content", bad)
        service.send("els.assign_content", {**make.content(batch), "surprise": True})
        time.sleep(REFUSED_S)
    until(lambda: len(service.letters()) == 2, MENDED_S, "both are kept as dead letters")

    assert {code for code, *_ in service.letters()} == {"VALIDATION_ERROR"}
    assert service.count_of("message_goes_back") - before <= 2, "no storm of deliveries"
    service.sent.clear()
    service.send_contents(batch, 0, 1)
    service.assert_carried_out(batch)


# --- Redis -------------------------------------------------------------------------------------


@contextmanager
def _refusing(fault, servers):
    with ExitStack() as undo:
        for server in servers:
            client = undo.enter_context(_admin(server))
            undo.enter_context(
                refusals.frozen(server.process.pid) if fault == "frozen" else REDIS[fault](client)
            )
        yield


@pytest.mark.outage
@pytest.mark.parametrize(
    "where", ["slots", pytest.param("broker", marks=A_REDIS), pytest.param("both", marks=A_REDIS)]
)
@pytest.mark.parametrize("fault", [*REDIS, "frozen"])
def test_what_is_sent_beside_a_redis_that_refuses_is_carried_out(service, fault, where):
    batch = service.a_batch(CONTENTS)
    both = [service.slots, service.broker]
    servers = {"slots": both[:1], "broker": both[1:], "both": both}[where]
    meanwhile = CONTENTS if where == "slots" else 24  # a broker that refuses takes none

    service.send_contents(batch, 0, 24)
    with _refusing(fault, servers):
        service.send_contents(batch, 24, meanwhile)
        time.sleep(REFUSED_S * (2 if fault == "frozen" else 1))  # it outlasts time limits
    service.send_contents(batch, meanwhile)

    service.assert_carried_out(batch)


@pytest.mark.outage
def test_a_result_that_redis_refuses_is_waited_for(service):
    batch = service.a_batch(1)
    before = service.count_of("message_goes_back")

    with _refusing("a replica", [service.slots]):
        service.send("els.amend_batch", make.amendment(batch, deadline_s=7200))
        until(lambda: not service.unanswered(), what="Postgres holds the outcome")
        time.sleep(REFUSED_S)
    service.send("els.amend_batch", make.amendment(batch, deadline_s=3600))

    service.assert_carried_out()
    assert service.count_of("message_goes_back") == before


@pytest.mark.outage
@pytest.mark.parametrize("pool", [PREFORK, SOLO, "worker --pool threads --concurrency 2"])
def test_a_worker_that_waits_stops_when_it_is_told_and_gives_its_messages_back(others, pool):
    others.start(pool)
    batch = others.a_batch(CONTENTS)

    with refusals.read_only(others.url):
        others.send_contents(batch)
        time.sleep(REFUSED_S)
        others.end()
    others.start(pool)

    others.assert_carried_out(batch)


# --- connections that die in silence ------------------------------------------------------------


@contextmanager
def through(proxy, service, server, command):
    """Start a worker that reaches one of its servers through a proxy."""
    urls = {"DATABASE": service.url, "REDIS": service.slots.url, "BROKER": service.broker.url}
    url = urlsplit(urls[server])
    proxy.target_port = url.port
    proxy.start()
    try:
        at = url._replace(netloc=url.netloc.replace(f":{url.port}", f":{proxy.port}"))
        service.start(command, **{f"ELS_{server}_URL": at.geturl()})
        yield
    finally:
        service.workers.stop()
        proxy.stop()


@pytest.mark.outage
@pytest.mark.parametrize("server", ["DATABASE", "REDIS", "BROKER"])
def test_connections_that_are_swallowed_are_noticed_within_thirty_seconds(others, server):
    proxy = Proxy(0, Random(1))
    with through(proxy, others, server, ONE_PROCESS):
        batch = others.a_batch(CONTENTS)

        proxy.swallow()
        others.send_contents(batch, 0, 24)
        time.sleep(REFUSED_S)
        proxy.pass_again()
        others.send_contents(batch, 24)

        others.assert_carried_out(batch, within_s=MENDED_S)


# --- replies that make no sense -----------------------------------------------------------------


@pytest.mark.outage
@pytest.mark.parametrize("pool", [ONE_PROCESS, SOLO])
@pytest.mark.parametrize("server", ["REDIS", pytest.param("BROKER", marks=A_REDIS)])
@pytest.mark.parametrize("reply", REPLIES_OF_NOBODY.values(), ids=REPLIES_OF_NOBODY)
def test_a_redis_whose_replies_make_no_sense_costs_no_message(others, server, reply, pool):
    proxy = Babbling(0)
    with through(proxy, others, server, pool):
        batch = others.a_batch(CONTENTS)

        others.send_contents(batch, 0, 24)
        proxy.instead = reply
        others.send_contents(batch, 24)
        time.sleep(REFUSED_S)
        proxy.instead = None

        others.assert_carried_out(batch)


# --- waiting is not killing --------------------------------------------------------------------


@pytest.mark.outage
def test_a_content_that_waits_for_its_time_is_placed_once_and_poisons_nothing(others):
    """Forty seconds, as that is longer than five visibility timeouts of five seconds."""
    others.start(SOLO)
    batch = others.a_batch(2)
    restarted = Service(others.folder / "restarted", others.url, others.slots, others.broker)
    restarted.folder.mkdir()
    restarted.start(SOLO)
    try:
        others.send("els.assign_content", make.content(batch, "text-1"), countdown=40)
        restarted.send("els.assign_content", make.content(batch, "text-2"), countdown=40)
        time.sleep(12)
        assert len(others.open_slots(batch)[0]) == 2
        restarted.restart(SOLO)

        for each in (others, restarted):
            each.assert_carried_out(within_s=40)
        time.sleep(6)  # a repeat would come a visibility timeout later
        assert others.letters() == restarted.letters() == []
        assert others.open_slots(batch) == [[]]
    finally:
        restarted.workers.stop()


@pytest.mark.redis_only("RabbitMQ drops it, see tests/rabbitmq/test_dropped.py")
def test_a_message_that_expired_is_kept_as_a_dead_letter(service):
    batch = service.a_batch(1)

    late = datetime.now(UTC) - timedelta(minutes=1)
    service.send("els.assign_content", make.content(batch), expires=late)

    until(service.letters, 15, "the message is kept")
    assert [code for code, *_ in service.letters()] == ["EXPIRED"]


def test_a_message_that_was_revoked_is_kept_as_a_dead_letter(service):
    batch = service.a_batch(1)
    task_id = str(uuid4())
    names = [f"{service.workers.queue}-0@test"]
    reply = service.workers.upstream.control.revoke(
        task_id, destination=names, reply=True, timeout=10, limit=1
    )
    assert reply, "the worker does not answer"

    service.send("els.assign_content", make.content(batch), task_id=task_id)

    until(service.letters, 15, "the message is kept")
    assert [code for code, *_ in service.letters()] == ["REVOKED"]
