"""Workers that are gone, hang, wait, or serve something else."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fcntl import F_SETPIPE_SZ, fcntl
from select import select
from urllib.parse import quote, urlsplit

import psutil
import psycopg

from core.signs.heartbeat import STARTS
from core.signs.pauses import server_time
from migrations import upgrade
from ops.explain.consumers import waiting_clients
from ops.signs import STALLED_AFTER
from tests import factories as make
from tests.explain.cause import cause
from tests.explain.place import WAIT_S, copied
from tests.live.conftest import until

WAITING = "waiting_for_contents"
GONE = ["No worker is running", "sweep has not run"]
ONE_PROCESS = "worker --pool prefork --concurrency 1"


@cause("waiting_for_contents", never=[*GONE, "No beat"])
def everything_runs(running):
    yield running.register()


@cause("ready", nothing=True, says=["Nothing is missing"])
def it_is_ready(running):
    batch = running.register(1)
    running.content(batch)
    query = "SELECT bool_and(published_at IS NOT NULL) AS all FROM event_outbox WHERE batch_id = %s"
    until(lambda: running.conn.execute(query, [batch]).fetchone()["all"], WAIT_S, "it is ready")
    yield batch


@cause("no_worker", says=["No worker is running"], step="els worker")
def none_was_ever_started(place):
    yield place.insert_batch()


@cause("no_worker", says=["was stopped at"], never=["gives a sign"], step="els worker")
def it_was_stopped(place):
    place.end(place.worker(), signal.SIGTERM)
    yield place.insert_batch()


@cause("no_worker", says=["was stopped at", "1 message waits in the queue"])
def it_was_stopped_and_one_message_waits(place):
    place.end(place.worker(), signal.SIGTERM)
    batch = place.insert_batch()
    place.send_content(batch)
    yield batch


@cause(
    "no_worker",
    says=["has given none since", "3 messages wait in the queue", ", the oldest sent at 20"],
)
def it_was_killed_and_messages_wait(place):
    place.end(place.worker())
    batch = place.insert_batch(3)
    for number in range(3):
        place.send_content(batch, f"text-{number}")
    place.until_silent()
    yield batch


@cause(
    "no_worker",
    says=["gives a sign of life", "has given none since", "is stopped, by a signal or a debugger"],
    never=[*GONE[:1], "ELS_REDIS_URL"],
    step="kill -CONT",
)
def its_only_process_is_stopped_by_a_debugger(place):
    with place.frozen(place.worker()):
        batch = place.insert_batch()
        place.send_content(batch)
        place.until_silent()
        yield batch


@cause(WAITING, never=["has started"])
def it_was_killed_again_and_again_and_runs_now(place):
    place.run()
    name, now = f"{place.queue}-0@test", server_time(place.valkey)
    place.valkey.delete(STARTS)
    for ago_s in (300, 200, 100):
        place.valkey.zadd(STARTS, {f"{now - ago_s} {name}": now - ago_s})
    yield place.register()


@cause("no_worker", says=["message waits in the queue", "1 message names the batch in the queue"])
def the_registration_waits_for_a_worker(place):
    batch = make.new_batch()
    place.send("els.register_batch", make.registration(batch, 2))
    yield batch


# --- elsewhere -----------------------------------------------------------------------------------


@cause("worker_other_queue", says=["takes those of", "other-school"], never=GONE[:1])
def it_serves_another_queue(place):
    place.start_worker(ELS_QUEUE="other-school")
    until(lambda: place.signs().workers, WAIT_S, "it lives")
    yield place.insert_batch()


@cause("worker_other_queue", says=["1 message waits in the queue", "other-school"])
def it_serves_another_queue_and_a_message_waits(place):
    place.start_worker(ELS_QUEUE="other-school")
    until(lambda: place.signs().workers, WAIT_S, "it lives")
    batch = place.insert_batch()
    place.send_content(batch)
    yield batch


@cause("worker_other_queue", says=[".internal alone"], never=GONE[:1])
def it_serves_the_steps_of_completion_alone(place):
    place.worker("-Q", f"{place.queue}.internal")
    yield place.insert_batch()


@cause(
    "worker_other_queue",
    says=[".internal", "what seals batches, sweeps and relays events goes through it"],
    never=GONE[:1],
    step="els worker",
)
def it_serves_the_queue_of_senders_alone(place):
    place.worker("-Q", place.queue)
    yield place.insert_batch()


@cause("worker_other_queue", says=["the queue mine"], never=GONE[:1], step="ELS_QUEUE=mine")
def whoever_asks_means_another_queue(running):
    yield running.register(), {"ELS_QUEUE": "mine"}


@cause("worker_other_queue", says=["remote control has cancelled"], never=GONE[:1], step="kill")
def remote_control_has_cancelled_its_queue(place):
    place.worker()
    place.workers.ready(1)
    name = f"{place.queue}-0@test"
    place.workers.upstream.control.cancel_consumer(place.queue, destination=[name], reply=True)
    until(lambda: place.queue not in place.signs().signs[name].queues, WAIT_S, "it is cancelled")
    place.start_beat()
    yield place.insert_batch()


@cause(
    "foreign_consumer",
    says=["Another program takes messages of the queue els-", "(celery@legacy-"],
    never=GONE,
    step="cancel_consumer els-",
)
def another_program_takes_its_messages(place):
    place.run()
    batch = place.register()
    with place.another_program():
        yield batch


@cause("worker_limited", says=["(els.assign_content: 1/h)"], never=GONE, step="kill -KILL")
def remote_control_limits_its_tasks(place):
    place.run()
    batch = place.register(3)
    place.workers.ready(1)
    place.workers.upstream.control.rate_limit("els.assign_content", "1/h", reply=True)
    for number in range(3):
        place.send_content(batch, f"text-{number}")
    until(lambda: any(s.limited for s in place.signs().signs.values()), WAIT_S, "it says so")
    yield batch


@contextmanager
def giving_no_sign(place, **settings):
    """Run a worker whose Redis is another database; give a batch of which it assigned a content."""
    other = urlsplit(place.valkey_server.url)._replace(path="/4").geturl()
    place.start_worker(ELS_REDIS_URL=other, **{"ELS_REMOTE_CONTROL": "", **settings})
    batch = place.insert_batch()
    place.send_content(batch)
    query = "SELECT key FROM idempotency_keys WHERE batch_id = %s AND task = %s"
    done = [batch, "els.assign_content"]
    until(lambda: place.conn.execute(query, done).fetchone(), WAIT_S, "the content is assigned")
    if not place.workers.on_rabbitmq:
        until(lambda: waiting_clients(place.valkey), WAIT_S, "it has waited for a while")
    yield batch


named_by_its_consumer = cause(
    "no_worker",
    among=2,
    says=["gives a sign of life", "1 consumer waits for messages of", "another ELS_REDIS"],
    step="ELS_REDIS_URL",
)


@cause("no_worker", says=["another ELS_REDIS_URL"], step="ELS_REDIS_URL")
def it_uses_another_redis_than_beat(place):
    place.start_beat()
    with giving_no_sign(place) as batch:
        yield batch


@named_by_its_consumer
def it_uses_another_redis(place):
    with giving_no_sign(place) as batch:
        yield batch


@cause("worker_other_redis", says=["@test)", "its ELS_REDIS_URL is another one"], never=GONE[:1])
def it_uses_another_redis_and_listens_to_remote_control(place):
    with giving_no_sign(place, ELS_REMOTE_CONTROL="true") as batch:
        yield batch


@cause("worker_other_broker", says=["redis/0", "redis/1"], never=GONE[:1])
def it_takes_messages_of_another_database_of_redis(place):
    other = urlsplit(place.valkey_server.url)._replace(path="/1").geturl()
    place.start_worker(ELS_BROKER_URL=other)
    until(lambda: place.signs().workers, WAIT_S, "it lives")
    yield place.insert_batch()


@cause("worker_other_database", says=["works on"], never=GONE[:1])
def it_works_on_another_database(place):
    with copied(place.database_url) as other:
        place.worker(ELS_DATABASE_URL=other)
        batch = place.insert_batch()
        yield batch
        place.workers.stop()


@cause("worker_other_database", says=["works on"], never=GONE[:1])
def it_works_in_another_schema(place):
    place.conn.execute("CREATE SCHEMA other")
    options = quote("-c search_path=other", safe="")
    url = f"{place.database_url}?options={options}"
    upgrade(url)
    place.worker(ELS_DATABASE_URL=url)
    yield place.insert_batch()


@cause("worker_other_database", among=2, never=GONE[:1])
def whoever_asks_reads_another_database(place):
    place.run()
    batch = place.register()
    place.conn.close()
    place.workers.stop()
    with copied(place.database_url) as other:
        place.worker()
        yield batch, {"ELS_DATABASE_URL": other}
        place.workers.stop()


@contextmanager
def dead_with_its_content(place, **settings):
    """Kill a worker that holds a content of the batch; the row that it waited for stays locked."""
    worker = place.worker(command=ONE_PROCESS, **settings)
    batch = place.register()
    with psycopg.connect(place.database_url) as holding:
        holding.execute("SELECT FROM essay_states WHERE batch_id = %s FOR UPDATE", [batch])
        place.send_content(batch)
        until(lambda: any(s.task for s in place.signs().signs.values()), WAIT_S, "it is at work")
        place.end(worker)
        yield batch


@cause("waiting_for_contents", says=["holds 1 message", "has not finished"], among=3)
def its_worker_was_killed_with_its_content(place):
    with dead_with_its_content(place) as batch:
        pass
    yield batch


def killed_with_its_content(place, **settings):
    """Kill a worker that holds a content of the batch for a while; another one takes its place."""
    with dead_with_its_content(place, **settings) as batch:
        place.conn.execute(  # or it ends the statement once the lock is gone
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    for key, earlier in (("unacked_index", 30), (f"batch:{{{batch}}}:claims", 15_000)):
        for each in place.valkey.zrange(key, 0, -1):
            place.valkey.zincrby(key, -earlier, each)
    place.worker(**settings)
    return batch


@cause(
    "waiting_for_contents",
    among=4,
    says=["a worker that is gone held 1 message", "is 86400 s", "safe to send it again"],
    never=["no dead letter"],
)
def its_worker_was_killed_and_its_messages_come_back_tomorrow(place):
    yield killed_with_its_content(place, ELS_VISIBILITY_TIMEOUT="86400")


@cause(
    "claims_in_flight",
    among=3,
    says=["neither in the queue nor with a worker", "the messages do not come back"],
    never=["writes them at this moment"],
    step="els submit FILE",
)
def somebody_deleted_what_its_worker_held(place):
    batch = killed_with_its_content(place, ELS_VISIBILITY_TIMEOUT="86400")
    place.valkey.delete("unacked", "unacked_index")
    yield batch


def fails(place, *command, **settings):
    """Start a worker or beat that cannot start."""
    process = place.els(*command, **settings)
    process.communicate(timeout=WAIT_S)
    assert process.returncode


@cause(
    "no_worker",
    says=["No worker is running", "could not start at", "ELS_EVENT_ROUTES: "],
    step="once that is corrected",
)
def a_setting_of_it_is_misspelt(place):
    place.end(place.worker(), signal.SIGTERM)
    batch = place.insert_batch()
    fails(place, "worker", ELS_EVENT_ROUTES='{"BatchEssayReady": []}')
    yield batch


@cause(
    "no_worker",
    says=["ended by itself at", "ELS_CRASHPOINT: there is no nowhere"],
    never=["was stopped"],
)
def it_ended_by_an_error_of_its_own(place):
    batch = place.insert_batch()
    worker = place.worker(ELS_CRASHPOINT="nowhere")
    place.send_content(batch)
    worker.wait(WAIT_S)
    yield batch


@cause("no_worker", says=["could not start at", "ELS_EAGER"], step="once that is corrected")
def it_was_to_be_eager(place):
    batch = place.insert_batch()
    fails(place, "worker", ELS_EAGER="1")
    yield batch


@cause("no_worker", says=["could not start at", "--queues: essays:"], never=["does not answer"])
def it_was_to_serve_a_queue_of_others(place):
    batch = place.insert_batch()
    fails(place, "worker", "-Q", "essays")
    yield batch


@cause(
    "beat_silent",
    says=["No beat is running", "could not start at", "ELS_SWEEP_EVERY: "],
    step="once that is corrected",
)
def a_setting_of_beat_is_wrong(place):
    place.worker()
    batch = place.register()
    fails(place, "beat", ELS_SWEEP_EVERY="never")
    yield batch


@cause(
    "worker_crashes",
    says=["has ELS_CRASHPOINT=claimed, so its processes end on purpose"],
    never=["want of memory"],
    step="without ELS_CRASHPOINT",
)
def a_setting_for_tests_ends_its_processes(place):
    batch = place.insert_batch()
    place.worker(command=ONE_PROCESS, ELS_CRASHPOINT="claimed")
    place.send_content(batch)
    yield batch


def again_and_again(place, end, *more):
    """Start a worker of one name three times, as a supervisor does; it ends each time."""
    for _ in range(3):
        worker = place.start_worker("-n", f"{place.queue}@test", *more)
        end(worker)
        worker.wait(WAIT_S)


@cause("worker_restarts", says=["has started 3 times in 20 minutes"], never=GONE[1:])
def it_is_killed_again_and_again(place):
    def kill(worker):
        until_it_lives(place, worker)
        place.end(worker)

    again_and_again(place, kill)
    yield place.insert_batch()


def until_it_lives(place, worker):
    def lives():
        return worker.pid in {sign.pid for sign in place.signs().signs.values()}

    until(lives, WAIT_S, "it lives")


@cause("worker_restarts", says=["has started 3 times in 20 minutes"], never=GONE[1:])
def it_fails_at_each_start(place):
    again_and_again(place, lambda _: None, "--statedb", "/nowhere/state")
    yield place.insert_batch()


@cause("no_worker", says=["was stopped at"], never=["times in 20 minutes"])
def it_was_restarted_by_its_people(place):
    def stop(worker):
        until_it_lives(place, worker)
        worker.terminate()

    again_and_again(place, stop)
    yield place.insert_batch()


# --- hanging -------------------------------------------------------------------------------------


def pool_of(worker):
    """The only process of a worker's pool."""

    def children():
        return [each for each in psutil.Process(worker.pid).children() if each.is_running()]

    return until(children, WAIT_S, "the pool has a process")[-1]


def until_stalled(place):
    def stalled():
        return any(sign.stalled_since for sign in place.signs().signs.values())

    until(stalled, WAIT_S + STALLED_AFTER.total_seconds(), "a worker is stalled")


@cause("worker_stalled", says=["no process takes the next message"], never=GONE[:1])
def the_process_of_its_pool_is_stopped(place):
    worker = place.worker(command=ONE_PROCESS)
    batch = place.register()
    child = pool_of(worker)
    until(lambda: not place.valkey.hlen("unacked"), WAIT_S, "the registration has ended")
    child.suspend()
    place.send_content(batch)
    until_stalled(place)
    yield batch
    child.resume()


@cause("worker_stalled", says=["els.assign_content since", "holds 1 message"], step="kill -CONT")
def a_process_is_stopped_in_the_midst_of_a_content(place):
    worker = place.worker(command=ONE_PROCESS)
    batch = place.register()
    child = pool_of(worker)
    with psycopg.connect(place.database_url) as holding:
        holding.execute("SELECT FROM essay_states WHERE batch_id = %s FOR UPDATE", [batch])
        place.send_content(batch)
        until(lambda: any(s.task for s in place.signs().signs.values()), WAIT_S, "it is at work")
        child.suspend()
    until_stalled(place)
    yield batch
    child.resume()


@contextmanager
def a_log_that_nobody_reads(place):
    """Let the next worker log into a pipe; give what reads it empty and makes it small."""
    file = place.workers.logs / f"{len(place.workers.processes)}.log"
    os.mkfifo(file)
    reading = os.open(file, os.O_RDONLY | os.O_NONBLOCK)

    def read():
        while select([reading], [], [], 0.5)[0]:
            os.read(reading, 65536)
        fcntl(reading, F_SETPIPE_SZ, 4096)

    with ThreadPoolExecutor(1) as reader:
        yield lambda: reader.submit(read).result(WAIT_S)
    os.close(reading)


def flooded(place):
    """Send a worker so much that its log is full, and then the content of a batch."""
    batch = place.register(60)
    for number in range(60):
        place.send_content(batch, f"text-{number}")
    return batch


@cause(
    "worker_stalled",
    says=["goes to a pipe that nobody empties"],
    step="its output to a file, or to a program that reads it",
)
def a_process_hangs_on_its_log(place):
    with a_log_that_nobody_reads(place) as read:
        place.worker(command=ONE_PROCESS)
        read()
        batch = flooded(place)
        until_stalled(place)
        yield batch
        place.workers.stop()


@cause(
    "no_worker",
    says=["No worker gives a sign of life", "goes to a pipe that nobody empties"],
    step="its output to a file, or to a program that reads it",
)
def it_hangs_on_its_log(place):
    with a_log_that_nobody_reads(place) as read:
        place.worker()
        read()
        batch = flooded(place)
        place.until_silent()
        yield batch
        place.workers.stop()


# --- not begun -----------------------------------------------------------------------------------


def empty(place):
    """The URL of a database without a schema, in the same server."""
    name = f"{urlsplit(place.database_url).path[1:]}_empty"
    place.conn.execute(f"CREATE DATABASE {name}")
    return urlsplit(place.database_url)._replace(path=f"/{name}").geturl(), name


@cause("schema_missing", says=["waits to start"], never=GONE[:1], step="els migrate")
def it_waits_for_its_schema(place):
    url, name = empty(place)
    place.start_worker(ELS_DATABASE_URL=url)
    until(lambda: any(s.waits for s in place.signs().signs.values()), WAIT_S, "it waits")
    yield make.new_batch(), {"ELS_DATABASE_URL": url}
    place.workers.stop()
    place.conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cause("worker_waits", says=["waits to start"], never=GONE[:1])
def it_waits_for_the_schema_of_another_database(place):
    url, name = empty(place)
    place.start_worker(ELS_DATABASE_URL=url)
    until(lambda: any(s.waits for s in place.signs().signs.values()), WAIT_S, "it waits")
    yield place.insert_batch()
    place.workers.stop()
    place.conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cause("worker_waits", says=["essay_states"], never=GONE[:1])
def it_waits_for_a_right_that_its_role_lacks(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    place.conn.execute(f"REVOKE INSERT ON essay_states FROM {urlsplit(url).username}")
    place.start_worker(ELS_DATABASE_URL=url)
    until(lambda: any(s.waits for s in place.signs().signs.values()), WAIT_S, "it waits")
    yield place.insert_batch()


@cause("worker_waits", says=["statement timeout"], step="take statement_timeout out of the options")
def a_limit_of_time_in_its_url_ends_what_it_begins(place):
    url = f"{place.database_url}?options={quote('-c statement_timeout=1', safe='')}"
    place.start_worker(ELS_DATABASE_URL=url)
    until(lambda: any(s.waits for s in place.signs().signs.values()), WAIT_S, "it waits")
    yield place.insert_batch()


@cause(
    "worker_waits", says=["resolve host"], step="correct the name of the host in ELS_DATABASE_URL"
)
def its_url_names_no_host(place):
    place.start_worker(ELS_DATABASE_URL="postgresql://els:word@gone.invalid/els")
    until(lambda: any(s.waits for s in place.signs().signs.values()), WAIT_S, "it waits")
    yield place.insert_batch()


def role(place, rights):
    """Create a role with rights on all tables; return the URL of the database for it."""
    name = f"r_{os.getpid()}_{abs(hash(place.queue))}"
    place.conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'word'")

    def drop():
        with psycopg.connect(place.database_url, autocommit=True) as conn:
            conn.execute(f"DROP OWNED BY {name}")
            conn.execute(f"DROP ROLE {name}")

    place.undo.callback(drop)
    place.undo.callback(place.workers.stop)
    place.conn.execute(f"GRANT USAGE ON SCHEMA public TO {name}")
    if rights:
        place.conn.execute(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {name}")
        place.conn.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
    at = urlsplit(place.database_url)
    return at._replace(netloc=f"{name}:word@{at.hostname}:{at.port}").geturl()


# --- how it runs ---------------------------------------------------------------------------------


@cause("no_worker", step="kubectl rollout restart deployment/els-worker", never=["els run"])
def it_ran_on_kubernetes(place):
    place.end(place.worker(KUBERNETES_SERVICE_HOST="10.0.0.1"), signal.SIGTERM)
    yield place.insert_batch()


@cause("no_worker", step="systemctl start els-worker", never=["els run"])
def it_ran_under_systemd(place):
    place.end(place.worker(INVOCATION_ID="0" * 32), signal.SIGTERM)
    yield place.insert_batch()


@cause("no_worker", step="kubectl", never=["els run"])
def it_runs_on_kubernetes_where_none_was_ever_started(place):
    yield place.insert_batch(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def clock(place, offset_s):
    """Settings of a process whose wall clock is wrong."""
    file = place.folder / "clock"
    file.write_text(str(offset_s))
    path = f"{os.getcwd()}/tests/live/clock"
    return {"PYTHONPATH": path, "TEST_CLOCK": str(file)}


@cause("waiting_for_contents", never=[*GONE, "No beat"])
def the_clock_of_whoever_asks_is_an_hour_ahead(running):
    yield running.register(), clock(running, 3600)


@cause("waiting_for_contents", never=[*GONE, "No beat"])
def the_clock_of_whoever_asks_is_an_hour_behind(running):
    yield running.register(), clock(running, -3600)
