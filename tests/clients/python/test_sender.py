"""A sender loses nothing while the broker is away, and keeps the order."""

import os
import resource
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Thread
from uuid import UUID, uuid4

import pytest

from core.catalogue import TASKS
from core.parsing import parse
from els_client import BrokerAway, InvalidEvent, Sender, SpoolFull, SpoolUnusable
from els_client.messages import Association, Content
from els_client.spool import Spool
from els_client.upstream import checked
from tests.clients.python import sending
from tests.core.crowd import until
from tests.core.test_events import BAD
from tests.factories import EXAMPLES, essay_ids

STORED = {
    "text_storage_id": "text-1",
    "file_upload_id": "file-1",
    "original_file_name": "Uppsats åäö.docx",
    "file_size_bytes": 1200,
}
CALLS = {
    "els.register_batch": lambda s: s.register_batch(
        "b", essay_ids(2), course_code="ENG5", user_id="lärare", metadata={"a": [None]}
    ),
    "els.assign_content": lambda s: s.assign_content("b", **STORED),
    "els.assign_contents": lambda s: s.assign_contents("b", [Content(**STORED), STORED]),
    "els.reject_content": lambda s: s.reject_content(
        "b",
        file_upload_id="file-2",
        original_file_name="x.pdf",
        validation_error_code="EMPTY_CONTENT",
    ),
    "els.confirm_students": lambda s: s.confirm_students(
        "b",
        class_id="7b",
        associations=[
            Association(
                essay_id="e",
                confidence_score=1.0,
                validation_method="human",
                validated_at="2026-11-26T08:40:00Z",
            )
        ],
    ),
    "els.cancel_batch": lambda s: s.cancel_batch("b", reason="the teacher asked"),
    "els.amend_batch": lambda s: s.amend_batch("b", deadline_s=3600),
}


def reasons(events):
    return [event["reason"] for event in events]


def cancel(sender, *names):
    return [sender.cancel_batch("b", reason=str(name)) for name in names]


# --- what is sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_service_takes_what_a_method_sends(broker, sender, task):
    sent = CALLS[task](sender)

    [(headers, event)] = broker.messages()
    read, _ = parse(TASKS[task].model, task, event, TASKS[task].limit)
    assert headers["task"] == task
    assert headers["ignore_result"] is True
    assert read.event_id == sent.event_id
    assert not sent.spooled


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"els.amend_batch"}))
def test_the_same_call_again_has_the_same_id(broker, sender, task):
    first, again = CALLS[task](sender), CALLS[task](sender)

    assert first.event_id == again.event_id
    assert first.message.task_id != again.message.task_id


def test_an_amendment_is_new_unless_it_is_given_an_id(sender):
    assert CALLS["els.amend_batch"](sender).event_id != CALLS["els.amend_batch"](sender).event_id
    given = uuid4()
    assert sender.amend_batch("b", deadline_s=1, event_id=given).event_id == given


def test_messages_of_a_batch_share_a_correlation_id_unless_one_is_given(broker, sender):
    given = uuid4()
    cancel(sender, "first")
    sender.cancel_batch("b", reason="second", correlation_id=given)
    sender.assign_content("b", **STORED)

    first, second, third = [UUID(event["correlation_id"]) for event in broker.events()]
    assert first == third
    assert second == given


def test_monitors_see_no_name(broker, sender):
    sender.assign_content("b", **STORED)

    [(headers, _)] = broker.messages()
    assert "Uppsats" not in str(headers)


@pytest.mark.parametrize("name", BAD)
def test_what_the_service_would_refuse_is_not_sent(broker, sender, name):
    task, change = BAD[name]

    with pytest.raises(InvalidEvent) as caught:
        sender.send(task, EXAMPLES[task] | change)

    assert str(caught.value).startswith(task)
    assert broker.messages() == []
    assert sender.spooled().messages == 0


@pytest.mark.parametrize(
    ("batch_id", "reason"),
    [("two words", "r"), ("b\ud800", "r"), (None, "r"), ("b", "r\ud800"), ("b", ""), ("b", b"r")],
    ids=repr,
)
def test_a_method_refuses_what_is_no_value_of_its_field(sender, batch_id, reason):
    with pytest.raises(InvalidEvent, match=r"^els\.cancel_batch: "):
        sender.cancel_batch(batch_id, reason=reason)


@pytest.mark.parametrize("url", ["", "http://broker", "localhost:6379"])
def test_a_url_of_no_broker_is_refused(url):
    with pytest.raises(ValueError, match="must begin with one of redis://"):
        Sender(url)


@pytest.mark.parametrize("port", ["no", "99999", "-1", "a/b@h:1"])
@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_url_whose_port_is_none_is_refused(scheme, port):
    with pytest.raises(ValueError, match="the port of the broker's URL must be a number"):
        Sender(f"{scheme}://:sesame@127.0.0.1:{port}")


@pytest.mark.parametrize(
    "ids", ["efg", {"e", "f"}, iter(["e"]), None], ids=["text", "set", "iterator", "none"]
)
def test_essays_are_a_list_whose_order_is_always_the_same(sender, ids):
    with pytest.raises(TypeError, match=f"a list of ids, not {type(ids).__name__}"):
        sender.register_batch("batch", ids, course_code="c", user_id="u")


def test_a_task_that_is_not_there_is_named(sender):
    with pytest.raises(InvalidEvent, match=r"no task els\.assign; it has els\.register_batch"):
        sender.send("els.assign", EXAMPLES["els.assign_content"])


def test_an_outcome_cannot_be_waited_for_unless_results_are_asked_for(sender):
    with pytest.raises(ValueError, match="results"):
        CALLS["els.cancel_batch"](sender).outcome()


def test_results_need_a_backend(broker):
    with pytest.raises(ValueError, match="no result backend"):
        Sender(broker.url, results=True)


def test_a_result_backend_that_refuses_says_why_there_is_no_outcome(broker):
    results = broker.url.replace("test-password", "wrong")
    with Sender(broker.url, results=results) as sender:
        sent = CALLS["els.cancel_batch"](sender)

        with pytest.raises(TimeoutError, match=r"no outcome within 0\.1 s: .* username-password"):
            sent.outcome(timeout_s=0.1)


# --- the broker is away ---------------------------------------------------------------------------


def test_messages_wait_in_order_and_go_on_when_the_broker_is_back(broker, sender):
    cancel(sender, 0)
    broker.stop()
    sent = cancel(sender, 1, 2, 3)
    waiting = sender.spooled()
    broker.start()
    sent += cancel(sender, 4)
    until(lambda: sender.spooled().messages == 0)
    sent += cancel(sender, 5)

    assert [each.spooled for each in sent] == [True, True, True, True, False]
    assert (waiting.messages, waiting.oldest_s >= 0) == (3, True)
    assert "Connection refused" in waiting.last_error
    assert sender.spooled().last_error is None
    assert reasons(broker.events()) == ["0", "1", "2", "3", "4", "5"]


def test_flush_waits_for_the_broker_and_says_what_is_left(broker, sender):
    broker.stop()
    cancel(sender, 1, 2)

    assert sender.flush(timeout_s=0.1).messages == 2
    broker.start()
    assert sender.flush().messages == 0

    assert reasons(broker.events()) == ["1", "2"]


def test_a_repeat_of_what_waits_does_not_wait_twice(broker, sender):
    broker.stop()
    first, again = cancel(sender, "same", "same")
    broker.start()
    sender.flush()

    assert first.message.task_id == again.message.task_id
    assert reasons(broker.events()) == ["same"]


def test_the_next_process_sends_what_waits(broker, spool):
    broker.stop()
    with Sender(broker.url, spool=spool) as sender:
        cancel(sender, 1, 2)
    broker.start()

    with Sender(broker.url, spool=spool) as sender:
        until(lambda: sender.spooled().messages == 0)

    assert reasons(broker.events()) == ["1", "2"]


def test_without_a_spool_a_sender_raises(broker):
    broker.stop()

    with Sender(broker.url) as sender, pytest.raises(BrokerAway, match="Connection refused"):
        cancel(sender, 1)


def test_a_full_spool_takes_nothing_more_and_loses_nothing(broker, spool):
    broker.stop()
    with Sender(broker.url, spool=spool, spool_messages=2) as sender:
        cancel(sender, 1, 2)
        with pytest.raises(SpoolFull, match="2 of at most 2 messages"):
            cancel(sender, 3)
        broker.start()
        sender.flush()

    assert reasons(broker.events()) == ["1", "2"]


def test_a_spool_is_bounded_by_bytes(broker, spool):
    broker.stop()
    with Sender(broker.url, spool=spool, spool_bytes=1000) as sender:
        with pytest.raises(SpoolFull):
            cancel(sender, *range(100))
        assert 500 < sender.spooled().bytes <= 1000


def test_a_spool_that_is_none_is_refused(tmp_path, broker):
    (tmp_path / "file").write_text("no database, but long enough to be looked at " * 100)

    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path):
        with pytest.raises(SpoolUnusable, match=str(path)):
            Sender(broker.url, spool=path)


def test_a_file_of_another_program_is_no_spool(tmp_path, broker):
    with closing(sqlite3.connect(tmp_path / "other")) as other, other:
        other.execute("CREATE TABLE messages (text)")

    with pytest.raises(SpoolUnusable, match="move this one away"):
        Sender(broker.url, spool=tmp_path / "other")


def test_a_spool_that_refuses_for_a_while_goes_on_by_itself(broker, spool, monkeypatch):
    monkeypatch.setattr("els_client.spool.BUSY_S", 0.05)
    broker.stop()
    with (
        Sender(broker.url, spool=spool) as sender,
        closing(sqlite3.connect(spool, isolation_level=None)) as other,
    ):
        cancel(sender, 1)
        other.execute("BEGIN IMMEDIATE")
        until(lambda: "locked" in (sender.spooled().last_error or ""))
        broker.start()

        other.execute("ROLLBACK")

        until(lambda: sender.spooled().messages == 0)
    assert reasons(broker.events()) == ["1"]


@contextmanager
def no_room(path):
    """Let no file of this process grow beyond the size that this one has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_makes_no_repeats(broker, spool):
    with ExitStack() as undo:
        refused = broker.url.replace("test-password", "wrong")
        away = undo.enter_context(Sender(refused, spool=spool))
        cancel(away, *range(10))
        with no_room(Path(f"{spool}-wal")):
            sender = undo.enter_context(Sender(broker.url, spool=spool))
            for _ in range(3):
                with pytest.raises(SpoolUnusable, match=r"els\.sqlite: [^;]*$"):
                    sender.flush()
            with pytest.raises(SpoolUnusable, match="the message is not sent"):
                cancel(sender, "x" * 1000)
            waiting = sender.spooled().messages
        left = sender.flush().messages

    assert (waiting, left) == (10, 0)
    assert reasons(broker.events()) == [str(number) for number in range(10)]


def test_only_its_owner_reads_a_spool(sender, spool):
    assert spool.stat().st_mode & 0o077 == 0


def test_a_broker_that_refuses_is_one_that_is_away(broker, spool):
    with Sender(broker.url.replace("test-password", "wrong"), spool=spool) as sender:
        [sent] = cancel(sender, 1)

        assert sent.spooled
        assert "AuthenticationError" in sender.spooled().last_error or (
            "invalid username-password" in sender.spooled().last_error
        )


def test_threads_share_a_sender(broker, sender):
    broker.stop()
    crowd = [Thread(target=cancel, args=[sender, *(f"{t} {n}" for n in range(10))]) for t in "abc"]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    broker.start()
    sender.flush()

    found = [reason.split() for reason in reasons(broker.events())]
    assert len(found) == 30
    for name in "abc":
        assert [int(n) for who, n in found if who == name] == [*range(10)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_uses_the_sender_of_its_parent(broker, sender):
    broker.stop()
    cancel(sender, "parent")
    child = os.fork()
    if child == 0:
        sent = cancel(sender, "child")
        os._exit(0 if sent[0].spooled else 1)
    _, status = os.waitpid(child, 0)
    cancel(sender, "parent again")
    broker.start()
    sender.flush()

    assert status == 0
    assert reasons(broker.events()) == ["parent", "child", "parent again"]


# --- a process is killed --------------------------------------------------------------------------


@pytest.fixture
def start(broker, spool):
    """Start a program that sends; whatever happens, it ends."""
    started = []

    def begin(log, batch_id="b", count=2_000):
        command = [sys.executable, "-m", sending.__name__, broker.url, str(spool), str(log)]
        started.append(subprocess.Popen([*command, batch_id, str(count)]))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def kill_when(process, condition):
    until(condition)
    process.kill()
    process.wait()


def without_repeats(events):
    return [*dict.fromkeys(event["event_id"] for event in events)]


@pytest.mark.slow
@pytest.mark.parametrize("away", [True, False], ids=["broker away", "broker there"])
def test_a_sender_that_is_killed_loses_and_doubles_nothing(broker, spool, tmp_path, start, away):
    log = tmp_path / "log"
    if away:
        broker.stop()
    for kill in range(6):
        enough = len(lines(log)) + 20 + 7 * kill
        kill_when(start(log), lambda: len(lines(log)) >= enough)  # noqa: B023 - called at once
    if away:
        broker.start()

    with Sender(broker.url, spool=spool) as sender:
        assert sender.flush().messages == 0

    events = broker.events()
    accepted = [*dict.fromkeys(lines(log))]
    arrived = without_repeats(events)
    assert set(accepted) <= set(arrived)
    assert len(arrived) <= len(accepted) + 1  # killed after the disk had it, before it said so
    texts = [event["text_storage_id"] for event in events]
    assert len(set(texts)) == len(arrived)
    assert [*dict.fromkeys(texts)] == sorted(set(texts))
    if away:  # a repeat of what waits does not wait twice
        assert len(events) == len(arrived)


@pytest.mark.slow
def test_a_drain_that_is_killed_goes_on_where_it_was(broker, spool, tmp_path, start):
    broker.stop()
    start(tmp_path / "log", count=400).communicate()
    waiting, left = lines(tmp_path / "log"), []
    broker.start()
    for kill in range(4):
        enough = 20 + 40 * kill
        process = start(tmp_path / "other", "other")
        kill_when(process, lambda: len(without_repeats(broker.events())) > enough)  # noqa: B023
        with closing(Spool(spool, 1, 1)) as held:
            left.append(held.size().messages)
    with Sender(broker.url, spool=spool) as sender:
        sender.flush()

    arrived = [each for each in without_repeats(broker.events()) if each in set(waiting)]
    assert arrived == waiting
    assert left[0] > 0, "it was not killed while it drained"


@pytest.mark.slow
def test_processes_share_a_spool(broker, tmp_path, start):
    broker.stop()
    crowd = [start(tmp_path / name, name, 150) for name in ("b1", "b2", "b3")]
    until(lambda: all(len(lines(tmp_path / name)) > 30 for name in ("b1", "b2", "b3")))
    broker.start()
    assert [process.wait() for process in crowd] == [0, 0, 0]

    events = broker.events()
    for name in ("b1", "b2", "b3"):
        mine = [event for event in events if event["batch_id"] == name]
        assert without_repeats(mine) == lines(tmp_path / name)


# --- the spool itself -----------------------------------------------------------------------------


def a_message(number):
    return checked("els.cancel_batch", EXAMPLES["els.cancel_batch"] | {"reason": f"åä {number}"})


def test_a_spool_counts_what_it_holds(spool):
    with closing(Spool(spool, 100, 10**6)) as held:
        messages = [a_message(number) for number in range(3)]
        for message in messages:
            held.append(message)
        assert held.size().bytes == sum(len(message.body.encode()) for message in messages)

        held.remove(held.first(2))

        assert [entry.message for entry in held.first(9)] == messages[2:]
        assert held.size().messages == 1


def test_one_at_a_time_drains(spool):
    with closing(Spool(spool, 1, 1)) as one, closing(Spool(spool, 1, 1)) as other:
        with one.draining() as first, other.draining() as second:
            assert (first, second) == (True, False)
        with other.draining() as third:
            assert third
