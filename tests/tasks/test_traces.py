"""Spans of the tasks: what they hang together by, and what they never tell."""

import logging

import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from psycopg.errors import CheckViolation

from core import logs, tracing
from core.lifecycle import Lifecycle
from core.settings import Settings
from tasks import resources as program
from tasks.app import app
from tasks.resources import resources
from tasks.tracing import Collector, Traces, statement_name
from tests.core import looks
from tests.core.crowd import until
from tests.core.story import fill, texts
from tests.factories import content, contents, new_batch, registration

REGISTER, ASSIGN, UPLOAD = "els.register_batch", "els.assign_content", "els.assign_contents"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
UPSTREAM = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


class Spans:
    """What was traced: read once the work is done."""

    def __init__(self, traces, exporter):
        self.traces, self._exporter = traces, exporter

    def all(self):
        self.traces.flush()
        return self._exporter.get_finished_spans()

    def of_upstream(self):
        return [s for s in self.all() if f"{s.context.trace_id:032x}" == TRACE]


def span_id(span):
    return f"{span.context.span_id:016x}"


def forget_stores():
    if resources.cache_info().currsize:
        resources().pool.close()
        resources.cache_clear()


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    traces = Traces(lambda: exporter, frozenset({"els.sweep", "els.relay"}))
    monkeypatch.setattr(program, "traces", lambda: traces)
    forget_stores()
    traces.connect()
    yield Spans(traces, exporter)
    traces.disconnect()
    forget_stores()


def test_a_task_goes_on_in_its_senders_trace_down_to_claim_and_statement(spans, send, batch_id):
    send(REGISTER, registration(batch_id, 2))
    event = content(batch_id)

    value = send(ASSIGN, event, headers=UPSTREAM)

    *calls, task = [span for span in spans.of_upstream() if span.name != "SCRIPT LOAD"]
    assert (task.name, f"{task.parent.span_id:016x}") == (ASSIGN, SPAN)
    assert [call.name for call in calls][-2:] == ["claim", "place"]
    assert {call.parent.span_id for call in calls} == {task.context.span_id}
    told = {name.removeprefix("els."): value for name, value in task.attributes.items()}
    assert told.items() >= {**value, "correlation_id": event["correlation_id"]}.items()


def test_completion_and_readiness_are_in_the_trace_of_what_took_the_last_slot(
    spans, send, conn, batch_id, messages
):
    send(REGISTER, registration(batch_id, 2))
    send(ASSIGN, content(batch_id, "text-1"), headers={"traceparent": f"00-{'1' * 32}-{SPAN}-01"})

    send(ASSIGN, content(batch_id, "text-2"), headers=UPSTREAM)

    found = {span.name: span for span in spans.of_upstream()}
    assert {"els.seal_slots", "els.seal_books", "els.announce_ready", "announce"} <= found.keys()
    announced, delivered = found["els.announce_ready"], found["deliver BatchEssaysReady"]
    ready = looks.events(conn, batch_id)[-1]
    assert ready["traceparent"] == f"00-{TRACE}-{span_id(announced)}-01"
    assert delivered.parent.span_id == announced.context.span_id
    message = messages()[-1]
    assert message["kwargs"]["event"]["traceparent"] == ready["traceparent"]
    assert message["headers"]["traceparent"] == f"00-{TRACE}-{span_id(delivered)}-01"


@pytest.mark.parametrize("kind", ["excess", "slot"])
def test_every_kind_of_event_tells_where_it_came_from(spans, send, conn, monkeypatch, kind):
    batch_id = new_batch()
    routes = {"EssaySlotAssigned": [{"task": "a.b", "queue": "c"}]} if kind == "slot" else {}
    settings = program.settings.model_copy(
        update={"event_routes": Settings(event_routes=routes).event_routes}
    )
    monkeypatch.setattr(program, "settings", settings)
    send(REGISTER, registration(batch_id, 1 if kind == "excess" else 3))

    send(UPLOAD, contents(batch_id, texts(2)), headers=UPSTREAM)

    told = [row for row in looks.events(conn, batch_id) if "Completed" not in row["type"]]
    assert told
    assert {row["traceparent"][3:35] for row in told} == {TRACE}


def test_who_delivers_later_goes_on_in_the_trace_of_the_event(
    spans, send, batch_id, messages, valkey
):
    send(REGISTER, registration(batch_id, 1))
    valkey.set("els.events", "no list")  # the broker can take nothing on this queue
    send(ASSIGN, content(batch_id), headers=UPSTREAM)
    valkey.delete("els.events")

    while app.tasks["els.relay"].apply().get():
        pass  # events of other tests may go first

    sent = [m for m in messages() if batch_id in str(m["headers"])]
    assert len(sent) == 2
    assert {m["headers"]["traceparent"][3:35] for m in sent} == {TRACE}


def test_an_event_that_was_traced_is_delivered_so_by_who_traces_nothing(
    spans, send, conn, batch_id, messages, valkey
):
    send(REGISTER, registration(batch_id, 1))
    valkey.set("els.events", "no list")
    send(ASSIGN, content(batch_id), headers=UPSTREAM)
    valkey.delete("els.events")
    spans.traces.disconnect()

    app.tasks["els.relay"].apply().get()

    stored = {row["traceparent"] for row in looks.events(conn, batch_id)}
    sent = [m for m in messages() if batch_id in str(m["headers"])]
    assert {m["headers"]["traceparent"] for m in sent} == stored
    assert {at[3:35] for at in stored} == {TRACE}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        "ff" * 40,
        7,
        ["a"],
        {"a": 1},
    ],
    ids=str,
)
def test_a_malformed_traceparent_hurts_nobody(spans, send, batch_id, header):
    send(REGISTER, registration(batch_id, 2))

    value = send(ASSIGN, content(batch_id), headers={"traceparent": header})

    assert value["outcome"] == "assigned"
    task = spans.all()[-1]
    assert (task.name, task.parent) == (ASSIGN, None)


def test_no_span_tells_what_is_in_a_file_or_what_an_error_says(spans, send, batch_id):
    send(REGISTER, registration(batch_id, 1, user_id="teacher-Svensson"))
    private = {"original_file_name": "Anna Andersson.txt"}
    event = content(batch_id, **private)
    send(ASSIGN, event)
    send(ASSIGN, {**event, "file_size_bytes": 1, "original_file_name": "Anna-Karin.txt"})
    refused = "UPDATE essay_states SET current_status = 'awaiting_content' WHERE batch_id = %s"
    with (
        tracing.span("part"),
        pytest.raises(CheckViolation, match="Anna"),
        resources().pool.connection() as connection,
    ):
        connection.execute(refused, [batch_id])
    send(ASSIGN, content(batch_id, "text-2", **private, surprise="Anna"))

    told = "".join(span.to_json() for span in spans.all())

    assert "IDEMPOTENCY_CONFLICT" in told
    assert "CheckViolation" in told
    assert "VALIDATION_ERROR" in told
    assert "Anna" not in told
    assert "Svensson" not in told


def test_a_retry_is_in_the_trace_of_what_is_retried(spans, send, batch_id, claimed_by_another):
    send(REGISTER, registration(batch_id, 1))

    with claimed_by_another(batch_id):
        value = send(ASSIGN, content(batch_id), headers=UPSTREAM)

    assert value["outcome"] == "assigned"
    states = [s.attributes["celery.state"] for s in spans.of_upstream() if s.name == ASSIGN]
    assert sorted(set(states)) == ["RETRY", "SUCCESS"]


def sweeps(conn, batch_id):
    """Let the sweep tick, which may find that another session sweeps; return what it announced."""
    app.tasks["els.sweep"].apply().get()
    return looks.events(conn, batch_id)


def test_ticks_leave_no_span_unless_they_mend(spans, pool, slots, conn, batch_id):
    fill(Lifecycle(pool, slots), batch_id, 1)
    app.tasks["els.relay"].apply().get()
    until(lambda: sweeps(conn, batch_id))
    app.tasks["els.sweep"].apply().get()

    found = spans.all()

    mended = [s for s in found if s.attributes.get("els.batch_id") == batch_id and not s.parent]
    assert [span.name for span in mended] == ["sweep full_not_announced"]
    assert not [s for s in found if s.name in {"els.sweep", "els.relay"}]
    assert {row["traceparent"][3:35] for row in looks.events(conn, batch_id)} == {
        f"{mended[0].context.trace_id:032x}"
    }


def test_statements_are_prepared_as_before(spans):
    with resources().pool.connection() as traced:
        for _ in range(3):
            traced.execute("SELECT FROM essay_states WHERE batch_id = %s", ["batch"])
        prepared = traced.execute("SELECT statement FROM pg_prepared_statements").fetchall()

    assert any("essay_states" in row["statement"] for row in prepared)
    assert type(traced.cursor()).__name__ == "Traced"


def test_log_lines_carry_the_trace(spans, send, batch_id, capsys):
    root = logging.getLogger()
    before, level, config = root.handlers, root.level, structlog.get_config()
    try:
        logs.configure(Settings(log_format="json"))
        send(REGISTER, registration(batch_id, 1), headers=UPSTREAM)
    finally:
        root.handlers, root.level = before, level
        structlog.configure(**config)

    (line,) = [line for line in capsys.readouterr().err.splitlines() if '"registered"' in line]
    (task,) = [s for s in spans.of_upstream() if s.name == REGISTER]
    assert f'"trace_id": "{TRACE}"' in line
    assert f'"span_id": "{span_id(task)}"' in line


def test_without_an_endpoint_nothing_is_traced(send, conn, batch_id, messages):
    assert program.traces() is None

    send(REGISTER, registration(batch_id, 1))
    send(ASSIGN, content(batch_id), headers=UPSTREAM)

    assert {row["traceparent"] for row in looks.events(conn, batch_id)} == {None}
    assert not [m for m in messages() if "traceparent" in m["headers"]]
    with resources().pool.connection() as connection:
        assert type(connection.cursor()).__name__ == "Cursor"


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("SELECT a FROM essay_states WHERE x", "SELECT essay_states"),
        ("\n   DELETE FROM repairs WHERE", "DELETE repairs"),
        ("UPDATE event_outbox SET a = 1", "UPDATE event_outbox"),
        ("INSERT INTO repairs (a) VALUES (1)", "INSERT repairs"),
        ("SELECT pg_advisory_xact_lock(1)", "SELECT pg_advisory_xact_lock"),
        ("SELECT 1", "SELECT"),
        ("", "SQL"),
    ],
)
def test_a_statement_is_named_by_its_verb_and_table(query, name):
    assert statement_name(query) == name


def test_a_collector_that_is_away_is_said_once_and_waited_for_once(logged):
    away = Collector("http://127.0.0.1:9")

    results = {away.export([]).name for _ in range(100)}

    assert results == {"FAILURE"}
    assert [line["event"] for line in logged] == ["traces_not_sent"]
    away.shutdown()
