"""Ids that are misspelt, or are no ids of a batch, and batches that are gone."""

from uuid import uuid4

from tests import factories as make
from tests.explain.cause import cause
from tests.explain.causes.shapes import discarding, send_raw
from tests.live.conftest import until

UNKNOWN = "unknown_batch"


@cause(UNKNOWN, says=["is mistyped", "no dead letter"], step="els find")
def nobody_has_heard_of_it(running):
    yield make.new_batch()


@cause(
    UNKNOWN,
    says=["was registered, but its rows are gone", "Redis still has 2 slots of it"],
    never=["mistyped"],
)
def an_older_backup_of_postgres_was_restored(running):
    batch = running.register(2)
    tables = "essay_states", "batch_essay_trackers", "idempotency_keys"
    for table in tables:
        running.conn.execute(f"DELETE FROM {table} WHERE batch_id = %s", [batch])
    yield batch


@cause(UNKNOWN, says=["is registered, which is this id in another case"], step="els explain batch-")
def in_another_case(running):
    yield running.register().upper()


@cause(UNKNOWN, says=["is registered, which is this id without the blanks"], step="els explain ba")
def with_blanks_around(running):
    yield f" {running.register()} "


@cause(UNKNOWN, says=["is this id with other dashes"], step="els explain batch-")
def with_another_dash(running):
    yield running.register().replace("-", "_")


@cause(UNKNOWN, says=["is this id with other dashes"], step="els explain batch-")
def with_a_dash_of_a_word_processor(running):
    yield running.register().replace("-", "\u2013")


@cause(UNKNOWN, says=["is this id with one character changed"], step="els explain batch-")
def with_one_character_wrong(running):
    yield f"{running.register()[:-1]}z"


@cause(UNKNOWN, says=["is this id with one character changed"], step="els explain batch-")
def with_a_character_lost(running):
    yield running.register().replace("-", "", 1).replace("batch", "btch-")


@cause(UNKNOWN, says=["is this id with one character changed"], step="els explain batch-")
def with_a_character_too_many(running):
    yield f"x{running.register()}"


@cause(UNKNOWN, says=["is this id with two characters swapped"], step="els explain batch-")
def with_two_characters_swapped(running):
    yield running.register().replace("batch", "bacth")


@cause(UNKNOWN, says=["is this id with more or fewer zeros"], step="els explain ")
def with_its_zeros_lost(running):
    batch = running.register(batch=f"{make.new_batch()}-00700")
    yield batch.replace("-00700", "-7")


@cause(UNKNOWN, says=["is this id with its parts in another order"], step="els explain batch-")
def with_its_halves_swapped(running):
    yield "-".join(reversed(running.register().split("-")))


@cause(UNKNOWN, says=["is this id with letters or digits that look alike"])
def with_an_o_for_a_zero(running):
    batch = running.register(batch=f"{make.new_batch()}-007")
    yield batch.replace("-007", "-OO7")


@cause(UNKNOWN, says=["is this id with letters or digits that look alike"])
def with_an_l_for_a_one(running):
    batch = running.register(batch=f"{make.new_batch()}-x1")
    yield batch.replace("-x1", "-xl")


@cause(UNKNOWN, says=["is this id with more before or after it"], step="els explain batch-")
def the_end_of_an_id(running):
    yield running.register().removeprefix("batch-")


@cause(UNKNOWN, says=["is this id with more before or after it"], step="els explain batch-")
def the_beginning_of_an_id(running):
    yield running.register()[:-3]


@cause(UNKNOWN, says=["is this id without what stands around it"], step="els explain batch-")
def the_address_of_its_page(running):
    yield f"http://els.example:9095/batches/{running.register()}?slot=essay-1"


@cause(UNKNOWN, says=["content waits for batch-", "nobody has registered it"], step="els explain")
def contents_wait_under_a_similar_id(running):
    batch = make.new_batch()
    running.content(batch)
    yield batch.upper()


# --- ids of something else ------------------------------------------------------------------------


def own_text(running, batch):
    text = f"text-{uuid4().hex[:10]}"
    running.content(batch, text)
    return text


@cause(UNKNOWN, says=["This is the id of an essay, not the id of a batch", "`els find essay-"])
def the_id_of_an_essay(running):
    essay = f"essay-{uuid4().hex[:10]}"
    running.register([essay, f"{essay}-b"])
    yield essay


@cause(UNKNOWN, says=["This is the text_storage_id of a content, not"], step="els explain batch-")
def the_id_of_a_text(running):
    yield own_text(running, running.register())


@cause(UNKNOWN, says=["This is the file_upload_id of a file, not"], step="els explain batch-")
def the_id_of_a_file(running):
    yield f"file-{own_text(running, running.register())}"


@cause(UNKNOWN, says=["This is the name of a file, not"], step="els explain batch-")
def the_name_of_a_file(running):
    yield f"{own_text(running, running.register())}.txt"


@cause(UNKNOWN, says=["text_storage_id of a content that waits for a registration"])
def the_id_of_a_pending_text(running):
    yield own_text(running, make.new_batch())


@cause(UNKNOWN, says=["the text_storage_id of a content without a slot"], step="els explain batch-")
def the_id_of_an_excess_text(running):
    batch = running.register(1)
    running.content(batch)
    yield own_text(running, batch)


@cause(UNKNOWN, says=["This is the event_id of a message (els.assign_content)"], step="els explain")
def the_id_of_a_message(running):
    event = make.content(running.register())
    running.tell("els.assign_content", event)
    yield event["event_id"]


@cause(UNKNOWN, says=["This is a correlation_id"], step="els explain batch-")
def a_correlation_id(running):
    event = make.registration(make.new_batch())
    running.tell("els.register_batch", event)
    yield event["correlation_id"]


@cause(UNKNOWN, says=["This is the number of a dead letter (els.cancel_batch)"])
def the_number_of_a_dead_letter(running):
    batch = make.new_batch()
    running.tell("els.cancel_batch", make.cancellation(batch))
    with discarding(running):
        query = "SELECT id FROM dead_letters WHERE batch_id = %s"
        yield str(running.conn.execute(query, [batch]).fetchone()["id"])


@cause(UNKNOWN, says=["This is the task id of dead letter"])
def the_id_of_a_task(running):
    with discarding(running):
        yield send_raw(running, "els.cancel_batch", kwargs={"event": {"batch_id": "b"}})


@cause(UNKNOWN, says=["This is the id of an event (BatchEssaysReady)"], step="els explain batch-")
def the_id_of_an_event(running):
    batch = running.register(1)
    running.content(batch)
    query = "SELECT id FROM event_outbox WHERE batch_id = %s AND type = 'BatchEssaysReady'"
    found = until(lambda: running.conn.execute(query, [batch]).fetchone(), 60, "it is ready")
    yield str(found["id"])


@cause(UNKNOWN, says=["This is the id of a user"], step="els explain batch-")
def the_id_of_a_user(running):
    user = f"user-{uuid4().hex[:10]}"
    running.register(user_id=user)
    yield user


@cause(UNKNOWN, says=["This is the id of a user", ", of batch-"], step="els find user-")
def the_id_of_a_user_with_several_batches(running):
    user = f"user-{uuid4().hex[:10]}"
    running.register(user_id=user)
    running.register(user_id=user)
    yield user


@cause(UNKNOWN, says=["This is the id of a class"], step="els explain batch-")
def the_id_of_a_class(running):
    class_id = f"class {uuid4().hex[:10]}"
    running.register(class_id=class_id)
    yield class_id


@cause(UNKNOWN, says=["This is the id of an organisation"], step="els explain batch-")
def the_id_of_an_organisation(running):
    org = f"org/{uuid4().hex[:10]}"
    running.register(org_id=org)
    yield org


@cause(UNKNOWN, says=["This is the id of a student"], step="els explain batch-")
def the_id_of_a_student(running):
    batch, student = running.register(1, class_id="class-1"), f"student-{uuid4().hex[:10]}"
    running.content(batch)
    query = "SELECT completed_at FROM batch_essay_trackers WHERE batch_id = %s"
    until(lambda: running.conn.execute(query, [batch]).fetchone()["completed_at"], 60, "sealed")
    (essay,) = make.essay_ids(1)
    event = make.confirmation(batch, [make.association(essay, student)])
    running.tell("els.confirm_students", event)
    yield student


# --- batches that are gone ------------------------------------------------------------------------


def purged(place):
    batch = place.insert_batch(1)
    place.conn.execute(
        "INSERT INTO purged_batches (batch_id, status, expected_count, registered_at, ended_at,"
        " purged_by) SELECT batch_id, 'cancelled', 1, registered_at, now(), 'anna'"
        " FROM batch_essay_trackers WHERE batch_id = %s",
        [batch],
    )
    for table in ("idempotency_keys", "batch_essay_trackers"):
        place.conn.execute(f"DELETE FROM {table} WHERE batch_id = %s", [batch])
    return batch


@cause(UNKNOWN, says=["The batch was purged at", "it ended as cancelled at", "anna"])
def it_was_purged(running):
    yield purged(running)


@cause(UNKNOWN, says=["which is this id in another case, was registered once and is purged"])
def a_batch_with_a_similar_id_was_purged(running):
    yield purged(running).upper()


@cause("pending_not_registered", says=["The batch was purged at"])
def contents_come_after_it_was_purged(running):
    batch = purged(running)
    running.content(batch)
    yield batch


@cause(UNKNOWN, says=["its rows are gone", "els.register_batch was executed at"], step="els submit")
def somebody_deleted_it_by_hand(running):
    batch = running.register()
    running.conn.execute("DELETE FROM batch_essay_trackers WHERE batch_id = %s", [batch])
    yield batch


@cause(UNKNOWN, says=["which is this id with more before or after it"], step="els explain batch-")
def it_was_cut_with_an_ellipsis(running):
    yield f"{running.register()[:-2]}…"


@cause(UNKNOWN, says=["which is this id without what stands around it"], step="els explain batch-")
def it_was_pasted_twice(running):
    yield running.register() * 2
