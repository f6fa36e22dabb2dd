"""Every block of the kit's README runs, in their order, in one module."""

import re
import sqlite3
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import els_client
from durable_redis import Transport
from els_client.fake import FakeELS
from els_client.receiver import CATCH_ALL
from tests.clients.python.conftest import Broker

README = (Path(els_client.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BROKER = "redis://localhost:6379/0"


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Run the blocks once, on a broker of ours; return what they define, print and send."""
    home = tmp_path_factory.mktemp("readme")
    broker, printed, names = Broker(home / "broker"), StringIO(), {"__name__": "readme"}
    broker.start()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(home)
        for number, block in enumerate(BLOCKS):
            code = compile(block.replace(BROKER, broker.url), f"README block {number}", "exec")
            exec(code, names)
        yield names | {"printed": printed.getvalue(), "messages": broker.messages()}
    names["app"].close()
    broker.stop()


def test_the_readme_sends(read):
    tasks = [headers["task"] for headers, _ in read["messages"]]

    assert tasks == ["els.register_batch", "els.assign_content"]
    assert "Spooled(messages=0" in read["printed"]


def test_the_readme_receives_once(read):
    read["test_a_batch_goes_on_at_its_deadline"](FakeELS())

    with closing(sqlite3.connect("pipeline.sqlite")) as db:
        assert db.execute("SELECT * FROM pipeline").fetchall() == [("b", 1)]
    assert CATCH_ALL in read["app"].tasks


def test_the_readme_receives_once_with_sqlalchemy(read):
    fake = FakeELS()
    fake.on_event(read["receive_with_sqlalchemy"], times=2)
    fake.sender.register_batch("b", ["e"], course_code="c", user_id="u")
    fake.sender.assign_content(
        "b", text_storage_id="t", file_upload_id="f", original_file_name="n", file_size_bytes=1
    )

    with closing(sqlite3.connect("pipelines.sqlite")) as db:
        assert db.execute("SELECT * FROM pipelines").fetchall() == [("b", 1)]


def test_the_readme_sets_the_durable_transport(read):
    with read["app"].connection_for_read() as connection:
        assert isinstance(connection.transport, Transport)


def test_the_readme_names_what_there_is(read):
    named = re.findall(r"`(\w+)(?:\([\w, ]*\))?`", README)
    known = {
        name
        for owner in (
            els_client,
            els_client.Upstream,
            els_client.Sender,
            FakeELS,
            els_client.events,
            els_client.receiver,
            *(read[name] for name in ("Inbox",)),
        )
        for name in dir(owner)
    }

    methods = [name for name in named if name.islower() and "_" in name]
    others = {"create_all", "event_id", "fake_els"}
    others |= {"spool_messages", "spool_bytes", "durable_redis"}
    assert len(methods) > 10
    assert [name for name in methods if name not in known | others] == []
