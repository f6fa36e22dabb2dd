"""The pages over HTTP, as a browser without JavaScript sees them."""

import json
import re
import time
from datetime import UTC, datetime
from html import unescape
from uuid import uuid4

import pytest

from core.metrics import MINUTES
from core.signs.heartbeat import write_sign
from core.signs.pauses import Outage, Pause, delete_pause, write_pause
from core.slots import Slots
from ops.explain.explanation import explain
from ops.heartbeat import Heartbeat
from tests import factories as make
from tests.core import story
from tests.live.conftest import until
from tests.ops.served import page_of_its_own

SCRIPT = "<script>alert('odd')</script>"


def announced(served, batch, essays=2, **fields):
    story.fill(served.lifecycle, batch, essays, **fields)
    served.lifecycle.complete(batch)
    return batch


def letter(served, batch, code="VALIDATION_ERROR", message="not as it should be", task_id=None):
    with served.pool.connection() as conn:
        row = conn.execute(
            "INSERT INTO dead_letters (task, task_id, batch_id, body, code, message)"
            " VALUES ('els.assign_content', %s, %s, '{}', %s, %s) RETURNING id",
            [task_id or str(uuid4()), batch, code, message],
        ).fetchone()
    return row["id"]


def change(served, statement, *values):
    with served.pool.connection() as conn:
        conn.execute(statement, values)


def row_of(answer, batch):
    """What the board says in the row of a batch."""
    (row,) = [row for row in answer.text.split("<tr ") if f"/batches/{batch}" in row]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", row.partition(">")[2].partition("</tr>")[0]))


def seen_stuck(served, batch):
    known = batch in served.get("/?state=in_trouble").batches
    return served.get("/") if known else None


# --- the board ------------------------------------------------------------------------------------


def test_a_batch_in_trouble_comes_first_with_its_cause(served):
    stuck = make.new_batch()
    story.fill(served.lifecycle, stuck, 2)
    newer = make.new_batch()
    story.register(served.lifecycle, newer, 2)

    board = until(lambda: seen_stuck(served, stuck), what="the board has looked")

    assert board.batches.index(stuck) < board.batches.index(newer)
    assert "All slots are accounted for, but the batch was not announced" in row_of(board, stuck)
    served.lifecycle.complete(stuck)


def test_the_board_and_explain_name_the_same_cause(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch)
    letter(served, batch, "REGISTRATION_CONFLICT")
    with served.pool.connection() as conn:
        told = explain(conn, Slots(served.client), batch, Heartbeat(["w"], None, 0))

    title = next(c.title for c in told.causes if c.code == "dead_letter_waiting")

    until(lambda: title in row_of(served.get(f"/?q={batch}"), batch), what="the board tells it")
    assert "REGISTRATION_CONFLICT" in title
    assert title in served.get(f"/batches/{batch}").words


def count(served, batch):
    """Read a row of the board: accounted for, slots, failed."""
    told = row_of(served.get(f"/?q={batch}"), batch)
    found = re.search(r"(\d+) of (\d+)(?: (\d+) failed)?", told)
    return tuple(int(number or 0) for number in found.groups())


def open_with_a_failure(served, batch):
    story.register(served.lifecycle, batch, 5)
    story.upload(served.lifecycle, batch, story.texts(2))
    story.reject(served.lifecycle, batch)


def sealed(served, batch):
    announced(served, batch, 3)


def proceeded(served, batch):
    story.register(served.lifecycle, batch, 4, on_deadline="proceed", deadline_s=1)
    story.upload(served.lifecycle, batch, story.texts(1))
    change(
        served,
        "UPDATE batch_essay_trackers SET deadline_at = now() WHERE batch_id = %s",
        batch,
    )
    served.lifecycle.time_out(batch)


def timed_out(served, batch):
    story.register(served.lifecycle, batch, 4, deadline_s=1)
    story.upload(served.lifecycle, batch, story.texts(1))
    story.reject(served.lifecycle, batch)
    change(
        served,
        "UPDATE batch_essay_trackers SET deadline_at = now() WHERE batch_id = %s",
        batch,
    )
    served.lifecycle.time_out(batch)


def cancelled(served, batch):
    open_with_a_failure(served, batch)
    story.cancel(served.lifecycle, batch)


@pytest.mark.parametrize(
    ("lead", "accounted"),
    [
        (open_with_a_failure, (3, 5, 1)),
        (sealed, (3, 3, 0)),
        (proceeded, (4, 4, 3)),
        (timed_out, (2, 4, 1)),
        (cancelled, (3, 5, 1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_slots_accounted_for_are_exact_in_every_state(served, lead, accounted):
    batch = make.new_batch()

    lead(served, batch)

    assert count(served, batch) == accounted


def test_what_waits_and_what_is_over_is_counted(served):
    batch, early = make.new_batch(), make.new_batch()
    story.register(served.lifecycle, batch, 1)
    story.upload(served.lifecycle, batch, story.texts(3))
    story.assign(served.lifecycle, early, "text-early")
    story.reject(served.lifecycle, early, "file-early")

    excess = row_of(served.get(f"/?q={batch}"), batch)
    pending = row_of(served.get(f"/?q={early}"), early)

    assert re.search(r"1 of 1 0 2 ", excess)
    assert "Not registered" in pending
    assert re.search(r"no slots yet 2 0 ", pending)


def troubled(served):
    return served.stream.stuck.violations if served.stream.stuck else ()


def write_batches(served, count):
    """Write b-001 and so on, which were cancelled: two in each hour, the newest first."""
    change(
        served,
        "INSERT INTO batch_essay_trackers (batch_id, status, user_id, course_code,"
        " correlation_id, expected_count, available_slots, essay_ids_sha256, on_deadline,"
        " registered_at, deadline_at, closed_at, closed_reason)"
        " SELECT 'b-' || lpad(n::text, 3, '0'), 'cancelled', 'u', 'c', gen_random_uuid(), 1, 0,"
        " 'x', 'fail', now() - make_interval(hours => n / 2),"
        " now() + make_interval(hours => 1 + n * 37 %% 60), now(), 'x'"
        " FROM generate_series(1, %s) n",
        count,
    )


def write_letters(served, first, last):
    """Write a dead letter for each of these batches, which makes it stuck."""
    change(
        served,
        "INSERT INTO dead_letters (task, task_id, batch_id, body, code, message)"
        " SELECT 't', batch_id, batch_id, '{}', 'C', 'm' FROM batch_essay_trackers"
        " WHERE batch_id BETWEEN %s AND %s",
        first,
        last,
    )


def test_the_pages_hold_every_batch_once_and_those_in_trouble_first(database_url):
    with page_of_its_own(database_url) as served:
        write_batches(served, 180)
        write_letters(served, "b-061", "b-120")
        until(lambda: len(troubled(served)) == 60, what="the rules were asked")
        seen = all_batches(served, "/?state=cancelled")

    worst = {f"b-{n:03}" for n in range(61, 121)}
    assert set(seen[:60]) == worst
    assert seen[60:] == sorted(
        ({f"b-{n:03}" for n in range(1, 181)} - worst),
        key=lambda b: (-(int(b[2:]) // 2), b),
        reverse=True,
    )


@pytest.fixture(scope="module")
def many(database_url):
    """A page with 130 batches, of which 20 are stuck and 10 nobody has registered."""
    with page_of_its_own(database_url) as served:
        write_batches(served, 120)
        change(
            served,
            "UPDATE batch_essay_trackers SET status = 'awaiting_content_validation',"
            " available_slots = 1, closed_at = NULL, closed_reason = NULL"
            " WHERE right(batch_id, 1)::int %% 2 = 0",
        )
        change(
            served,
            "INSERT INTO essay_states (batch_id, essay_id, current_status) SELECT batch_id, 'e',"
            " CASE WHEN closed_at IS NULL THEN 'awaiting_content' ELSE 'cancelled' END"
            " FROM batch_essay_trackers",
        )
        write_letters(served, "b-101", "b-120")
        for n in range(10):
            story.assign(served.lifecycle, f"early-{n}")
        now = datetime.now(UTC)
        until(lambda: served.stream.find_stuck().at > now, what="the rules were checked")
        assert len(troubled(served)) >= 20
        yield served


def test_a_list_goes_on_behind_a_batch_whose_state_has_changed(many):
    path = "/?state=awaiting_content_validation&sort=state"
    everything = all_batches(many, path)

    assert many.get(f"{path}&after=b-061").batches == everything[everything.index("b-060") + 1 :]


def all_batches(served, path):
    return [batch for page in listed(served, served.get(path)) for batch in page.batches]


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("batch", "batch_id"),
        ("state", "(status, registered_at, batch_id)"),
        ("age", "(now() - registered_at, batch_id)"),
        ("deadline", "(deadline_at, batch_id)"),
    ],
)
def test_the_board_is_sorted_by_a_click_through_all_its_pages(many, column, key):
    up = all_batches(many, f"/?sort={column}")
    down = all_batches(many, f"/?sort=-{column}")

    with many.pool.connection() as conn:
        rows = conn.execute(
            "SELECT batch_id FROM batch_essay_trackers"
            f" WHERE %s OR closed_at IS NULL ORDER BY {key}",
            [column != "deadline"],
        )
        wanted = [row["batch_id"] for row in rows]
    assert down == up[::-1]
    if column == "age":  # at one age the ids come backwards
        wanted.sort(key=lambda batch: (int(batch[2:]) // 2, -int(batch[2:])))
    assert up == wanted
    assert headings(many.get(f"/?sort=-{column}"))[0] == [("descending", column)]


def test_sorted_stuck_batches_are_all_there(many):
    stuck = set(troubled(many))

    by_deadline = all_batches(many, "/?state=in_trouble&sort=deadline")

    assert set(by_deadline) == stuck
    opened = [batch for batch in by_deadline if batch[2:].isdigit() and int(batch[2:]) % 2 == 0]
    assert by_deadline[: len(opened)] == opened
    assert opened == sorted(opened, key=lambda batch: int(batch[2:]) * 37 % 60)


def test_a_search_and_what_nobody_registered_are_sorted_too(many):
    assert all_batches(many, "/?q=b-01&sort=-batch") == [f"b-01{n}" for n in range(9, -1, -1)]
    waiting = all_batches(many, "/?state=not_registered&sort=-batch")
    assert waiting == [f"early-{n}" for n in range(9, -1, -1)]
    assert len(all_batches(many, "/?state=not_registered&from=1h")) == 10
    assert all_batches(many, "/?state=not_registered&to=1h") == []


def test_the_board_shows_the_batches_of_a_range_of_time(many):
    some = all_batches(many, "/?from=30.5h&to=0.5h")

    assert some == sorted(some, key=lambda batch: (int(batch[2:]) // 2, -int(batch[2:])))
    assert {int(batch[2:]) // 2 for batch in some} == set(range(1, 31))
    assert headings(many.get("/?from=30h"))[0] == [("ascending", "age")]
    cancelled = [batch for batch in some if int(batch[2:]) % 2]
    assert all_batches(many, "/?from=30.5h&to=0.5h&state=cancelled") == cancelled


def test_a_state_without_a_deadline_is_not_sorted_by_it(many):
    page = many.get("/?sort=deadline")
    (ready,) = re.findall(r'href="([^"]*state=cancelled[^"]*)"', page.text)

    assert "deadline" in headings(page)[1]
    assert "sort" not in ready
    assert "deadline" not in headings(many.get("/?state=cancelled"))[1]


def test_a_sorted_board_of_a_range_is_live(many):
    with many.viewer("/stream?sort=batch&from=3d") as event:
        data = until(
            lambda: (e := event().get("data", "")) and "b-002" in e and e, what="it is read"
        )

    assert re.findall(r"/batches/(b-00\d)", data)[:3] == ["b-001", "b-002", "b-003"]


def test_a_filter_shows_only_its_state(served):
    waiting, ready = make.new_batch(), announced(served, make.new_batch())
    story.register(served.lifecycle, waiting, 2)

    shown = served.get("/?state=ready_for_pipeline_execution").batches

    assert ready in shown
    assert waiting not in shown
    assert waiting in served.get("/?state=awaiting_content_validation").batches


@pytest.fixture(scope="module")
def sought(served):
    """A batch with everything that it can be found by."""
    batch, correlation = f"sought-{uuid4().hex[:8]}", str(uuid4())
    story.register(
        served.lifecycle, batch, 2, user_id="teacher-of-sought", correlation_id=correlation
    )
    assign(served, batch, "a", "the good one.docx")
    story.reject(served.lifecycle, batch, "upload-bad", original_file_name="the bad one.pdf")
    assign(served, batch, "over", "one too many.docx")
    waited = f"waited-{uuid4().hex[:8]}"
    assign(served, waited, "early", "early.docx")
    return {"batch": batch, "correlation": correlation, "waited": waited}


def assign(served, batch, name, file_name):
    story.assign(
        served.lifecycle,
        batch,
        f"text-sought-{name}",
        file_upload_id=f"upload-{name}",
        original_file_name=file_name,
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("{batch}", "batch"),
        ("sought-", "batch"),
        ("teacher-of-s", "batch"),
        ("{correlation}", "batch"),
        ("text-sought-a", "batch"),
        ("upload-a", "batch"),
        ("the good one.docx", "batch"),
        ("upload-bad", "batch"),
        ("one too many.docx", "batch"),
        ("{waited}", "waited"),
        ("text-sought-early", "waited"),
    ],
)
def test_a_search_finds_a_batch_by_what_people_have_in_hand(served, sought, words, found):
    answer = served.get("/?q=" + words.format(**sought).replace(" ", "%20"))

    assert answer.batches == [sought[found]]


def test_a_search_for_nothing_known_says_so(served):
    answer = served.get("/?q=nobody-knows-this")

    assert answer.status == 200
    assert answer.batches == []
    assert "No batches for nobody-knows-this" in answer.words


def test_the_counters_count(served):
    before = settled(served)
    batch = announced(served, make.new_batch(), 1)
    story.register(served.lifecycle, make.new_batch(), 1)
    letter(served, batch)

    wanted = {"Open": 1, "Ready today": 1, "Outbox waiting": 2, "Dead letters": 1, "Stuck": 1}
    grown = {name: before[name] + more for name, more in wanted.items()}
    until(lambda: counters(served).items() >= grown.items(), what="every counter has counted")
    assert counters(served)["Workers alive"] == 1


def settled(served):
    """Read the counters when nothing is left that becomes trouble by itself."""
    change(served, "UPDATE event_outbox SET published_at = now() WHERE published_at IS NULL")
    now = datetime.now(UTC)
    until(lambda: served.stream.stuck.at > now, what="the rules were asked again")
    return counters(served)


def counters(served):
    served.lives()
    found = re.findall(
        r"<dt>(?:<a[^>]*>)?([^<]+)(?:</a>)?</dt><dd>([\d\u202f]+)", served.get("/").text
    )
    return {name: int(number.replace("\u202f", "")) for name, number in found}


def test_the_throughput_is_what_the_workers_counted_in_the_last_minute(served):
    name = 'els_content_assignment_total{outcome="assigned"}'
    with served.viewer() as event:
        event()
        served.client.hincrbyfloat("els:metrics", name, 1234)
        shown = ""
        while "1\u202f234" not in shown:
            shown = event().get("data", "")

    assert "Assigned in the last minute" in shown


# --- one batch ------------------------------------------------------------------------------------


def test_a_batch_shows_its_slots_events_timeline_and_both_sides(served):
    batch = announced(served, make.new_batch(), 3)

    page = served.get(f"/batches/{batch}")

    assert page.status == 200
    assert page.text.count('class="cell assigned" id=') == 3
    assert "every slot accounted for and sealed" in page.words
    assert re.search(r"2 BatchEssaysReady waits", page.words)
    assert "Postgres decides slots 3 open 0 assigned 3" in page.words
    assert "Redis makes it fast free 0" in page.words
    assert f"kwargs%3A{batch}" in page.text


def test_a_slot_tells_its_content_but_never_its_student(served):
    batch = make.new_batch()
    announced(served, batch, 1, class_id="class-1")
    story.confirm(served.lifecycle, batch, {"essay-000000": "student-secret"})

    page = served.get(f"/batches/{batch}?slot=essay-000000")

    assert "text-000000" in page.words
    assert "student-secret" not in page.text


def test_the_slots_of_a_large_batch_come_in_pages(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 1_500)

    first = served.get(f"/batches/{batch}")
    second = served.get(f"/batches/{batch}{first.following.partition('#')[0]}")

    assert first.text.count('class="cell open" id=') == 1_000
    assert second.text.count('class="cell open" id=') == 500


def test_a_batch_that_nobody_has_seen_is_not_found_and_explained(served):
    page = served.get("/batches/nobody-has-seen-it")

    assert page.status == 404
    assert "Nobody has registered this batch, and no content waits for it" in page.words


def test_whatever_is_named_like_a_script_shows_as_text(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 1, course_code="C")
    story.assign(served.lifecycle, batch, original_file_name=SCRIPT)
    change(
        served,
        "UPDATE batch_essay_trackers SET user_id = %s, course_code = %s WHERE batch_id = %s",
        SCRIPT,
        SCRIPT,
        batch,
    )
    letter(served, SCRIPT, "CODE" + SCRIPT, SCRIPT)

    pages = [
        served.get(path)
        for path in (
            "/",
            f"/?q={batch}",
            "/?q=%3Cscript%3Ealert(%27odd%27)%3C%2Fscript%3E",
            f"/batches/{batch}?slot=essay-000000",
            "/batches/%3Cscript%3Ealert(%27odd%27)%3C%2Fscript%3E",
            "/dead-letters?batch=%3Cscript%3Ealert(%27odd%27)%3C%2Fscript%3E",
            "/%3Cscript%3Ealert(%27odd%27)%3C%2Fscript%3E",
        )
    ]

    assert all("<script>" not in page.text for page in pages)
    assert all(SCRIPT in page.words for page in pages[:6])


# --- lists ----------------------------------------------------------------------------------------


def test_dead_letters_are_filtered_and_paged(served):
    batch = make.new_batch()
    numbers = [letter(served, batch) for _ in range(102)]
    other = letter(served, batch, "POISON_MESSAGE")
    change(served, "UPDATE dead_letters SET replayed_at = now() WHERE id = %s", numbers[0])

    poison = served.get(f"/dead-letters?batch={batch}&code=POISON_MESSAGE")
    first = served.get(f"/dead-letters?batch={batch}&code=VALIDATION_ERROR")
    second = served.get(first.following)
    every = served.get(first.following + "&all=1")

    assert shown(poison) == [other]
    assert shown(first) == numbers[:1:-1]
    assert shown(second) == [numbers[1]]
    assert shown(every)[-1] == numbers[1] or "replayed" in every.words


def shown(page):
    return [int(number) for number in re.findall(r'class="num"><a [^>]*>(\d+)</a></td>', page.text)]


def test_the_outbox_lists_what_waits_and_why(served):
    batch = announced(served, make.new_batch(), 1)
    change(
        served,
        "UPDATE event_outbox SET attempts = 3, last_error = 'the broker is away'"
        " WHERE batch_id = %s AND type = 'BatchEssaysReady'",
        batch,
    )

    both = served.get(f"/outbox?batch={batch}").words
    failing = served.get(f"/outbox?batch={batch}&failing=1").words
    ready = served.get(f"/outbox?batch={batch}&type=BatchContentProvisioningCompleted").words

    assert "BatchEssaysReady" in both
    assert "BatchContentProvisioningCompleted" in both
    assert "the broker is away" in failing
    assert "BatchContentProvisioningCompleted" not in failing
    assert "BatchEssaysReady" not in ready


def headings(page):
    """The sorted column of a list by its direction, and the addresses of all headings."""
    sorted_by = re.findall(r'aria-sort="(\w+)"><a class="sort" id="by-(\w+)"', page.text)
    links = dict(re.findall(r'id="by-(\w+)" href="([^"]*)"', page.text))
    return sorted_by, {name: unescape(link).partition("#")[0] for name, link in links.items()}


def listed(served, page):
    """The rows of a list, by their first cell or batch, through all its pages."""
    seen = []
    while page:
        seen.append(page)
        page = served.get(page.following) if page.following else None
    return seen


@pytest.mark.parametrize("column", ["number", "code", "batch", "parked", "task"])
def test_dead_letters_are_sorted_by_a_click_and_a_second_one_turns_them_round(served, column):
    batch, task = make.new_batch(), f"els.{uuid4().hex}"
    numbers = [letter(served, f"{batch}-{n % 3}", f"CODE_{n % 2}") for n in range(120)]
    change(
        served,
        "UPDATE dead_letters SET task = %s, parked_at = now() - make_interval(mins => id::int %% 7)"
        " WHERE id = ANY(%s)",
        task,
        numbers,
    )
    _, links = headings(served.get(f"/dead-letters?task={task}"))

    up = served.get(links[column])
    sorted_by, links = headings(up)
    down = served.get(links[column])
    pages = listed(served, up), listed(served, down)

    order, backwards = ([n for page in pages for n in shown(page)] for pages in pages)
    assert sorted_by == [("ascending", column)]
    assert headings(down)[0] == [("descending", column)]
    assert sorted(order) == sorted(numbers)
    assert backwards == order[::-1]
    with served.pool.connection() as conn:
        key = {"number": "id", "batch": "batch_id", "parked": "parked_at"}.get(column, column)
        rows = conn.execute(
            f"SELECT id, {key}::text AS key FROM dead_letters WHERE id = ANY(%s)", [numbers]
        )
        keys = {row["id"]: row["key"] for row in rows}
    if column != "number":
        assert [keys[n] for n in order] == sorted(keys.values())


def test_a_page_of_a_sorted_list_stays_where_it_is_while_rows_come_and_go(served):
    batch = make.new_batch()
    numbers = [letter(served, batch, f"CODE_{n:03}") for n in range(110)]
    first = served.get(f"/dead-letters?batch={batch}&sort=code")
    before = shown(served.get(first.following))

    letter(served, batch, "CODE_000")
    change(served, "UPDATE dead_letters SET discarded_at = now() WHERE id = ANY(%s)", numbers[:101])

    assert before == numbers[100:]
    assert shown(served.get(first.following)) == numbers[101:]


def test_events_that_wait_are_sorted_and_paged(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 1)
    change(
        served,
        "INSERT INTO event_outbox (id, batch_id, type, generation, sequence, correlation_id, data,"
        " attempts) SELECT gen_random_uuid(), %s, 'Type' || n %% 3, n::text, n,"
        " gen_random_uuid(), '{}', n %% 5 FROM generate_series(1, 150) n",
        batch,
    )
    address = f"/outbox?batch={batch}"

    by_number = [
        n for page in listed(served, served.get(f"{address}&sort=-number")) for n in sequences(page)
    ]
    by_attempts = [
        n
        for page in listed(served, served.get(f"{address}&sort=attempts"))
        for n in sequences(page)
    ]

    assert by_number == list(range(150, 0, -1))
    assert [n % 5 for n in by_attempts] == sorted(n % 5 for n in range(1, 151))
    assert headings(served.get(address))[0] == [("ascending", "written")]


def sequences(page):
    return [int(n) for n in re.findall(r'class="num" data-label="No.">(\d+)</td>', page.text)]


def test_a_list_shows_what_came_in_a_range_of_time(served):
    batch = make.new_batch()
    old, new = letter(served, batch), letter(served, batch)
    change(served, "UPDATE dead_letters SET parked_at = '2026-01-31 08:00Z' WHERE id = %s", old)
    address = f"/dead-letters?batch={batch}"

    assert shown(served.get(f"{address}&from=1h")) == [new]
    assert shown(served.get(f"{address}&to=1h")) == [old]
    assert shown(served.get(f"{address}&from=2026-01-31+08:00&to=2026-01-31+08:01")) == [old]
    assert shown(served.get(f"{address}&from=2026-01-31+08:00:01&to=1h")) == []
    assert shown(served.get(f"{address}&to=2026-01-31T17:00%2B09:00")) == []
    assert shown(served.get(f"{address}&from=2026-01-31T17:00%2B09:00&to=2h")) == [old]
    told = served.get(f"{address}&from=2026-01-31+08:00").words
    assert "From 2026-01-31 08:00:00 UTC" in told


ODD_ADDRESSES = [
    *(
        "from=yesterday",
        "to=25:00",
        "from=1h&to=2h",
        "from=99999999d",
        "sort=colour",
        "sort=--code",
    ),
    *("from=0001-01-01T00:00%2B14:00", "to=9999-12-31T23:59-14:00", "sort=-", "after=x"),
]


@pytest.mark.parametrize("params", ODD_ADDRESSES)
@pytest.mark.parametrize("path", ["/", "/dead-letters", "/outbox"])
def test_an_odd_order_or_time_gets_one_line_that_says_what_is_wrong(served, path, params):
    answer = served.get(f"{path}?{params}")

    assert answer.status == 400
    assert "This address is not understood" in answer.words


# --- as a browser is told to treat it -------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/batches/x", "/dead-letters", "/outbox", "/nothing", "/?state=x"]
)
def test_every_page_forbids_what_it_does_not_need_and_keeps_to_it(served, path):
    page = served.get(path)

    assert page.headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'"
    )
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text)
    assert not re.search(r'(?:src|href)="(?:https?:)?//(?!127\.0\.0\.1:5555)', page.text)


def test_static_files_are_kept_by_version_and_asked_for_again_without(served):
    address = re.search(r'href="(/static/style\.css\?v=\w+)"', served.get("/").text)[1]

    versioned = served.get(address)
    bare = served.get("/static/style.css")
    again = served.get("/static/style.css", if_none_match=bare.headers["etag"])
    head = served.get(address, "HEAD")

    assert "immutable" in versioned.headers["cache-control"]
    assert bare.headers["cache-control"] == "no-cache"
    assert again.status == 304
    assert (head.status, head.text) == (200, "")
    assert head.headers["content-length"] == versioned.headers["content-length"]


def test_heads_are_answered_and_nothing_can_be_written(served):
    assert [served.get(path, "HEAD").status for path in ("/", "/outbox", "/healthz")] == [200] * 3
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert served.get("/", method).status == 405


def test_programs_get_their_errors_in_json(served):
    told = served.get("/health/nothing")

    assert told.status == 404
    assert json.loads(told.text)["status"] == "error"


# --- one dead letter ------------------------------------------------------------------------------


def letter_with(served, body):
    with served.pool.connection() as conn:
        row = conn.execute(
            "INSERT INTO dead_letters (task, task_id, batch_id, body, code, message)"
            " VALUES ('els.assign_content', %s, NULL, %s::json, 'CODE', 'why') RETURNING id",
            [str(uuid4()), body],
        ).fetchone()
    return row["id"]


def test_a_dead_letter_shows_its_body_as_text(served):
    number = letter_with(served, json.dumps({"event": {"name": SCRIPT, "of": "Zo\u00eb"}}))

    answer = served.get(f"/dead-letters/{number}")

    assert answer.status == 200
    assert SCRIPT not in answer.text
    assert SCRIPT in answer.words
    assert "Zo\u00eb" in answer.words
    assert f'href="/dead-letters/{number}"' in served.get("/dead-letters").text


def test_a_large_body_is_shown_up_to_a_limit(served):
    number = letter_with(served, json.dumps({"text": "x" * 300_000}))

    answer = served.get(f"/dead-letters/{number}")

    assert len(answer.text) < 80_000
    assert f"els dead-letters show {number}" in answer.words


@pytest.mark.parametrize(
    ("number", "status"), [("999999999", 404), ("0", 404), ("x", 400), ("9" * 30, 400)]
)
def test_a_dead_letter_that_is_not_there_has_no_page(served, number, status):
    assert served.get(f"/dead-letters/{number}").status == status


def test_a_body_that_only_json_holds_breaks_no_page(served):
    number = letter_with(served, '{"nul": "\\u0000", "half": "\\ud800", "large": 1e400}')

    assert served.get(f"/dead-letters/{number}").status == 200


def test_a_batch_that_waits_no_more_shows_no_deadline(served):
    ready, waits = announced(served, make.new_batch()), make.new_batch()
    story.register(served.lifecycle, waits, 2)

    assert "Deadline" not in served.get(f"/batches/{ready}").words
    assert "Deadline" in served.get(f"/batches/{waits}").words


def test_a_batch_names_what_has_no_slot(served):
    full, early = make.new_batch(), make.new_batch()
    story.fill(served.lifecycle, full, 1)
    story.assign(served.lifecycle, full, "text-2", original_file_name="one too many.txt")
    story.reject(served.lifecycle, early, "file-9", original_file_name=SCRIPT)

    excess, pending = served.get(f"/batches/{full}"), served.get(f"/batches/{early}")

    assert "one too many.txt excess" in excess.words
    assert "NO_AVAILABLE_SLOT" in excess.words
    assert f"{SCRIPT} pending" in pending.words
    assert SCRIPT not in pending.text


def lines_of(page):
    """The lines of the timeline, without their times."""
    found = re.search(r'<ol class="timeline">(.*?)</ol>', page.text, re.S)[1]
    lines = [unescape(re.sub(r"<[^>]*>", " ", line)) for line in found.split("<li>")[1:]]
    return [re.sub(r"\s+", " ", line).partition(" 20")[0].strip() for line in lines]


def test_the_timeline_names_the_files_of_each_line(served):
    batch = make.new_batch()
    story.assign(served.lifecycle, batch, "text-0", original_file_name="early.docx")
    early = lines_of(served.get(f"/batches/{batch}"))
    story.register(served.lifecycle, batch, 9)
    change(
        served,
        "UPDATE essay_states SET assigned_at = '2026-01-31 08:00Z' WHERE batch_id = %s"
        " AND assigned_at IS NOT NULL",
        batch,
    )
    for n in range(7):
        story.assign(served.lifecycle, batch, f"text-{n + 1}", original_file_name=f"file {n}.docx")
    story.reject(served.lifecycle, batch, "file-9", original_file_name=SCRIPT)
    change(
        served,
        "UPDATE essay_states SET assigned_at = date_trunc('second', now()) + interval '1 ms'"
        " * coalesce(substring(original_file_name from 'file (.)')::int, 9)"
        " WHERE batch_id = %s AND assigned_at > '2026-02-01'",
        batch,
    )
    story.assign(served.lifecycle, batch, "text-10", original_file_name="too many.docx")

    page = served.get(f"/batches/{batch}")
    lines = lines_of(page)

    assert early == ["arrived before the registration: 1 early.docx"]
    assert "contents assigned: 1, files rejected: 0 early.docx" in lines
    several = "file 0.docx , file 1.docx , file 2.docx , file 3.docx , file 4.docx , \u2026"
    assert f"contents assigned: 7, files rejected: 1 {several}" in lines
    assert "arrived without a slot: 1, NO_AVAILABLE_SLOT too many.docx" in lines
    assert SCRIPT not in page.text


# --- workers, queues, activity --------------------------------------------------------------------


def test_workers_tell_what_they_are_at(served):
    now = time.time()
    served.lives()
    sign = {"at": now, "queues": ["els"], "task": "els.assign_content", "held": 3, "pid": 7}
    write_sign(served.client, "worker@test", {**sign, "host": SCRIPT, "progress_at": now})
    write_pause(
        served.client, Pause("worker@test/1", Outage("postgres", "read-only"), datetime.now(UTC))
    )

    answer = served.get("/workers")
    delete_pause(served.client, "worker@test/1")

    assert "worker@test" in answer.words
    assert "els.assign_content" in answer.words
    assert "waits for postgres" in answer.words
    assert "els.control" in answer.words
    assert SCRIPT not in answer.text


def test_activity_counts_what_has_just_happened(served):
    before = served.get("/activity").words
    announced(served, make.new_batch(), 7)

    after = served.get("/activity").words

    pattern = r"Contents of ready batches ([\d\u202f]+|none)"
    counts = [
        0 if each == "none" else int(each.replace("\u202f", ""))
        for words in (before, after)
        for each in re.findall(pattern, words)[:1]
    ]
    assert counts[1] - counts[0] == 7


def test_activity_shows_the_contents_that_workers_counted(served):
    minute = int(time.time()) // 60
    served.client.hset(MINUTES, mapping={minute - 1: 40, minute - 90: 2, minute - 1500: 7})

    words = served.get("/activity").words
    served.client.delete(MINUTES)

    assert re.findall(r"Contents assigned ([\d\u202f]+|none)", words) == ["40", "42"]


def test_activity_of_moments_that_python_cannot_hold_breaks_no_page(served):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 1)
    for moment in ("infinity", "-infinity", "20000-01-01"):
        change(
            served,
            "UPDATE batch_essay_trackers SET registered_at = %s::timestamptz WHERE batch_id = %s",
            moment,
            batch,
        )
        assert served.get("/activity").status == 200
    change(served, "DELETE FROM batch_essay_trackers WHERE batch_id = %s", batch)
