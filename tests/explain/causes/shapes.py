"""Messages of other shapes than the service takes, and the letters that they become."""

import json
from base64 import b64encode
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from celery import Celery

from tests import factories as make
from tests.explain.cause import cause
from tests.explain.place import WAIT_S
from tests.live.conftest import until

LETTER = "dead_letter_waiting"
ASSIGN, REGISTER = "els.assign_content", "els.register_batch"


@contextmanager
def discarding(place):
    """Discard all letters at the end: those that name no batch are clues for every batch."""
    yield
    place.conn.execute("UPDATE dead_letters SET discarded_at = now() WHERE discarded_at IS NULL")


def send_raw(place, task, **arguments):
    """Send a message with any arguments, wait for its letter, and return its task id."""
    task_id = str(uuid4())
    place.workers.upstream.send_task(task, task_id=task_id, queue=place.queue, **arguments)
    query = "SELECT id FROM dead_letters WHERE task_id = %s"
    until(lambda: place.conn.execute(query, [task_id]).fetchone(), 60, "it is a dead letter")
    return task_id


def send_bytes(place, body, content_type="application/json", encoding="utf-8", task=ASSIGN):
    """Send a message with any body, as a program without Celery may."""
    task_id = str(uuid4())
    with place.workers.upstream.connection_for_write() as connection:
        connection.default_channel.basic_publish(
            {
                "body": body,  # Kombu writes it in base64
                "content-type": content_type,
                "content-encoding": encoding,
                "headers": {"task": task, "id": task_id, "lang": "py", "retries": 0},
                "properties": {
                    "delivery_mode": 2,
                    "delivery_tag": task_id,
                    "delivery_info": {"exchange": "", "routing_key": place.queue},
                    "correlation_id": task_id,
                    "priority": 0,
                },
            },
            "",
            place.queue,
        )
    query = "SELECT id FROM dead_letters WHERE task_id = %s"
    until(lambda: place.conn.execute(query, [task_id]).fetchone(), 60, "it is a dead letter")


def a_content_as(place, **arguments):
    """Register a batch, and send its content with these arguments."""
    batch = place.register()
    event = make.content(batch)
    send_raw(place, ASSIGN, **{name: value(event) for name, value in arguments.items()})
    return batch


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)", "waits for contents"])
def the_event_is_positional(running):
    yield a_content_as(running, args=lambda event: [event])


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)"], step="--batch batch-")
def the_fields_are_arguments(running):
    yield a_content_as(running, kwargs=lambda event: event)


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)"])
def the_event_has_a_neighbour(running):
    yield a_content_as(running, kwargs=lambda event: {"event": event, "source": "files"})


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)"])
def the_fields_are_in_camel_case(running):
    yield a_content_as(running, kwargs=lambda event: {"event": {"batchId": event["batch_id"]}})


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)"])
def the_event_is_a_text(running):
    yield a_content_as(running, kwargs=lambda event: {"event": json.dumps(event)})


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)"])
def the_event_is_in_base64(running):
    yield a_content_as(
        running, kwargs=lambda event: {"event": b64encode(json.dumps(event).encode()).decode()}
    )


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)"])
def the_event_is_in_an_envelope(running):
    yield a_content_as(running, kwargs=lambda event: {"event": {"type": "x", "data": event}})


@cause(LETTER, says=["VALIDATION_ERROR"])
def the_id_has_a_blank_at_its_end(running):
    batch = running.register()
    event = make.content(f"{batch} ")
    send_raw(running, ASSIGN, kwargs={"event": event})
    yield batch


@cause(LETTER, says=["(els.assign_contnet, UNKNOWN_TASK)"])
def the_task_is_misspelt(running):
    batch = running.register()
    send_raw(running, "els.assign_contnet", kwargs={"event": make.content(batch)})
    yield batch


@cause(LETTER, among=2, says=["UNKNOWN_TASK", "Nobody has registered this batch"])
def the_task_of_its_registration_is_misspelt(running):
    batch = make.new_batch()
    send_raw(running, "els.register", kwargs={"event": make.registration(batch)})
    yield batch


@cause(LETTER, among=2, says=["VALIDATION_ERROR", "Nobody has registered this batch"])
def its_registration_is_positional(running):
    batch = make.new_batch()
    send_raw(running, REGISTER, args=[make.registration(batch)])
    yield batch


@cause(LETTER, among=2, says=["VALIDATION_ERROR", "Contents wait for a batch"])
def its_registration_counts_wrong(running):
    batch = make.new_batch()
    running.content(batch)
    running.tell(REGISTER, make.registration(batch, expected_essay_count=30))
    yield batch


@cause(LETTER, says=["REGISTRATION_CONFLICT", "registered with other"])
def it_is_registered_twice(running):
    batch = running.register(2)
    running.tell(REGISTER, make.registration(batch, 3))
    yield batch


@cause(LETTER, says=["(els.assign_contents, VALIDATION_ERROR)"])
def one_content_of_an_upload_is_wrong(running):
    batch = running.register()
    event = make.contents(batch, ["text-1", "text-2"])
    event["contents"][1]["file_size_bytes"] = -1
    running.tell("els.assign_contents", event)
    yield batch


@cause(LETTER, says=["IDEMPOTENCY_CONFLICT"])
def an_event_id_is_used_twice(running):
    batch = running.register()
    event = make.content(batch)
    running.tell(ASSIGN, event)
    running.send(ASSIGN, {**event, "text_storage_id": "text-2", "file_upload_id": "file-2"})
    query = "SELECT id FROM dead_letters WHERE batch_id = %s"
    until(lambda: running.conn.execute(query, [batch]).fetchone(), 60, "it is a dead letter")
    yield batch


@cause(LETTER, says=["MALFORMED_MESSAGE"])
def its_body_is_no_json(running):
    batch = running.register()
    send_bytes(running, json.dumps([[], {"event": make.content(batch)}, {}]).encode()[:-2])
    yield batch


@cause(LETTER, says=["MALFORMED_MESSAGE"])
def its_body_is_of_python(running):
    batch = running.register()
    body = repr(([], {"event": make.content(batch)}, {}))
    send_bytes(running, body.encode(), "application/x-python")
    yield batch


@cause(LETTER, says=["MALFORMED_MESSAGE"])
def its_body_of_python_is_in_base64_twice(running):
    batch = running.register()
    body = repr(([], {"event": make.content(batch)}, {}))
    send_bytes(running, b64encode(body.encode()), "application/x-python")
    yield batch


@cause(LETTER, says=["MALFORMED_MESSAGE"])
def its_sender_pickles(running):
    batch = running.register()
    send_raw(running, ASSIGN, kwargs={"event": make.content(batch)}, serializer="pickle")
    yield batch


@cause(LETTER, says=["(files.tasks.assign_content, UNKNOWN_TASK)"], step="--batch batch-")
def its_task_has_the_name_of_a_module(running):
    batch = running.register()
    send_raw(running, "files.tasks.assign_content", kwargs={"event": make.content(batch)})
    yield batch


@cause(LETTER, says=["EXPIRED", "expired at", "replay it"], step="els dead-letters replay")
def its_content_expired(running):
    batch = running.register()
    past = datetime.now(UTC) - timedelta(minutes=5)
    send_raw(running, ASSIGN, kwargs={"event": make.content(batch)}, expires=past)
    yield batch


@cause(LETTER, says=["header task", "of Celery's protocol 1 has none", "must set task_protocol 2"])
def its_sender_uses_message_protocol_1(running):
    batch = running.register()
    old = Celery("old", broker=running.settings["ELS_BROKER_URL"], task_protocol=1)
    with discarding(running):
        event = make.content(batch)
        old.send_task(ASSIGN, kwargs={"event": event}, queue=running.queue, ignore_result=True)
        waits = "SELECT count(*) AS n FROM dead_letters WHERE batch_id = %s"
        until(lambda: running.conn.execute(waits, [batch]).fetchone()["n"], WAIT_S, "it waits")
        yield batch


@cause(LETTER, says=["(els.assign_contents, VALIDATION_ERROR)", "contents"])
def an_upload_has_no_contents(running):
    batch = running.register()
    running.tell("els.assign_contents", {**make.contents(batch, ["text-1"]), "contents": []})
    yield batch


@cause(LETTER, says=["VALIDATION_ERROR", "essay_ids"], among=2)
def the_essays_of_its_registration_are_named_by_their_files(running):
    batch = make.new_batch()
    running.content(batch)
    running.tell(REGISTER, make.registration(batch, ["essay 1.docx", "essay 2.docx"]))
    yield batch


@cause(LETTER, says=["VALIDATION_ERROR", "timestamp"])
def its_timestamp_has_no_zone(running):
    batch = running.register()
    running.tell(ASSIGN, make.content(batch, timestamp="2026-01-31 08:00:00"))
    yield batch


@cause(LETTER, says=["(els.assign_content, VALIDATION_ERROR)", "confidence"])
def a_field_is_added_that_nobody_knows(running):
    batch = running.register()
    running.tell(ASSIGN, make.content(batch, confidence=0.9))
    yield batch


@cause(
    "waiting_for_contents", says=["which is this id with more before"], step="els dead-letters show"
)
def its_content_names_the_address_of_the_batch(running):
    batch = running.register()
    with discarding(running):
        event = make.content(f"https://school.example/batches/{batch}")
        send_raw(running, ASSIGN, kwargs={"event": event})
        yield batch


@cause("waiting_for_contents", says=["1 dead letter names no batch"], step="els dead-letters show")
def its_content_names_no_batch(running):
    batch = running.register()
    event = make.content(batch)
    del event["batch_id"]
    with discarding(running):
        send_raw(running, ASSIGN, kwargs={"event": event})
        yield batch


@cause("waiting_for_contents", says=["2 dead letters name no batch"], step="els dead-letters list")
def its_contents_cannot_be_read(running):
    batch = running.register()
    with discarding(running):
        send_bytes(running, b"\xff\xfe\xfd" * 20)
        send_bytes(running, b"\x00\x01\x02" * 20)
        yield batch


@cause("waiting_for_contents", says=["which is this id with other dashes"], step="dead-letters sho")
def its_content_has_a_blank_in_the_id(running):
    batch = running.register()
    with discarding(running):
        event = make.content(batch.replace("-", " "))
        send_raw(running, ASSIGN, kwargs={"event": event})
        yield batch


@cause("waiting_for_contents", says=["names this batch in its body"], step="els dead-letters show")
def its_content_names_two_batches(running):
    batch = running.register()
    with discarding(running):
        send_raw(running, ASSIGN, args=[make.content(batch), make.content(make.new_batch())])
        yield batch


@cause(
    "waiting_for_contents",
    says=["(els.assign_content.v2, UNKNOWN_TASK) names batch-", "with one character changed"],
    step="els dead-letters show",
)
def its_content_is_of_an_unknown_task_with_another_id(running):
    batch = running.register()
    send_raw(running, "els.assign_content.v2", kwargs={"event": make.content(f"{batch}x")})
    with discarding(running):
        yield batch


@cause("unknown_batch", says=["1 dead letter names no batch"], step="els dead-letters show")
def its_registration_names_no_batch(running):
    event = make.registration(make.new_batch())
    with discarding(running):
        send_raw(running, REGISTER, kwargs={"event": {**event, "batch_id": None}})
        yield event["batch_id"]


@cause("unknown_batch", says=["which is this id with"], step="els dead-letters show")
def its_registration_has_a_slash_in_the_id(running):
    batch = make.new_batch()
    with discarding(running):
        event = make.registration(batch.replace("-", "/"))
        send_raw(running, REGISTER, kwargs={"event": event})
        yield batch


@cause("pending_not_registered", says=["which is this id"], step="els dead-letters show")
def contents_wait_and_its_registration_has_a_dot_in_the_id(running):
    batch = make.new_batch()
    running.content(batch)
    with discarding(running):
        event = make.registration(batch.replace("-", "."))
        send_raw(running, REGISTER, kwargs={"event": event})
        yield batch


# --- letters that hold nothing up any more --------------------------------------------------------


@cause(
    "waiting_for_contents",
    says=["1 of 2 are accounted for", "no longer needs it: els dead-letters discard"],
    never=["could not carry out a message"],
)
def the_file_of_its_letter_has_a_slot(running):
    batch = running.register()
    running.tell(ASSIGN, make.content(batch, file_size_bytes=-1))
    running.content(batch)
    yield batch


@cause("dead_letter_waiting", nothing=True, says=["no longer needs it", "Nothing is missing"])
def it_is_ready_and_a_letter_is_left(running):
    batch = running.register(1)
    running.tell(ASSIGN, make.content(batch, "text-other", file_size_bytes=-1))
    running.content(batch)
    query = (
        "SELECT bool_and(published_at IS NOT NULL) AS sent FROM event_outbox"
        " WHERE batch_id = %s HAVING count(*) = 2"
    )
    until(lambda: (running.conn.execute(query, [batch]).fetchone() or {}).get("sent"), 60, "sent")
    yield batch
