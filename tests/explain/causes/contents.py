"""Contents that have not come, came elsewhere, or came in excess; files that were rejected."""

from base64 import urlsafe_b64encode
from uuid import UUID, uuid4

from core import db
from core.lifecycle import Lifecycle
from core.slots import Slots
from tests import factories as make
from tests.explain.cause import cause
from tests.explain.causes.shapes import ASSIGN, discarding, send_raw
from tests.explain.place import WAIT_S
from tests.live.conftest import until

WAITING = "waiting_for_contents"
PENDING = "pending_not_registered"


def reject(place, batch, file="file-1", code="EMPTY_CONTENT"):
    event = make.rejection(batch, file, validation_error_code=code)
    return place.tell("els.reject_content", event)


def ended(place, batch, status):
    """Wait until a batch has this status and its events have left."""
    query = (
        "SELECT status = %s AND NOT EXISTS (SELECT FROM event_outbox o WHERE"
        " o.batch_id = t.batch_id AND published_at IS NULL) AS so"
        " FROM batch_essay_trackers t WHERE batch_id = %s"
    )
    until(lambda: place.conn.execute(query, [status, batch]).fetchone()["so"], 60, status)
    return batch


@cause(
    WAITING,
    says=["no text has been carried out for 3 slots since the registration (0 of 3", "no dead"],
    never=["file service has not announced"],
    step="els find batch-",
)
def nothing_has_come(running):
    yield running.register(3)


@cause(WAITING, says=["carried out for 1 slot since the last arrival (2 of 3 are accounted for)"])
def one_text_is_missing(running):
    batch = running.register(3)
    running.content(batch, "text-1")
    reject(running, batch, "file-2")
    yield batch


@cause(WAITING, says=["for 5 slots since the last arrival (25 of 30"])
def more_essays_are_expected_than_were_sent(running):
    batch = running.register(30)
    texts = [f"text-{n}" for n in range(25)]
    running.tell("els.assign_contents", make.contents(batch, texts))
    query = "SELECT count(*) AS n FROM essay_states WHERE batch_id = %s AND text_storage_id > ''"
    until(lambda: running.conn.execute(query, [batch]).fetchone()["n"] == 25, 60, "they came")
    yield batch


@cause(WAITING, says=["(1 of 2 are accounted for)"])
def the_same_text_came_twice(running):
    batch = running.register(2)
    running.content(batch, "text-1")
    running.content(batch, "text-1")
    yield batch


@cause(
    WAITING,
    says=["2 messages named the text text-1, which holds one slot", "from text-1.txt"],
    never=["no dead letter"],
)
def two_files_have_one_storage_id(running):
    batch = running.register(2)
    running.content(batch, "text-1")
    running.content(batch, "text-1", file_upload_id="file-2", original_file_name="file-2.txt")
    yield batch


@cause(WAITING, among=3, says=["that slot is open", "under a new event_id"])
def its_slot_was_emptied_and_its_content_repeated(running):
    batch = running.register(2)
    event = make.content(batch, "text-1")
    running.tell(ASSIGN, event)
    running.conn.execute(
        "UPDATE essay_states SET text_storage_id = NULL, file_upload_id = NULL, assigned_at = NULL,"
        " current_status = 'awaiting_content' WHERE batch_id = %s AND text_storage_id = 'text-1'",
        [batch],
    )
    running.conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 2 WHERE batch_id = %s", [batch]
    )
    running.tell(ASSIGN, event)
    yield batch


@cause(WAITING, says=["2 contents whose file or storage ids name this batch found no slot in"])
def its_contents_went_to_another_full_batch(running):
    batch, other = running.register(2), running.register(1)
    running.content(other)
    for n in (1, 2):
        running.content(other, f"{batch}/text-{n}.txt")
    yield batch


@cause(
    WAITING,
    says=["1 content whose file or storage ids name this batch got slots of"],
    step="els find batch-",
)
def its_content_took_a_slot_of_another_batch(running):
    batch, other = running.register(2), running.register(2)
    running.content(other, f"{batch}/text-1.txt")
    yield batch


@cause(WAITING, says=["1 content whose file or storage ids name this batch came for upload-"])
def its_content_waits_under_an_id_of_the_upload(running):
    batch = running.register(2)
    running.content(f"upload-{uuid4().hex}", f"{batch}/text-1.txt")
    yield batch


@cause(
    WAITING,
    says=["VALIDATION_ERROR) was discarded at"],
    never=["no dead letter"],
    step="els dead-letters show",
)
def the_letter_of_its_content_was_discarded(running):
    batch = running.register(2)
    running.content(batch, file_size_bytes="many")
    running.conn.execute(
        "UPDATE dead_letters SET discarded_at = now() WHERE batch_id = %s", [batch]
    )
    yield batch


@cause(
    WAITING,
    says=["since then contents came for an id that nobody has registered: upload-7 (2 contents)"],
    step="els explain upload-7",
)
def its_contents_came_for_the_id_of_the_upload(place):
    place.run()
    batch = place.register(2)
    for n in (1, 2):
        place.content("upload-7", f"text-{n}")
    age = "SELECT max(received_at) < now() - interval '11 s' AS old FROM batch_pending_content"
    until(lambda: place.conn.execute(age).fetchone()["old"], 60, "they wait for a while")
    yield batch


@cause(WAITING, says=["its essays are registered as batch-", "too (ready_for"])
def it_was_registered_under_two_ids(running):
    essays = [f"essay-{uuid4()}" for _ in range(2)]
    batch, other = running.register(essays), running.register(essays)
    for n in (1, 2):
        running.content(other, f"text-{n}")
    ended(running, other, "ready_for_pipeline_execution")
    yield batch


@cause(WAITING, says=["which is this id in another form of the same UUID"])
def its_content_came_with_the_short_form_of_its_uuid(running):
    batch = running.register(batch=str(uuid4()))
    short = urlsafe_b64encode(UUID(batch).bytes).decode().rstrip("=")
    running.content(short)
    yield batch


@cause(WAITING, says=["which is this id in another form of the same UUID"])
def its_content_came_with_the_bytes_of_its_uuid_in_another_order(running):
    batch = running.register(batch=str(uuid4()))
    running.content(str(UUID(bytes_le=UUID(batch).bytes)))
    yield batch


@cause(WAITING, says=["1 content waits for 00", "with more before or after it"])
def its_content_came_with_zeros_before_the_id(running):
    batch = running.register()
    running.content(f"00{batch}")
    yield batch


@cause(
    WAITING,
    says=["1 content waits for essay-", "which is an essay of this batch and no batch"],
    step="els explain essay-",
)
def its_content_came_for_the_id_of_an_essay(running):
    essay = f"essay-{uuid4()}"
    batch = running.register([essay, f"essay-{uuid4()}"])
    running.content(essay)
    yield batch


@cause("timed_out", says=["passed at", "no text had been carried out for 2 of 2 slots"])
def its_deadline_was_meant_in_hours(running):
    yield ended(running, running.register(2, deadline_s=1), "timed_out")


@cause(
    "waiting_for_students",
    says=["its class_id is the text null, so it is no guest batch"],
    step="els cancel",
)
def it_was_registered_with_null_as_text(running):
    batch = running.register(1, class_id="null")
    running.content(batch)
    yield ended(running, batch, "awaiting_student_validation")


@cause(WAITING, says=["in 999 days, it is timed out"])
def its_deadline_was_meant_in_milliseconds(running):
    yield running.register(deadline_s=86_400_000)


@cause("dead_letter_waiting", says=["UNKNOWN_BATCH", "a cancellation cancels the batch"])
def it_was_cancelled_before_its_registration(running):
    batch = make.new_batch()
    running.tell("els.cancel_batch", make.cancellation(batch))
    yield running.register(batch=batch)


@cause(WAITING, says=["contents wait for BATCH-", "which is this id in another case"])
def its_contents_came_in_another_case(running):
    batch = running.register()
    running.content(batch.upper(), "text-1")
    running.content(batch.upper(), "text-2")
    yield batch


@cause(WAITING, says=["1 content waits for", "which is this id with one character changed"])
def its_content_came_with_a_character_wrong(running):
    batch = running.register()
    running.content(f"{batch}0")
    yield batch


@cause(WAITING, says=["1 content waits for", "which is this id with other dashes"])
def its_content_came_with_another_dash(running):
    batch = running.register()
    running.content(batch.replace("-", "_"))
    yield batch


@cause(WAITING, says=["1 content found no slot in", "which is this id in another case"])
def its_content_found_no_slot_in_a_similar_batch(running):
    batch = running.register()
    running.register(1, batch=batch.upper())
    running.content(batch.upper(), "text-1")
    running.content(batch.upper(), "text-2")
    yield batch


@cause(PENDING, says=["is registered, which is this id in another case"], step="els explain batch-")
def they_wait_under_another_case(running):
    batch = running.register()
    running.content(batch.upper())
    yield batch.upper()


@cause(PENDING, says=["is registered, which is this id with one character changed"])
def they_wait_with_a_character_lost(running):
    batch = running.register()
    running.content(batch[:-1])
    yield batch[:-1]


@cause(PENDING, says=["Contents wait for a batch that nobody has registered (1 waiting)", "since"])
def it_is_not_registered_at_all(running):
    batch = make.new_batch()
    running.content(batch)
    yield batch


@cause(PENDING, says=["Contents wait for a batch that nobody has registered"])
def only_a_rejected_file_came(running):
    batch = make.new_batch()
    reject(running, batch)
    yield batch


@cause(PENDING, says=["1 dead letter names no batch"], step="els dead-letters show")
def they_wait_and_a_letter_names_no_batch(running):
    batch = make.new_batch()
    running.content(batch)
    with discarding(running):
        send_raw(running, "els.register_batch", kwargs={"event": {"essay_ids": ["essay-1"]}})
        yield batch


@cause("ready", nothing=True, says=["Also: 2 files came when every slot was taken: text-2, text-3"])
def it_is_ready_and_more_texts_came(running):
    batch = running.register(1)
    for n in (1, 2, 3):
        running.content(batch, f"text-{n}")
    yield ended(running, batch, "ready_for_pipeline_execution")


@cause("ready", nothing=True, says=["Also: file file-1 holds 2 slots", "(rejected)", "(text-1)"])
def a_file_was_rejected_and_stored(running):
    batch = running.register(2)
    reject(running, batch, "file-1")
    running.content(batch, "text-1", file_upload_id="file-1")
    yield ended(running, batch, "ready_for_pipeline_execution")


@cause("all_slots_failed", says=["Every file of the batch was rejected", "EMPTY_CONTENT"])
def every_file_was_rejected(running):
    batch = running.register(2)
    reject(running, batch, "file-1")
    reject(running, batch, "file-2", "CONTENT_TOO_LONG")
    yield ended(running, batch, "content_ingestion_failed")


@cause(
    "all_slots_failed",
    says=["No text came for any slot until the deadline", "deadline passed at"],
    never=["Every file of the batch was rejected"],
)
def it_proceeded_without_anything(running):
    batch = running.register(2, deadline_s=1, on_deadline="proceed")
    yield ended(running, batch, "content_ingestion_failed")


@cause(
    "all_slots_failed",
    says=["1 file was rejected, and nothing came for 2 slots until the deadline"],
    never=["Every file of the batch was rejected"],
)
def one_was_rejected_and_it_proceeded(running):
    batch = running.register(3, deadline_s=6, on_deadline="proceed")
    reject(running, batch)
    yield ended(running, batch, "content_ingestion_failed")


@cause("timed_out", says=["no text had been carried out for 1 of 2 slots", "passed at"])
def it_was_timed_out(running):
    batch = running.register(2, deadline_s=6)
    running.content(batch)
    yield ended(running, batch, "timed_out")


@cause("timed_out", says=["1 content waits for", "in another case"], step="els explain BATCH-")
def it_was_timed_out_and_its_text_is_elsewhere(running):
    batch = running.register(2, deadline_s=6)
    running.content(batch.upper())
    yield ended(running, batch, "timed_out")


@cause("timed_out", says=["Also: 1 file came after the batch was timed out: text-late"])
def a_text_came_after_the_deadline(running):
    batch = ended(running, running.register(2, deadline_s=1), "timed_out")
    running.content(batch, "text-late")
    yield batch


@cause("cancelled", says=["this reason was given: the wrong class"], step="els find")
def it_was_cancelled(running):
    batch = running.register()
    running.tell("els.cancel_batch", make.cancellation(batch, "the wrong class"))
    yield ended(running, batch, "cancelled")


@cause("cancelled", says=["Also: 1 file came after the batch was cancelled: text-1"])
def a_text_came_after_its_cancellation(running):
    batch = running.register()
    running.tell("els.cancel_batch", make.cancellation(batch))
    running.content(batch)
    yield ended(running, batch, "cancelled")


@cause("deadline_near", among=2, says=["The deadline is near", "it is timed out"], step="els amend")
def its_deadline_is_near(running):
    yield running.register(deadline_s=600)


# --- students -------------------------------------------------------------------------------------


def full(place, **fields):
    batch = place.register(1, class_id="class 7b", **fields)
    place.content(batch)
    return ended(place, batch, "awaiting_student_validation")


@cause(
    "waiting_for_students", says=["has not been carried out for class class 7b"], step="els find"
)
def its_students_are_not_confirmed(running):
    yield full(running)


@cause("waiting_for_students", says=["of the same class, were confirmed at"])
def those_of_another_batch_of_its_class_are_confirmed(running):
    batch, other = full(running), full(running)
    (essay,) = make.essay_ids(1)
    event = make.confirmation(other, [make.association(essay)], class_id="class 7b")
    running.tell("els.confirm_students", event)
    yield batch


@cause("dead_letter_waiting", says=["IDEMPOTENCY_CONFLICT"], never=["no dead letter"])
def two_contents_have_one_event_id(running):
    batch, event_id = running.register(), str(uuid4())
    running.content(batch, event_id=event_id)
    running.send_content(batch, "text-2", event_id=event_id)
    query = "SELECT FROM dead_letters WHERE batch_id = %s"
    until(lambda: running.conn.execute(query, [batch]).rowcount, 60, "a letter waits")
    yield batch


@cause("dead_letter_waiting", says=["(els.confirm_students, WRONG_BATCH_STATE)", "class 7b"])
def they_were_confirmed_for_another_class(running):
    batch = full(running)
    (essay,) = make.essay_ids(1)
    event = make.confirmation(batch, [make.association(essay)], class_id="class 8a")
    running.tell("els.confirm_students", event)
    yield batch


@cause("dead_letter_waiting", says=["UNKNOWN_ESSAY", "has no essay essay-x"])
def another_essay_was_confirmed(running):
    batch = full(running)
    event = make.confirmation(batch, [make.association("essay-x")], class_id="class 7b")
    running.tell("els.confirm_students", event)
    yield batch


@cause("waiting_for_students", says=["1 dead letter names no batch"], step="els dead-letters show")
def their_confirmation_names_no_batch(running):
    batch = full(running)
    with discarding(running):
        send_raw(running, "els.confirm_students", kwargs={"event": {"class_id": "class 7b"}})
        yield batch


@cause("timed_out", says=["els.confirm_students had not come when the deadline passed at"])
def they_were_not_confirmed_in_time(running):
    yield ended(running, full(running, deadline_s=20), "timed_out")


# --- events ---------------------------------------------------------------------------------------


@cause("event_deleted", among=2, says=["The outbox lacks 1 event of the batch (number 1 of 1)"])
def somebody_deleted_the_event_of_its_end(running):
    batch = running.register()
    running.tell("els.cancel_batch", make.cancellation(batch))
    ended(running, batch, "cancelled")
    running.conn.execute("DELETE FROM event_outbox WHERE batch_id = %s", [batch])
    yield batch


@cause(
    "event_deleted", says=["The outbox lacks 1 event of the batch"], never=["Nothing is missing"]
)
def somebody_deleted_the_event_of_an_excess_text(running):
    batch = running.register(1)
    running.content(batch, "text-1")
    running.content(batch, "text-2")
    ended(running, batch, "ready_for_pipeline_execution")
    running.conn.execute(
        "DELETE FROM event_outbox WHERE batch_id = %s AND type = 'ExcessContentProvisioned'",
        [batch],
    )
    yield batch


@cause("event_missing", among=4, says=["BatchEssaysReady"], never=["Nothing is missing"])
def somebody_deleted_its_readiness(place):
    batch = place.insert_batch(1)
    with db.connect(place.database_url) as pool:
        lifecycle = Lifecycle(pool, Slots(place.valkey))
        make.take(lifecycle, ASSIGN, make.content(batch))
        lifecycle.complete(batch)
    place.conn.execute(
        "DELETE FROM event_outbox WHERE batch_id = %s AND type = 'BatchEssaysReady'", [batch]
    )
    yield batch


@cause("ready", nothing=True, says=["was delivered to", "els outbox republish --batch batch-"])
def its_receiver_took_its_readiness_and_did_nothing(place):
    place.run()
    batch = place.register(1)
    place.content(batch)
    ended(place, batch, "ready_for_pipeline_execution")
    place.valkey.delete(f"{place.queue}.events")
    place.conn.execute("UPDATE batch_essay_trackers SET ready_at = now() - interval '2 min'")
    yield batch


# --- counted --------------------------------------------------------------------------------------


@cause(
    "slot_missing",
    says=["changed expected_count of the batch to 3", "2 slots were registered and are there"],
    step="SET expected_count = 2",
    never=["A slot of the batch is gone", "els cancel"],
    ends=True,
)
def somebody_raised_its_count(running):
    batch = running.register()
    running.conn.execute(
        "UPDATE batch_essay_trackers SET expected_count = 3 WHERE batch_id = %s", [batch]
    )
    yield batch


@cause(
    "slot_extra",
    says=["changed expected_count of the batch to 1"],
    step="SET expected_count = 2",
    ends=True,
)
def somebody_lowered_its_count(running):
    batch = running.register()
    running.content(batch)
    running.conn.execute(
        "UPDATE batch_essay_trackers SET expected_count = 1 WHERE batch_id = %s", [batch]
    )
    yield batch


@cause("slot_missing", says=["A slot of the batch is gone"], never=["expected_count"])
def somebody_deleted_a_slot(running):
    batch = running.register()
    running.conn.execute(
        "DELETE FROM essay_states WHERE batch_id = %s AND essay_id = 'essay-000001'", [batch]
    )
    yield batch


@cause(
    "timed_out",
    says=[
        "somebody has added the trigger policy on batch_essay_trackers",
        "DISABLE TRIGGER policy",
    ],
)
def a_trigger_of_others_made_its_deadline_short(place):
    place.run()
    place.conn.execute(
        "CREATE FUNCTION policy() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.deadline_at := now() + interval '1 s'; RETURN NEW; END$$"
    )
    place.conn.execute(
        "CREATE TRIGGER policy BEFORE INSERT ON batch_essay_trackers"
        " FOR EACH ROW EXECUTE FUNCTION policy()"
    )
    yield ended(place, place.register(), "timed_out")


@cause("waiting_for_contents", says=["3 messages rejected the file file-7, which takes one slot"])
def its_rejections_name_one_file(running):
    batch = running.register(3)
    for _ in range(3):
        running.tell("els.reject_content", make.rejection(batch, "file-7"))
    yield batch


@cause("timed_out", says=["2 s after its registration", "registered again as another batch"])
def its_deadline_was_given_in_days_and_read_in_seconds(running):
    batch = running.register(deadline_s=2)
    yield ended(running, batch, "timed_out")


@cause(
    WAITING,
    says=["2 contents wait for school-", "which is the org_id of this batch and no batch"],
    never=["no dead letter"],
    step="els explain school-",
)
def its_contents_came_for_its_organisation(running):
    school = f"school-{uuid4().hex[:8]}"
    batch = running.register(2, org_id=school)
    for n in (1, 2):
        running.content(school, f"text-{n}")
    yield batch


@cause(WAITING, says=["since then contents found no slot in upload-9 (2 contents)"])
def its_contents_came_for_another_full_batch_with_names_of_their_own(place):
    place.run()
    place.register(1, batch="upload-9")
    place.content("upload-9")
    batch = place.register(2)
    for _ in range(2):
        place.content("upload-9", uuid4().hex)
    yield batch


@cause(
    "timed_out",
    says=["anna amended the batch at", "(until tomorrow)"],
    never=["no dead letter"],
)
def somebody_amended_its_deadline_to_seconds(running):
    batch = running.register(2)
    amend = running.els(
        "amend", batch, "--deadline-s", "1", "--reason", "until tomorrow", "--by", "anna", "--yes"
    )
    amend.communicate(timeout=WAIT_S)
    yield ended(running, batch, "timed_out")


@cause("timed_out", says=["a message amended the batch at"])
def a_message_amended_its_deadline_to_seconds(running):
    batch = running.register(2)
    running.tell("els.amend_batch", make.common(batch, deadline_s=1))
    yield ended(running, batch, "timed_out")


@cause(
    "unknown_batch",
    says=["els.register_batch, VALIDATION_ERROR) was discarded at"],
    step="els dead-letters show",
)
def the_letter_of_its_registration_was_discarded(running):
    batch = make.new_batch()
    running.tell("els.register_batch", make.registration(batch, 2, expected_essay_count=5))
    running.conn.execute(
        "UPDATE dead_letters SET discarded_at = now() WHERE batch_id = %s", [batch]
    )
    yield batch


@cause(
    WAITING,
    says=["which is this id with other dashes, blanks or signs"],
    never=["no dead letter"],
    step="els dead-letters show",
)
def its_content_names_it_as_in_an_address(running):
    batch = running.register(2)
    running.content(batch.replace("-", "%2D"))
    yield batch


@cause("cancelled", says=["no message and no operator did so: somebody changed its row by hand"])
def somebody_wrote_that_it_was_cancelled(running):
    batch = running.register(2)
    running.conn.execute(
        "UPDATE batch_essay_trackers SET status = 'cancelled', closed_at = now()"
        " WHERE batch_id = %s",
        [batch],
    )
    yield batch


@cause(
    "status_wrong",
    says=["ready_for_pipeline_execution", "somebody changed its row by hand"],
    step="els reconcile",
    among=4,
)
def somebody_wrote_that_it_was_ready(place):
    batch = place.insert_batch()
    place.conn.execute(
        "UPDATE batch_essay_trackers SET available_slots = 0, full_at = now(),"
        " completed_at = now(), ready_at = now(), status = 'ready_for_pipeline_execution',"
        " provisioned_count = 2, manifest_sha256 = 'ab' WHERE batch_id = %s",
        [batch],
    )
    yield batch


@cause("dead_letter_waiting", says=["batch_id: "], never=["no dead letter"])
def its_content_names_it_in_a_list(running):
    batch = running.register(2)
    running.tell(ASSIGN, {**make.content(batch), "batch_id": [batch]})
    yield batch


@cause(
    "event_not_delivered",
    says=["An event of the batch was never sent (", "somebody has set its published_at by hand"],
    step="els outbox republish",
)
def somebody_marked_its_events_as_published(place):
    place.run()
    batch = place.register(1)
    place.conn.execute(
        "CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.published_at := now(); RETURN NEW; END$$"
    )
    place.conn.execute(
        "CREATE TRIGGER mark BEFORE INSERT ON event_outbox FOR EACH ROW EXECUTE FUNCTION mark()"
    )
    place.content(batch)
    yield ended(place, batch, "ready_for_pipeline_execution")
