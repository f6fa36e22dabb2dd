"""The live pages: what changes is told, once, to whoever looks, at the cost of one viewer."""

import json
import re
import socket
import time
import urllib.parse
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.metrics import MINUTES
from core.signs.heartbeat import write_sign
from migrations import upgrade
from ops.stack.embedded import Postgres, Valkey
from ops.stack.ports import free_port
from ops.web.rendering import row_id
from ops.web.stream import SECTIONS, TICK_S
from tests import factories as make
from tests.core import story
from tests.live.conftest import until
from tests.ops.served import Served

VIEWERS = 200
TICK = timedelta(seconds=TICK_S)


def told_rows(event):
    return set(re.findall(r'hx-target="#(row-\w+)"', event.get("data", "")))


def test_a_filling_batch_moves_its_row_and_only_its_row(served):
    filling, still = make.new_batch(), make.new_batch()
    for batch in (still, filling):
        story.register(served.lifecycle, batch, 4)
    with served.viewer() as event:
        until(lambda: filling in event().get("data", ""), what="the batch is on the page")

        story.assign(served.lifecycle, filling)
        rows = until(lambda: told_rows(event()), what="a row has changed")

    assert rows == {row_id(filling)}


def test_a_new_batch_comes_onto_the_first_page(served):
    batch = make.new_batch()
    with served.viewer() as event:
        event()

        story.register(served.lifecycle, batch, 4)
        until(lambda: f"/batches/{batch}" in event().get("data", ""), what="the batch is shown")


def test_a_search_follows_what_it_found(served):
    found, other = make.new_batch(), make.new_batch()
    for batch in (found, other):
        story.register(served.lifecycle, batch, 4)
    with served.viewer(f"/stream?q={found}") as event:
        until(lambda: told_rows(event()) == {row_id(found)}, what="the row is told")

        story.assign(served.lifecycle, other)
        story.assign(served.lifecycle, found)
        rows = until(lambda: told_rows(event()), what="a row has changed")

    assert rows == {row_id(found)}


def test_a_viewer_that_comes_back_gets_only_what_it_missed(served):
    batches = [make.new_batch() for _ in range(2)]
    for batch in batches:
        story.register(served.lifecycle, batch, 4)
    with served.viewer() as stays:
        with served.viewer() as event:
            seen = until(
                lambda: (e := event()) and batches[1] in e.get("data", "") and e,
                what="both are shown",
            )
        story.assign(served.lifecycle, batches[0])
        until(lambda: row_id(batches[0]) in stays().get("data", ""), what="the change is told")

        with served.viewer(Last_Event_ID=seen["id"]) as event:
            back = event()

    assert told_rows(back) == {row_id(batches[0])}


def test_a_viewer_of_another_process_gets_everything(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 4)

    for junk in ("18c2f-7", "nonsense", "-", "9" * 400):
        with served.viewer(Last_Event_ID=junk) as event:
            until(lambda: f"/batches/{batch}" in event().get("data", ""), what="all is told")


def test_the_page_of_a_batch_is_told_to_ask_again(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 4)
    with served.viewer(f"/stream?batch={batch}") as event:
        until(lambda: event().get("event") == "changed", what="it asks at first")

        story.assign(served.lifecycle, batch)
        until(lambda: event().get("event") == "changed", what="it asks again")


@pytest.mark.parametrize("name", ["workers", "activity"])
def test_a_section_is_told_when_it_changes(served, monkeypatch, name):
    monkeypatch.setitem(SECTIONS, name, replace(SECTIONS[name], every_s=0.0))
    with served.viewer(f"/stream?section={name}") as event:
        until(lambda: f'hx-target="#{name}"' in event().get("data", ""), what="it is told at first")
        if name == "workers":
            served.lives()
            write_sign(served.client, "worker@test", {"at": time.time(), "task": "els.new_task"})
        else:
            served.client.hset(MINUTES, int(time.time() / 60), 4321)

        seen = {"workers": "els.new_task", "activity": "4\u202f321 in all"}[name]
        until(lambda: seen in event().get("data", ""), what="it is told again")
    served.client.delete(MINUTES)


def test_a_section_is_read_for_all_viewers_and_not_each_second(served, monkeypatch):
    reads = []
    counting = replace(SECTIONS["activity"], read=lambda _: reads.append(1) or {"spans": {}})
    monkeypatch.setitem(SECTIONS, "activity", counting)
    served.stream._sections.clear()
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(served.viewer("/stream?section=activity"))
        tick = served.stream.now.tick
        until(lambda: served.stream.now.tick >= tick + 4, what="some ticks have passed")

    assert len(reads) == 1


def test_there_is_no_other_section(served):
    assert served.get("/stream?section=kitchen").status == 400


def lent(served):
    """Count the connections to Postgres that the page has borrowed."""
    return served.stream.connections.pool.get_stats().get("requests_num", 0)


def looks(served, viewers):
    """Tell what a tick costs, in connections borrowed, with so many viewers."""
    with ExitStack() as stack:
        for _ in range(viewers):
            viewer = stack.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            viewer.sendall(b"GET /stream HTTP/1.1\r\nHost: els\r\n\r\n")
        until(lambda: len(served.stream.subscriptions) == viewers, what="all watch")
        tick, before = served.stream.now.tick, lent(served)
        until(lambda: served.stream.now.tick >= tick + 3, what="three ticks have passed")
        ticks = served.stream.now.tick - tick
        more = lent(served) - before
    until(lambda: not served.stream.subscriptions, what="all are gone")
    return more / ticks


def test_two_hundred_viewers_cost_what_one_costs(served):
    one, many = looks(served, 1), looks(served, VIEWERS)

    assert many <= one * 1.5
    assert many < 4


def test_next_to_nothing_is_read_while_nobody_watches(served):
    until(lambda: not served.stream.subscriptions, what="nobody watches")
    began, before = served.stream.throughput.samples[-1], lent(served)

    until(lambda: served.stream.throughput.samples[-1][0] - began[0] > 3 * TICK, what="3 ticks")

    assert lent(served) - before <= 1


# --- servers that are away ------------------------------------------------------------------------


def test_the_page_names_the_server_that_is_away_and_recovers(tmp_path):
    postgres = Postgres(tmp_path / "postgres", free_port(), "test-password")
    valkey = Valkey(tmp_path / "valkey", free_port(), "test-password")
    with ExitStack() as stack:
        for server in (postgres, valkey):
            server.start()
            stack.callback(server.stop)
        upgrade(postgres.url)
        served = stack.enter_context(Served(postgres.url, valkey.url))
        batch = make.new_batch()
        story.register(served.lifecycle, batch, 2)
        event = stack.enter_context(served.viewer())

        postgres.stop()
        page, health = served.get("/"), served.get("/health/batches")
        until(lambda: "Postgres does not answer" in event().get("data", ""), what="viewers know")
        postgres.start()
        until(lambda: "Open" in event().get("data", ""), what="viewers see it recover")

        assert page.status == 503
        assert "Postgres does not answer" in page.words
        assert "els env" in page.words
        assert (health.status, json.loads(health.text)["status"]) == (503, "unavailable")
        assert served.get("/").status == 200

        valkey.stop()
        page = until(lambda: (p := served.get("/")).status == 503 and p, what="it is noticed")
        valkey.start()

        assert "Redis does not answer" in page.words
        assert batch in page.batches
        until(lambda: served.get("/").status == 200, what="it recovers")


def test_the_page_ends_at_once_though_somebody_watches(served):
    page = Served(served.settings.database_url, served.settings.redis_url)
    with page, page.viewer() as event:
        event()
        page.server.should_exit = True

        page.thread.join(6)

        assert not page.thread.is_alive()


# --- whatever is asked ----------------------------------------------------------------------------

JUNK = st.one_of(
    st.text(max_size=30),
    st.text(max_size=300),
    st.sampled_from(
        ["\0", "'", "%", "~", "infinity~", "0001-01-01~x", "9999-12-31T23:59:59+14:00~x", "-1"]
    ),
    st.integers().map(str),
    st.sampled_from(["batch", "-age", "deadline", "code", "-written", "2h", "3d", "2026-01-31"]),
)
PATHS = st.one_of(
    st.sampled_from(["/", "/dead-letters", "/outbox", "/readyz", "/health/batches", "/healthz"]),
    JUNK.map(lambda junk: f"/batches/{quote(junk)}"),
    JUNK.map(lambda junk: f"/static/{quote(junk)}"),
    JUNK.map(lambda junk: f"/{quote(junk)}"),
)
NAMES = st.sampled_from(
    [
        *("q", "state", "after", "sort", "from", "to", "slot", "batch", "task", "code", "type"),
        *("all", "failing", "counter"),
    ]
)


def quote(text):
    return urllib.parse.quote(text, safe="", errors="replace")


@settings(max_examples=250)
@given(
    PATHS,
    st.lists(st.tuples(NAMES, JUNK), max_size=4),
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS"]),
)
def test_no_address_makes_it_fail(served, path, params, method):
    query = "&".join(f"{name}={quote(junk)}" for name, junk in params)

    answer = served.get(f"{path}?{query}", method)

    assert answer.status in {200, 307, 400, 404, 405}
    assert "Traceback" not in answer.text


@settings(max_examples=100)
@given(st.binary(max_size=60).filter(lambda raw: b"\r" not in raw and b"\n" not in raw))
def test_no_bytes_make_it_fail(served, raw):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(b"GET /" + raw + b" HTTP/1.1\r\nHost: els\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))

    assert not answer.startswith(b"HTTP/1.1 5")
    assert b"Traceback" not in answer


def test_a_password_is_asked_for_everywhere_but_where_life_is_told(served):
    page = Served(served.settings.database_url, served.settings.redis_url, ops_auth="ann:secret")
    with page:
        refused = [page.get(path).status for path in ("/", "/stream", "/outbox", "/readyz")]
        let_in = page.get("/", authorization="Basic YW5uOnNlY3JldA==").status

        assert refused == [401] * 4
        assert let_in == 200
        assert page.get("/healthz").status == 200
