"""An effect is made once: the id of its event is written in the same transaction."""

import asyncio
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from threading import Thread

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from els_client.fake import FakeELS
from els_client.inbox import Inbox, NoTransaction
from els_client.sqlalchemy_inbox import SQLAlchemyInbox
from tests.core.test_schema import a_database


class Receiver:
    """A receiver's database, with a table of effects, and the inbox."""

    def __init__(self, inbox, connect, execute):
        self.inbox, self.connect, self.execute = inbox, connect, execute
        with connect() as connection:
            inbox.create_table(connection)
            inbox.create_table(connection)
            execute(connection, "CREATE TABLE effects (id VARCHAR(36))")

    def receive(self, event, fails=False):
        """Make the effect once; fail after it if asked."""
        with self.connect() as connection:
            new = self.inbox.is_new(connection, event)
            if new:
                self.execute(connection, f"INSERT INTO effects VALUES ('{event['id']}')")
            if fails:
                raise OSError("the receiver is killed")
        return new

    def effects(self):
        with self.connect() as connection:
            return [row[0] for row in self.execute(connection, "SELECT id FROM effects")]


@contextmanager
def transaction(connect):
    """Do as `with connection` of psycopg does, for a driver that does not close."""
    with closing(connect()) as connection, connection:
        yield connection


def of_sqlite(path):
    return Receiver(
        Inbox(),
        lambda: transaction(lambda: sqlite3.connect(path)),
        lambda connection, statement: connection.execute(statement).fetchall(),
    )


def execute(connection, statement):
    done = connection.execute(statement)
    return done.fetchall() if done.description else []


def execute_text(connection, statement):
    done = connection.execute(sqlalchemy.text(statement))
    return done.fetchall() if done.returns_rows else []


def of_sqlalchemy(url):
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    return Receiver(SQLAlchemyInbox(sqlalchemy.MetaData()), engine.begin, execute_text)


def of_session(url):
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    session = sqlalchemy.orm.sessionmaker(engine)
    return Receiver(SQLAlchemyInbox(sqlalchemy.MetaData()), session.begin, execute_text)


@pytest.fixture
def database(database_url):
    with a_database(database_url) as url:
        yield url


KINDS = ["sqlite", "psycopg", "sqlalchemy-sqlite", "sqlalchemy-postgres", "session-postgres"]


@pytest.fixture(params=KINDS)
def receiver(request, tmp_path):
    path, kind = tmp_path / "receiver.sqlite", request.param
    if kind == "sqlite":
        return of_sqlite(path)
    if kind == "sqlalchemy-sqlite":
        return of_sqlalchemy(f"sqlite:///{path}")
    url = request.getfixturevalue("database")
    if kind == "psycopg":
        return Receiver(Inbox("public.els_inbox"), lambda: psycopg.connect(url), execute)
    of = of_session if kind == "session-postgres" else of_sqlalchemy
    return of(url.replace("postgresql://", "postgresql+psycopg://"))


@pytest.fixture
def events():
    """The events of one batch, and a refusal of none."""
    els = FakeELS(["EssaySlotAssigned", "MessageRefused"])
    els.sender.cancel_batch("nobody", reason="r")
    els.sender.register_batch("b", ["e-1", "e-2"], course_code="c", user_id="u")
    for number in (1, 2, 3):
        els.sender.assign_content(
            "b",
            text_storage_id=f"text-{number}",
            file_upload_id=f"file-{number}",
            original_file_name="x",
            file_size_bytes=1,
        )
    return els.events


def test_each_event_has_one_effect(receiver, events):
    assert [receiver.receive(event) for event in events * 2] == [True] * 6 + [False] * 6
    assert receiver.effects() == [event["id"] for event in events]


def test_an_effect_that_fails_is_made_by_the_next_delivery(receiver, events):
    with pytest.raises(OSError, match="killed"):
        receiver.receive(events[1], fails=True)

    assert receiver.effects() == []
    assert receiver.receive(events[1])


def test_deliveries_at_once_have_one_effect(receiver, events):
    values = []
    threads = [Thread(target=lambda: values.append(receiver.receive(events[1]))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(values) == [False] * 5 + [True]
    assert len(receiver.effects()) == 1


def test_it_tells_what_is_missing_and_what_came_too_late(receiver, events):
    refusal, first, second, _, _, last = events
    with receiver.connect() as connection:
        for event in (last, second, refusal):
            assert receiver.inbox.is_new(connection, event)

        assert receiver.inbox.missing_before(connection, last) == [1, 3, 4]
        assert receiver.inbox.is_overtaken(connection, first)
        assert not receiver.inbox.is_overtaken(connection, last)
        assert receiver.inbox.missing_before(connection, refusal) == []
        assert not receiver.inbox.is_overtaken(connection, refusal)


def test_it_forgets_what_is_old(receiver, events):
    for event in events:
        receiver.receive(event)
    now = datetime.now(UTC)
    with receiver.connect() as connection:
        assert receiver.inbox.forget(connection, now - timedelta(minutes=5)) == 0
        assert receiver.inbox.forget(connection, now + timedelta(minutes=5)) == 6
        assert receiver.inbox.is_new(connection, events[0])


# --- a connection that commits by itself ----------------------------------------------------------


def test_sqlite_that_commits_by_itself_is_refused(tmp_path, events):
    inbox = Inbox()
    with closing(sqlite3.connect(tmp_path / "x", isolation_level=None)) as connection:
        inbox.create_table(connection)
        with pytest.raises(NoTransaction):
            inbox.is_new(connection, events[0])

        connection.execute("BEGIN")
        assert inbox.is_new(connection, events[0])
        connection.execute("ROLLBACK")


def test_psycopg_that_commits_by_itself_is_refused(database, events):
    inbox = Inbox()
    with psycopg.connect(database, autocommit=True, row_factory=dict_row) as connection:
        inbox.create_table(connection)
        with pytest.raises(NoTransaction):
            inbox.is_new(connection, events[1])

        with connection.transaction():
            assert inbox.is_new(connection, events[2])
            assert inbox.missing_before(connection, events[2]) == [1]


def test_sqlalchemy_that_commits_by_itself_is_refused(database, events):
    url = database.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(
        url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    inbox = SQLAlchemyInbox(sqlalchemy.MetaData())
    with engine.connect() as connection:
        inbox.create_table(connection)
        with pytest.raises(NoTransaction):
            inbox.is_new(connection, events[0])


# --- other connections ----------------------------------------------------------------------------


def test_a_connection_that_is_awaited_is_refused(database, events):
    url = database.replace("postgresql://", "postgresql+psycopg://")
    inbox, alike = Inbox(), SQLAlchemyInbox(sqlalchemy.MetaData())

    async def receive():
        async with await psycopg.AsyncConnection.connect(database) as connection:
            with pytest.raises(TypeError, match="AsyncConnection is asynchronous"):
                inbox.is_new(connection, events[0])
        engine = create_async_engine(url, poolclass=sqlalchemy.NullPool)
        async with AsyncSession(engine) as session:
            with pytest.raises(TypeError, match="AsyncSession is asynchronous"):
                alike.is_new(session, events[0])
            await session.run_sync(alike.create_table)
            return [await session.run_sync(alike.is_new, event) for event in events[:1] * 2]

    assert asyncio.run(receive()) == [True, False]


def test_it_takes_a_connection_of_a_class_that_inherits_the_drivers(database, events):
    class Traced(psycopg.Connection):
        pass

    inbox = Inbox()
    with Traced.connect(database) as connection:
        inbox.create_table(connection)
        assert [inbox.is_new(connection, event) for event in events[:1] * 2] == [True, False]


def test_it_takes_a_scoped_session_and_the_schema_of_a_table(database, events):
    inbox = SQLAlchemyInbox(sqlalchemy.MetaData(), "receiver.els_inbox")
    with psycopg.connect(database) as connection:
        connection.execute("CREATE SCHEMA receiver")
        Inbox("receiver.els_inbox").create_table(connection)
    url = database.replace("postgresql://", "postgresql+psycopg://")
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    session = sqlalchemy.orm.scoped_session(sqlalchemy.orm.sessionmaker(engine))

    assert [inbox.is_new(session, event) for event in events[:1] * 2] == [True, False]

    session.remove()
    assert inbox.table.name == "els_inbox"


@pytest.mark.parametrize("name", ["", "a b", "a;drop", "a.b.c", "å", 'a"'])
def test_a_name_that_is_none_of_a_table_is_refused(name):
    with pytest.raises(ValueError, match="no name of a table"):
        Inbox(name)
