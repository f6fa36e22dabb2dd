"""Servers that are away, frozen, full, or refuse."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import redis

from core.signs.heartbeat import SINCE, WORKERS
from core.signs.pauses import PAUSES
from ops.stack.embedded import Valkey
from ops.stack.ports import free_port
from ops.torture import refusals
from tests import factories as make
from tests.explain.cause import cause
from tests.explain.causes.workers import GONE, empty, role
from tests.explain.place import WAIT_S
from tests.live.conftest import until

PAUSED_S = 30


# --- Redis ---------------------------------------------------------------------------------------


@cause("redis_unreachable", says=["Redis does not answer", "redis"], never=GONE[:1])
def redis_is_stopped(place):
    batch = place.insert_batch()
    place.valkey_server.stop()
    yield batch


@cause("redis_unreachable", says=["Redis does not answer"], never=GONE[:1])
def redis_is_frozen(place):
    batch = place.insert_batch()
    with refusals.frozen(place.valkey_server.process.pid):
        yield batch


@cause("redis_unreachable", never=GONE[:1])
def redis_is_asked_with_a_wrong_password(place):
    batch = place.insert_batch()
    url = place.valkey_server.url.replace(":password@", ":wrong@")
    yield batch, {"ELS_REDIS_URL": url, "ELS_BROKER_URL": place.valkey_server.url}


@cause(
    "redis_unreachable",
    says=["it speaks no TLS at this port"],
    never=GONE[:1],
    step="write redis:// in ELS_REDIS_URL",
)
def redis_is_asked_for_tls_at_its_plain_port(place):
    batch, url = place.insert_batch(), place.valkey_server.url
    secure = url.replace("redis://", "rediss://")
    yield batch, {"ELS_REDIS_URL": secure, "ELS_BROKER_URL": url}


def refusing(refuse, words, *, runs):
    def make_it(place):
        if runs:
            worker = place.worker()
        batch = place.insert_batch()
        with refuse(place.valkey):
            if runs:
                place.until_silent()
            yield batch
        if runs:
            place.end(worker)

    made = "while_a_worker_runs" if runs else "without_a_worker"
    make_it.__name__ = f"redis_is_{refuse.__name__}_{made}"
    cause("server_refuses", says=["Redis refuses writes", words], never=GONE[:1])(make_it)


refusing(refusals.out_of_memory, "INFO memory", runs=True)
refusing(refusals.out_of_memory, "INFO memory", runs=False)
refusing(refusals.replica, "ROLE", runs=True)
refusing(refusals.replica, "ROLE", runs=False)
refusing(refusals.without_replicas, "INFO replication", runs=False)
refusing(refusals.snapshots_failing, "INFO persistence", runs=False)


@cause(
    "server_refuses",
    says=["Redis refuses writes", "it answers, and holds writes back"],
    step="CLIENT UNPAUSE",
)
def redis_holds_writes_back(place):
    batch = place.insert_batch()
    place.valkey.client_pause(60_000, all=False)
    yield batch
    place.valkey.client_unpause()


@cause("redis_unreachable", says=["BUSY"], never=["they are lost"], step="SCRIPT KILL")
def redis_runs_a_script_that_does_not_end(place):
    batch = place.insert_batch()
    client = redis.Redis.from_url(place.valkey_server.url, socket_timeout=60)
    place.valkey.config_set("busy-reply-threshold", 10)
    script = threading.Thread(target=lambda: reply_of(client.eval, "while true do end", 0))
    script.start()
    until(lambda: "BUSY" in reply_of(place.valkey.ping), what="it is busy")
    yield batch
    place.valkey.script_kill()
    script.join()


def reply_of(call, *args):
    try:
        return str(call(*args))
    except redis.RedisError as error:
        return str(error)


@cause("server_refuses", says=["Redis refuses writes", "NOREPLICAS"], never=["Postgres refuses"])
def redis_refuses_and_has_a_note_of_a_process_that_was_killed(place):
    batch = place.insert_batch()
    note = {"server": "postgres", "error": "a lock", "since": 0, "at": 0}
    place.valkey.hset(PAUSES, "killed:1", json.dumps(note))
    with refusals.without_replicas(place.valkey):
        yield batch


@cause("server_refuses", says=["Redis refuses writes", "ReadOnlyError"], step="REPLICAOF NO ONE")
def redis_was_made_a_replica(place):
    batch = place.insert_batch()
    with refusals.replica(place.valkey):
        yield batch


@cause(
    "server_refuses",
    says=["The broker cannot use the queue els-", "its key is no list"],
    step="RENAME els-",
    never=["does not answer", "The broker refuses"],
)
def another_program_has_written_the_key_of_its_queue(place):
    batch = place.insert_batch()
    place.valkey.set(place.queue, "busy")
    yield batch


# --- the broker ----------------------------------------------------------------------------------


@contextmanager
def broker(place):
    server = Valkey(place.folder / "broker", free_port(), "password")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@cause(
    "broker_unreachable",
    says=["The broker does not answer", "the broker does not say whether messages"],
    never=[*GONE[:1], "they are lost"],
)
def the_broker_is_stopped(place):
    with broker(place) as server:
        place.settings["ELS_BROKER_URL"] = server.url
        place.worker(ELS_BROKER_URL=server.url)
        batch = place.insert_batch()
        server.stop()
        yield batch


@cause("broker_unreachable", says=["The broker does not answer", "Not read"], never=GONE[:1])
def the_broker_is_frozen(place):
    with broker(place) as server:
        place.settings["ELS_BROKER_URL"] = server.url
        place.worker(ELS_BROKER_URL=server.url)
        batch = place.insert_batch()
        with refusals.frozen(server.process.pid):
            yield batch


@cause("broker_unreachable", never=["Redis does not answer"])
def the_broker_is_a_port_where_nobody_listens(running):
    yield running.register(), {"ELS_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0"}


@cause("broker_unreachable", never=["Redis does not answer"])
def the_broker_is_a_rabbitmq_that_is_not_there(running):
    yield running.register(), {"ELS_BROKER_URL": f"amqp://a:b@127.0.0.1:{free_port()}//"}


# --- Postgres ------------------------------------------------------------------------------------


@cause("postgres_unreachable", says=["Postgres does not answer", "Not read"], never=GONE[:1])
def postgres_is_stopped(alone):
    alone.worker()
    alone.conn.close()
    alone.postgres_server.stop()
    yield make.new_batch()


@cause("postgres_unreachable", says=["Postgres does not answer", "Not read"], never=GONE[:1])
def postgres_is_frozen(alone):
    alone.worker()
    batch = alone.insert_batch()
    with refusals.frozen(alone.postgres_server.process.pid):
        yield batch


@cause("redis_unreachable", among=2, says=["Postgres does not answer", "Redis does not answer"])
def everything_is_frozen(alone):
    batch = alone.insert_batch()
    pids = alone.postgres_server.process.pid, alone.valkey_server.process.pid
    with refusals.frozen(pids[0]), refusals.frozen(pids[1]):
        yield batch


@cause("postgres_unreachable", says=["does not exist"], step="correct ELS_DATABASE_URL")
def the_database_does_not_exist(place):
    yield make.new_batch(), {"ELS_DATABASE_URL": f"{place.database_url}_nowhere"}


@cause("postgres_unreachable", says=["password"], step="new password into ELS_DATABASE_URL")
def the_password_is_wrong(place):
    at = urlsplit(place.database_url)
    url = at._replace(netloc=f"{at.username}:wrong@{at.hostname}:{at.port}").geturl()
    yield place.insert_batch(), {"ELS_DATABASE_URL": url}


@cause("postgres_unreachable", says=["too many connections"], step="pg_stat_activity")
def its_role_has_too_many_connections(place):
    url = role(place, "SELECT")
    place.conn.execute(f"ALTER ROLE {urlsplit(url).username} CONNECTION LIMIT 1")
    batch = place.insert_batch()
    with psycopg.connect(url):
        yield batch, {"ELS_DATABASE_URL": url}


@cause(
    "server_refuses",
    says=["Postgres refuses writes", "somebody set default_transaction_read_only"],
    step="ALTER DATABASE place_",
    ends=True,
)
def postgres_is_read_only(place):
    batch = place.insert_batch()
    place.conn.close()
    with refusals.read_only(place.database_url):
        yield batch


@cause("server_refuses", says=["Postgres refuses writes", "read-only"], never=GONE[:1])
def postgres_is_read_only_while_a_worker_runs(place):
    place.run()
    batch = place.register()
    place.conn.close()
    with refusals.read_only(place.database_url):
        until(place.pauses, PAUSED_S, "a process waits")
        yield batch


@cause("server_refuses", step="ALTER SYSTEM RESET", ends=True)
def all_of_postgres_is_read_only(alone):
    batch = alone.insert_batch()
    alone.conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    alone.conn.execute("SELECT pg_reload_conf()")
    shown = "SELECT setting FROM pg_settings WHERE name = 'default_transaction_read_only'"
    until(lambda: alone.conn.execute(shown).fetchone()["setting"] == "on", WAIT_S, "it is so")
    yield batch


@cause("no_worker", never=["refuses writes"])
def only_the_role_of_whoever_asks_is_read_only(place):
    url = role(place, "SELECT")
    name = urlsplit(url).username
    place.conn.execute(f"ALTER ROLE {name} SET default_transaction_read_only = on")
    yield place.insert_batch(), {"ELS_DATABASE_URL": url}


@cause("server_refuses", says=["it is a standby"], step="name its primary", never=["SELECT pg_"])
def the_url_leads_to_a_standby(alone):
    batch = alone.insert_batch()
    alone.conn.close()
    alone.postgres_server.stop()
    (alone.postgres_server.data / "standby.signal").touch()
    alone.postgres_server.start()
    yield batch


@cause("postgres_unreachable", says=["does not answer"], step="name of the host")
def the_name_of_its_host_is_gone(place):
    at = urlsplit(place.database_url)
    yield make.new_batch(), {"ELS_DATABASE_URL": f"postgresql://els:word@gone.invalid{at.path}"}


@cause(
    "server_refuses",
    says=["Postgres takes over a second for a write", "its disk is slow"],
    never=["refuses writes"],
    step="FROM pg_stat_activity",
)
def postgres_is_slow_to_write(place):
    batch = place.insert_batch()
    place.conn.execute(
        "CREATE FUNCTION slow() RETURNS integer LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(5); RETURN 1; END$$"
    )
    place.conn.execute("ALTER TABLE essay_states ADD COLUMN seen integer")
    place.conn.execute("ALTER TABLE essay_states ALTER COLUMN seen SET DEFAULT slow()")
    yield batch


@cause(
    "server_refuses",
    says=["somebody has moved the sequence dead_letters_id_seq to its end"],
    step="SELECT setval(",
    ends=True,
)
def a_sequence_is_at_its_end(place):
    place.worker()
    batch = place.insert_batch()
    place.conn.execute("SELECT setval('dead_letters_id_seq', 9223372036854775807)")
    place.send("els.assign_content", make.content(batch, file_size_bytes=-1))
    until(place.pauses, WAIT_S, "the worker waits")
    yield batch


@cause(
    "server_refuses",
    says=["somebody has added the constraint fk_user to batch_essay_trackers"],
    step="DROP CONSTRAINT fk_user",
    ends=True,
)
def a_foreign_key_of_others_is_named_as_ours_are(place):
    batch = place.insert_batch()
    place.conn.execute("CREATE TABLE users (id text PRIMARY KEY)")
    place.conn.execute(
        "ALTER TABLE batch_essay_trackers ADD CONSTRAINT fk_user FOREIGN KEY (user_id)"
        " REFERENCES users NOT VALID"
    )
    yield batch


@cause(
    "cannot_read",
    says=["a table of another schema is found first", "hides public.essay_states"],
    step="RENAME TO essay_states_hidden",
    never=["A slot of the batch is gone"],
    ends=True,
    among=2,
)
def a_table_of_another_schema_hides_ours(place):
    place.run()
    batch = place.register()
    place.conn.execute("CREATE SCHEMA els")  # the user's own, which Postgres searches first
    place.conn.execute("CREATE TABLE els.essay_states (LIKE public.essay_states INCLUDING ALL)")
    yield batch


@cause(
    "postgres_unreachable",
    says=["Postgres cannot read its own files", "could not open file"],
    never=["does not answer"],
    step="restore that file, or a backup",
)
def a_file_of_its_database_is_gone(alone):
    batch = alone.insert_batch()
    alone.conn.execute("CHECKPOINT")
    named = "SELECT pg_relation_filepath('essay_states') AS file"
    file = alone.postgres_server.data / alone.conn.execute(named).fetchone()["file"]
    away = file.rename(file.with_suffix(".away"))
    yield batch
    away.rename(file)


@cause("postgres_unreachable", says=["not currently accepting"], step="ALLOW_CONNECTIONS true")
def its_database_takes_no_connections(place):
    batch = place.insert_batch()
    name = urlsplit(place.database_url).path[1:]
    other = urlsplit(place.database_url)._replace(path="/postgres").geturl()
    place.conn.close()
    with psycopg.connect(other, autocommit=True) as conn:
        conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        yield batch
        conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@cause(
    "server_refuses",
    says=["none of this service fails, or takes too long: slow on essay_states"],
    step="DISABLE TRIGGER slow",
    never=["its disk is slow"],
    ends=True,
)
def a_trigger_of_others_sleeps(place):
    batch = place.insert_batch()
    place.conn.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_sleep(5); RETURN NEW; END$$"
    )
    place.conn.execute("CREATE TRIGGER slow BEFORE INSERT ON essay_states EXECUTE FUNCTION slow()")
    yield batch


@cause(
    "server_refuses",
    says=["frozen by an audit", "audit on event_outbox"],
    step="DISABLE TRIGGER audit",
    ends=True,
)
def a_trigger_of_others_refuses_writes(place):
    batch = place.insert_batch()
    place.conn.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'frozen by an audit'; END$$"
    )
    place.conn.execute(
        "CREATE TRIGGER audit BEFORE INSERT ON event_outbox EXECUTE FUNCTION audit()"
    )
    yield batch


@cause(
    "server_refuses",
    says=["Postgres refuses writes", "audit on batch_essay_trackers", "audit on essay_states"],
    step="DISABLE TRIGGER audit",
    never=["no schema that this release can use", "compare them"],
    ends=True,
)
def a_trigger_of_others_misses_its_table(place):
    batch = place.insert_batch()
    place.conn.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO audit.log VALUES (1); RETURN NEW; END$$"
    )
    for table in ("batch_essay_trackers", "essay_states"):
        place.conn.execute(
            f"CREATE TRIGGER audit BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION audit()"
        )
    yield batch


@cause(
    "server_refuses",
    says=["somebody has set idle_session_timeout = 1ms for ROLE r_"],
    step="RESET idle_session_timeout",
    never=["does not answer"],
    ends=True,
)
def its_role_has_a_limit_that_ends_its_sessions(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    name = urlsplit(url).username
    for limit in ("idle_session_timeout", "statement_timeout"):
        place.conn.execute(f"ALTER ROLE {name} SET {limit} = '1ms'")
    yield place.insert_batch(), {"ELS_DATABASE_URL": url}


@cause(
    "schema_missing",
    says=["the table essay_states has no column text_storage_id", "renamed it to storage_id"],
    step='RENAME COLUMN "storage_id" TO text_storage_id',
    never=["compare them"],
    ends=True,
)
def a_column_was_renamed(place):
    batch = place.insert_batch()
    place.conn.execute("ALTER TABLE essay_states RENAME COLUMN text_storage_id TO storage_id")
    yield batch


@cause(
    "schema_missing",
    says=["the table event_outbox has no column attempts", "dropped or renamed it"],
    never=["compare them"],
)
def a_column_was_dropped(place):
    batch = place.insert_batch()
    place.conn.execute("ALTER TABLE event_outbox DROP COLUMN attempts")
    yield batch


@cause(
    "server_refuses",
    says=["somebody has added the column region to event_outbox, and it must have a value"],
    step="DROP NOT NULL",
    ends=True,
)
def a_column_of_others_must_have_a_value(place):
    batch = place.insert_batch()
    place.conn.execute("ALTER TABLE event_outbox ADD COLUMN region text NOT NULL")
    yield batch


@cause(
    "server_refuses",
    says=["somebody has added the constraint up_only to essay_states"],
    step="DROP CONSTRAINT",
    ends=True,
)
def a_constraint_of_others_refuses_rows(place):
    batch = place.insert_batch()
    place.conn.execute(
        "ALTER TABLE essay_states ADD CONSTRAINT up_only CHECK (file_upload_id LIKE 'up-%')"
    )
    yield batch


@cause("server_refuses", says=["Postgres refuses writes"], step="df -h")
def the_disk_of_postgres_is_full(place):
    batch = place.insert_batch()
    with refusals.raising(place.database_url, "53100"):
        yield batch


@cause(
    "server_refuses",
    says=["permission denied for table", "lacks INSERT ON essay_states"],
    step="GRANT INSERT ON essay_states TO r_",
)
def a_right_of_the_worker_was_revoked(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    place.worker(ELS_DATABASE_URL=url)
    place.start_beat()
    batch = place.insert_batch()
    place.conn.execute(f"REVOKE INSERT, UPDATE ON essay_states FROM {urlsplit(url).username}")
    place.send_content(batch)
    until(place.pauses, WAIT_S, "a process waits")
    yield batch


@cause(
    "server_refuses",
    says=["password authentication failed for user"],
    never=["whoever asks, so workers go on"],
    step="new password into ELS_DATABASE_URL",
)
def the_password_of_the_worker_was_changed(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    name = urlsplit(url).username
    place.worker(ELS_DATABASE_URL=url)
    place.start_beat()
    batch = place.insert_batch()
    place.conn.execute(f"ALTER ROLE {name} PASSWORD 'another'")
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
    place.conn.execute(ending, [name])
    place.send_content(batch)
    until(place.pauses, WAIT_S, "a process waits")
    yield batch


@cause("schema_missing", says=["there is no schema"], step="els migrate")
def there_is_no_schema(place):
    url, name = empty(place)
    yield make.new_batch(), {"ELS_DATABASE_URL": url}
    place.conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cause(
    "schema_missing",
    says=["its tables are in the schema public, and this session looks in nowhere"],
    step="correct search_path in the options of ELS_DATABASE_URL",
    never=["els migrate", "in time"],
)
def the_search_path_names_no_schema(place):
    yield (
        make.new_batch(),
        {"ELS_DATABASE_URL": f"{place.database_url}?options=-csearch_path%3Dnowhere"},
    )


@cause(
    "schema_missing",
    says=["its tables are in the schema public, and this session looks in reports"],
    step="SET search_path = public",
    never=["els migrate", "works on another database", "kill"],
)
def the_search_path_of_the_role_was_changed(place):
    place.worker()
    batch = place.register()
    place.conn.execute("CREATE SCHEMA reports")
    database = urlsplit(place.database_url).path[1:]
    place.conn.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {database} SET search_path = reports")
    place.conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    place.send_content(batch)
    until(place.pauses, WAIT_S, "a process waits")
    yield batch


@cause(
    "schema_missing",
    says=["may not enter the schema of its tables, public"],
    step="GRANT USAGE ON SCHEMA public",
    never=["els migrate"],
    ends=True,
)
def its_role_may_not_enter_the_schema(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    place.conn.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    place.conn.execute(f"REVOKE ALL ON SCHEMA public FROM {urlsplit(url).username}")
    yield place.insert_batch(), {"ELS_DATABASE_URL": url}


@cause("schema_missing", step="kubectl apply -k deploy/kubernetes/migrate")
def there_is_no_schema_on_kubernetes(place):
    url, name = empty(place)
    yield make.new_batch(), {"ELS_DATABASE_URL": url, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    place.conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cause(
    "schema_missing",
    says=["no table batch_pending_content", "somebody renamed or moved it"],
    step="ALTER TABLE contents_of_may RENAME TO batch_pending_content",
    never=["els migrate"],
    ends=True,
)
def a_table_was_renamed(place):
    batch = place.insert_batch()
    place.conn.execute("ALTER TABLE batch_pending_content RENAME TO contents_of_may")
    yield batch


@cause("schema_missing", says=["no table essay_states"], step="SET SCHEMA public", ends=True)
def a_table_was_moved_to_another_schema(place):
    batch = place.insert_batch()
    place.conn.execute("CREATE SCHEMA archive")
    place.conn.execute("ALTER TABLE essay_states SET SCHEMA archive")
    yield batch


@cause("schema_missing", says=["no table dead_letters"], step="restore it", never=["els migrate"])
def a_table_was_dropped(place):
    batch = place.insert_batch()
    place.conn.execute("DROP TABLE dead_letters")
    yield batch


@cause(
    "cannot_read",
    says=["row level security", "batch_essay_trackers"],
    step="DISABLE ROW LEVEL SECURITY",
    never=["deleted", "els migrate"],
    ends=True,
)
def row_level_security_hides_its_rows(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    batch = place.insert_batch()
    place.conn.execute("ALTER TABLE batch_essay_trackers ENABLE ROW LEVEL SECURITY")
    yield batch, {"ELS_DATABASE_URL": url}


@cause("server_refuses", says=["row-level security"], step="DISABLE ROW LEVEL SECURITY")
def row_level_security_stops_the_workers(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    place.worker(ELS_DATABASE_URL=url)
    batch = make.new_batch()
    place.conn.execute("ALTER TABLE batch_essay_trackers ENABLE ROW LEVEL SECURITY")
    place.send("els.register_batch", make.registration(batch, 2))
    until(place.pauses, WAIT_S, "a process waits")
    yield batch


@cause("cannot_read", says=["permission denied"], step="els migrate --roles")
def whoever_asks_may_not_read(place):
    yield place.insert_batch(), {"ELS_DATABASE_URL": role(place, "")}


@cause("no_worker", never=["refuses writes", "permission denied"])
def whoever_asks_may_only_read(place):
    yield place.insert_batch(), {"ELS_DATABASE_URL": role(place, "SELECT")}


@cause(
    "server_refuses",
    says=["a rule that is none of this service: quiet on event_outbox"],
    step="DROP RULE quiet ON event_outbox",
    ends=True,
)
def a_rule_of_others_replaces_its_writes(place):
    batch = place.insert_batch()
    place.conn.execute("CREATE RULE quiet AS ON INSERT TO event_outbox DO INSTEAD NOTHING")
    yield batch


@cause(
    "server_refuses",
    says=["a publication has the table essay_states, and that has no replica identity"],
    step="REPLICA IDENTITY DEFAULT",
    ends=True,
)
def a_publication_lacks_the_identity_of_its_rows(alone):
    batch = alone.insert_batch()
    alone.conn.execute("ALTER TABLE essay_states REPLICA IDENTITY NOTHING")
    alone.conn.execute("CREATE PUBLICATION warehouse FOR TABLE essay_states")
    yield batch


@cause(
    "server_refuses",
    says=["somebody has dropped the default of the column attempts of event_outbox"],
    step="SET DEFAULT $$0$$",
    ends=True,
)
def the_default_of_a_column_was_dropped(place):
    batch = place.insert_batch()
    place.conn.execute("ALTER TABLE event_outbox ALTER COLUMN attempts DROP DEFAULT")
    yield batch


def by_letter(place, statement, message):
    """Change a table, and write the letter that a content becomes after its five tries."""
    batch = place.insert_batch()
    place.conn.execute(statement)
    place.conn.execute(
        "INSERT INTO dead_letters (task, task_id, batch_id, body, code, message)"
        " VALUES ('els.assign_content', 'message-1', %s, '{}', 'INTERNAL_ERROR', %s)",
        [batch, message],
    )
    return batch


@cause(
    "dead_letter_waiting",
    among=3,
    says=[
        "somebody has added the constraint one_size to essay_states",
        "and then els dead-letters",
    ],
    never=["nothing is wrong with what was sent"],
    step="DROP INDEX one_size",
)
def an_index_of_others_allows_a_value_once(place):
    unique = 'UniqueViolation: duplicate key value violates unique constraint "one_size"; Key (…)'
    index = "CREATE UNIQUE INDEX one_size ON essay_states (file_size_bytes)"
    yield by_letter(place, index, unique)


@cause(
    "dead_letter_waiting",
    among=3,
    says=["the column original_file_name of essay_states is now character varying(6), not text"],
    never=["nothing is wrong with what was sent"],
    step="ALTER COLUMN original_file_name TYPE text",
)
def the_type_of_a_column_was_changed(place):
    narrow = "ALTER TABLE essay_states ALTER COLUMN original_file_name TYPE varchar(6)"
    yield by_letter(place, narrow, "StringDataRightTruncation: SQLSTATE 22001")


@cause(
    "server_refuses",
    says=["somebody has set transaction_timeout = 1ms for ROLE r_"],
    step="RESET transaction_timeout",
    never=["does not answer"],
    ends=True,
)
def its_role_has_a_limit_that_ends_its_transactions(place):
    url = role(place, "SELECT, INSERT, UPDATE, DELETE")
    place.conn.execute(f"ALTER ROLE {urlsplit(url).username} SET transaction_timeout = '1ms'")
    yield place.insert_batch(), {"ELS_DATABASE_URL": url}


@cause(
    "server_refuses",
    says=["no standby is connected, so commits wait for a synchronous standby"],
    never=["Another session has locked"],
    step="ALTER SYSTEM RESET synchronous_standby_names",
    ends=True,
)
def no_standby_takes_commits_of_another_role(alone):
    batch, url = alone.insert_batch(), role(alone, "SELECT, INSERT, UPDATE, DELETE")
    alone.conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'nowhere'")
    alone.conn.execute("SELECT pg_reload_conf()")
    names = "SELECT current_setting('synchronous_standby_names') AS names"
    until(lambda: alone.conn.execute(names).fetchone()["names"], WAIT_S, "it is in force")
    yield batch, {"ELS_DATABASE_URL": url}
    alone.conn.execute("ALTER SYSTEM RESET synchronous_standby_names")
    alone.conn.execute("SELECT pg_reload_conf()")


@cause(
    "slot_missing",
    says=["row level security may hide rows from the role r_", "(tenants on essay_states)"],
    never=["somebody deleted it by hand"],
    step="DISABLE ROW LEVEL SECURITY",
    ends=True,
)
def a_policy_hides_its_slots(place):
    batch, url = place.insert_batch(), role(place, "SELECT, INSERT, UPDATE, DELETE")
    place.conn.execute("CREATE POLICY tenants ON essay_states USING (batch_id LIKE 'tenant-%')")
    place.conn.execute("ALTER TABLE essay_states ENABLE ROW LEVEL SECURITY")
    yield batch, {"ELS_DATABASE_URL": url}


@cause("waiting_for_contents", says=["no text has been carried out"], never=["does not answer"])
def somebody_has_written_bytes_into_a_moment(place):
    place.run()
    batch = place.register()
    place.valkey.set(SINCE, b"\xff")
    yield batch


@cause("waiting_for_contents", among=3, says=["no text has"], never=["does not answer"])
def somebody_has_written_bytes_into_every_sign(place):
    place.run()
    batch = place.register()
    place.workers.stop()
    for key in place.valkey.keys("els:*"):
        if place.valkey.type(key) == "string":
            place.valkey.set(key, b"\xff{text", keepttl=True)
        elif place.valkey.type(key) == "hash":
            place.valkey.hset(key, "text", b"\xff{text")
        elif place.valkey.type(key) == "zset":
            place.valkey.zadd(key, {b"\xff{text": 1e10})
    yield batch


@cause(
    "event_not_delivered",
    among=3,
    says=["another program has written the key of that queue", "WRONGTYPE"],
    step="RENAME QUEUE QUEUE.wrong",
)
def another_program_has_written_the_queue_of_its_receivers(place):
    place.run()
    batch = place.register(1)
    place.valkey.delete(f"{place.queue}.events")
    place.valkey.set(f"{place.queue}.events", "1")
    place.content(batch)
    query = "SELECT count(last_error) AS failed FROM event_outbox WHERE batch_id = %s"
    until(lambda: place.conn.execute(query, [batch]).fetchone()["failed"], WAIT_S, "it failed")
    place.conn.execute("UPDATE event_outbox SET created_at = created_at - interval '1 min'")
    yield batch


@cause("no_worker", says=["No worker is running"], never=["Traceback"])
def somebody_has_written_text_into_every_sign(place):
    batch = place.insert_batch()
    worker = place.worker()
    place.end(worker)
    for key in place.valkey.keys("els:sign:*"):
        place.valkey.set(key, "{text")
    place.valkey.hset(PAUSES, "somebody:1", "{text")
    place.valkey.zremrangebyrank(WORKERS, 0, -1)
    yield batch


@cause(
    "server_refuses",
    says=["WRONGTYPE the key unacked is a string, not a hash"],
    step="RENAME unacked unacked.wrong",
)
def another_program_has_written_a_key_of_its_broker(place):
    batch = place.insert_batch()
    place.worker()
    place.valkey.delete("unacked")
    place.valkey.set("unacked", "1")
    yield batch


@cause("server_refuses", says=["NOREPLICAS"], step="CONFIG SET min-replicas-to-write 0")
def redis_wants_a_replica_that_is_not_there(place):
    batch = place.insert_batch()
    with refusals.without_replicas(place.valkey):
        yield batch


@cause(
    "postgres_unreachable",
    says=["Somebody ends sessions of Postgres, or it is stopping"],
    never=["Postgres does not answer"],
    step="terminate_backend",
)
def somebody_ends_each_session_of_its_role(place):
    batch, url = place.insert_batch(), role(place, "SELECT, INSERT, UPDATE, DELETE")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
    over = threading.Event()

    def again_and_again():
        with psycopg.connect(place.database_url, autocommit=True) as conn:
            while not over.is_set():
                conn.execute(end, [urlsplit(url).username])

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(again_and_again)
        yield batch, {"ELS_DATABASE_URL": url}
        over.set()
        ending.result(WAIT_S)


def dropping(place, table, verb):
    """Let a trigger drop the rows of a table before they are written, without an error."""
    batch = place.insert_batch()
    place.conn.execute(
        "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$"
    )
    place.conn.execute(
        f"CREATE TRIGGER audit BEFORE {verb} ON {table} FOR EACH ROW EXECUTE FUNCTION drop_row()"
    )
    return batch


@cause(
    "server_refuses",
    says=["a trigger of others drops rows: audit on essay_states"],
    step="DISABLE TRIGGER audit",
    ends=True,
)
def a_trigger_of_others_drops_what_slots_get(place):
    yield dropping(place, "essay_states", "UPDATE")


@cause(
    "server_refuses",
    says=["a trigger of others drops rows: audit on event_outbox"],
    step="DISABLE TRIGGER audit",
    ends=True,
)
def a_trigger_of_others_drops_events(place):
    yield dropping(place, "event_outbox", "INSERT")
