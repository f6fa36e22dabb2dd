"""Locks that others hold: whole tables, rows of the batch, its registration."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from core.servers.rights import OF_MESSAGES
from ops.explain.locks import standby_awaited
from tests import factories as make
from tests.explain.cause import cause
from tests.explain.place import WAIT_S
from tests.live.conftest import until

ABOUT = ["pid ", "payroll", "idle in transaction"]
STEP = "pg_terminate_backend"


@contextmanager
def holding(place, statement, *values):
    """Let a program named payroll execute a statement, and forget to commit for over a second."""
    with psycopg.connect(place.database_url, application_name="payroll") as conn:
        conn.execute(statement, values)
        age = "SELECT now() - xact_start > '1.1 s' AS old FROM pg_stat_activity WHERE pid = %s"
        pid = conn.info.backend_pid
        until(lambda: place.conn.execute(age, [pid]).fetchone()["old"], WAIT_S, "it is old")
        yield pid
        conn.rollback()


def locking(table, mode):
    def make_it(place):
        batch = place.insert_batch()
        with holding(place, f"LOCK TABLE {table} IN {mode} MODE"):
            yield batch

    make_it.__name__ = f"{table}_in_{mode.lower().replace(' ', '_')}"
    return make_it


for locked in OF_MESSAGES:
    cause("lock_held", says=[f"table {locked}", *ABOUT], step=STEP)(
        locking(locked, "ACCESS EXCLUSIVE")
    )
for kind in ("SHARE", "EXCLUSIVE", "SHARE ROW EXCLUSIVE"):
    cause("lock_held", says=["table essay_states", *ABOUT], step=STEP)(
        locking("essay_states", kind)
    )


@cause("lock_held", says=["rows of the batch in batch_essay_trackers", *ABOUT], step=STEP)
def its_row_is_locked(place):
    batch = place.insert_batch()
    with holding(place, "SELECT FROM batch_essay_trackers WHERE batch_id = %s FOR UPDATE", batch):
        yield batch


@cause(
    "server_refuses",
    says=["1 commit waits for a synchronous standby (synchronous_standby_names: nowhere)"],
    never=["Another session has locked"],
    step="ALTER SYSTEM RESET synchronous_standby_names",
)
def commits_wait_for_a_standby(alone):
    batch = alone.insert_batch()
    alone.conn.execute("ALTER SYSTEM SET synchronous_standby_names = 'nowhere'")
    alone.conn.execute("SELECT pg_reload_conf()")
    with psycopg.connect(alone.database_url) as conn, ThreadPoolExecutor(1) as other:
        conn.execute("UPDATE batch_essay_trackers SET metadata = '{}' WHERE batch_id = %s", [batch])
        commit = other.submit(conn.commit)
        until(lambda: standby_awaited(alone.conn), WAIT_S, "the commit waits")
        yield batch
        alone.conn.execute("ALTER SYSTEM RESET synchronous_standby_names")
        alone.conn.execute("SELECT pg_reload_conf()")
        commit.result(WAIT_S)


@cause(
    "lock_held",
    says=["rows of the batch in essay_states", "the prepared transaction bank's 7"],
    step="ROLLBACK PREPARED",
    ends=True,
)
def a_prepared_transaction_was_left_behind(alone):
    alone.conn.execute("ALTER SYSTEM SET max_prepared_transactions = 1")
    alone.conn.close()
    alone.postgres_server.stop()
    alone.postgres_server.start()
    batch = alone.insert_batch()
    alone.worker()
    with psycopg.connect(alone.database_url) as conn:
        conn.execute("SELECT FROM essay_states WHERE batch_id = %s FOR UPDATE", [batch])
        conn.execute("PREPARE TRANSACTION 'bank''s 7'")
    alone.send_content(batch)
    waits = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"
    until(lambda: alone.conn.execute(waits).fetchone()["n"], WAIT_S, "the worker waits")
    age = "SELECT now() - prepared > '1.1 s' AS old FROM pg_prepared_xacts"
    until(lambda: alone.conn.execute(age).fetchone()["old"], WAIT_S, "it is old")
    yield batch


@cause("lock_held", says=["rows of the batch in essay_states", *ABOUT], step=STEP)
def one_of_its_slots_is_locked(place):
    batch = place.insert_batch(5)
    slot = "essay_id = 'essay-000003'"
    query = f"SELECT FROM essay_states WHERE batch_id = %s AND {slot} FOR NO KEY UPDATE"
    with holding(place, query, batch):
        yield batch


@cause("lock_held", says=["rows of the batch in batch_essay_trackers", *ABOUT], step=STEP)
def its_row_was_changed_without_a_commit(place):
    batch = place.insert_batch()
    query = "UPDATE batch_essay_trackers SET user_id = user_id WHERE batch_id = %s"
    with holding(place, query, batch):
        yield batch


@cause("lock_held", says=["the registration of the batch", *ABOUT], step=STEP)
def its_registration_is_locked(place):
    batch = make.new_batch()
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('register/' || %s, 0))"
    with holding(place, lock, batch):
        place.send("els.register_batch", make.registration(batch, 2))
        yield batch


@cause("lock_held", says=["rows of the batch", *ABOUT], never=["No worker"])
def a_worker_waits_for_a_slot_that_is_locked(place):
    place.run()
    batch = place.register(1)
    with holding(place, "SELECT FROM essay_states WHERE batch_id = %s FOR UPDATE", batch):
        place.send_content(batch)
        yield batch


@cause("lock_held", says=["table essay_states", "payroll"], step=STEP)
def a_reader_keeps_a_change_of_the_table_waiting(place):
    batch = place.insert_batch()
    altering = psycopg.connect(place.database_url, application_name="alter")
    with holding(place, "SELECT count(*) FROM essay_states"), altering:
        altering.pgconn.send_query(b"ALTER TABLE essay_states ADD COLUMN spare int")
        waits = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted"
        until(lambda: place.conn.execute(waits).fetchone()["n"], WAIT_S, "it waits")
        yield batch
        altering.close()


@cause("no_worker", never=["locked", "payroll"])
def rows_of_another_batch_are_locked(place):
    batch, other = place.insert_batch(), place.insert_batch()
    with holding(place, "SELECT FROM essay_states WHERE batch_id = %s FOR UPDATE", other):
        yield batch
