"""The pages in a real browser: Debian's Chromium, driven by Playwright.

`pytest tests/ops/test_browser.py --images FOLDER` keeps pictures; some are in `docs/images`.
"""

import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from uuid import uuid4

import pytest

from core.metrics import ASSIGNED, HASH, MINUTES
from core.signs.heartbeat import write_sign
from ops.web.stream import SECTIONS
from tests import factories as make
from tests.core import story
from tests.live.conftest import until
from tests.names import NAMES
from tests.ops.browsing import (
    DESK,
    PHONE,
    browser,  # noqa: F401 - a fixture
    needs_browser,
    profiles,
    serious_problems,
)
from tests.ops.served import Served
from tests.ops.test_board import SCRIPT, letter

pytestmark = needs_browser
# The cells of tables whose text is wider than they are, as far as something stands right of them.
CUT_OFF = """() => [...document.querySelectorAll("td, th, .counters div")]
    .filter(cell => cell.scrollWidth > cell.clientWidth + 1 && getComputedStyle(cell).position
        !== "absolute")
    .map(cell => cell.outerHTML)"""
WIDTHS = [PHONE["width"], 768, 1024]


@pytest.fixture(scope="module")
def profile(browser):  # noqa: F811
    return profiles(browser)


@pytest.fixture
def visit(profile, served):
    """Open an address; whatever the browser complains of, or asks of others, fails the test."""
    complaints, pages = [], []

    def look(path, viewport=DESK, color_scheme="light", **options):
        page = profile(**options).new_page()
        pages.append(page)
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=color_scheme)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if not ours(asked) else None)
        page.goto(served.url + path)
        return page

    def ours(asked):
        return asked.url.startswith((served.url, "data:"))

    served.lives()
    yield look
    for page in pages:
        page.close()
    assert complaints == []


@pytest.fixture
def keep(request):
    """Keep a picture, if somebody asked for pictures."""

    def shoot(page, name):
        if folder := request.config.getoption("--images"):
            page.screenshot(path=Path(folder) / f"{name}.png")

    return shoot


def upload(served, batch, count, start=0):
    """Upload texts, and count them as a worker does."""
    story.upload(served.lifecycle, batch, story.texts(count, start))
    served.client.hincrbyfloat(HASH, ASSIGNED, count)


def row(page, batch):
    return page.locator("#rows tr", has=page.get_by_role("link", name=batch, exact=True))


def live(page):
    page.get_by_text("Live", exact=True).wait_for()


@contextmanager
def never_loaded_again(page):
    """Make sure that the page is the same one afterwards."""
    page.evaluate("window.sameAsBefore = true")
    yield
    assert page.evaluate("window.sameAsBefore")


def a_class(served, name, filled, slots=25, **fields):
    """Register a batch as people name theirs, with so many texts."""
    batch = f"{name}-{uuid4().hex[:4]}"
    told = {"course_code": "ENG5", "user_id": "teacher-anna", **fields}
    story.register(served.lifecycle, batch, slots, **told)
    if filled:
        upload(served, batch, filled)
    return batch


@pytest.fixture(scope="module")
def school(served):
    """A board with something of everything."""
    for name, course, teacher in [
        ("spring-essays-7a", "SV1", "teacher-bo"),
        ("book-reports-8c", "ENG5", "teacher-cia"),
        ("national-test", "NP-ENG", "school-norra"),
    ]:
        done = a_class(served, name, 25, course_code=course, user_id=teacher)
        served.lifecycle.complete(done)
    mock = a_class(served, "mock-exam-3a", 24, class_id="class-3a", user_id="teacher-bo")
    story.reject(served.lifecycle, mock, "blank-scan", original_file_name="blank scan.pdf")
    served.lifecycle.complete(mock)
    story.cancel(served.lifecycle, a_class(served, "summer-course", 4, 12))
    half = a_class(served, "autumn-essays-9c", 14)
    story.reject(served.lifecycle, half, "torn-page", original_file_name="torn page.pdf")
    with served.pool.connection() as conn:
        conn.execute("UPDATE event_outbox SET published_at = now() WHERE published_at IS NULL")
    stuck = a_class(served, "autumn-essays-9b", 25)
    overfull = a_class(served, "winter-essays-9a", 1, 1)
    story.assign(served.lifecycle, overfull, "text-9", original_file_name="one too many.pdf")
    wrong = "els.assign_content: file_size_bytes: too small"
    number = letter(served, half, "VALIDATION_ERROR", wrong)
    return {"stuck": stuck, "half": half, "overfull": overfull, "letter": number}


def test_a_batch_fills_while_the_page_is_open(served, school, visit, keep):
    batch = a_class(served, "autumn-essays-9d", 6)
    page = visit("/")
    live(page)
    row(page, batch).get_by_text("6 of 25").wait_for()

    with never_loaded_again(page):
        upload(served, batch, 12, 6)
        row(page, batch).get_by_text("18 of 25").wait_for()
        keep(page, "board")
        assert row(page, batch).get_by_role("img").get_attribute("aria-label").startswith("18 ass")

        upload(served, batch, 7, 18)
        served.lifecycle.complete(batch)
        row(page, batch).get_by_text("Ready", exact=True).wait_for()


def test_a_page_whose_own_script_comes_late_is_live_all_the_same(served, browser):  # noqa: F811
    def late(route):
        page.wait_for_timeout(1000)  # the stream would answer meanwhile
        route.continue_()

    page = browser.new_page()
    page.route("**/live.js*", late)
    page.goto(served.url, wait_until="commit")

    live(page)
    page.close()


def test_a_new_batch_appears_while_the_page_is_open(served, visit):
    page = visit("/")
    live(page)

    with never_loaded_again(page):
        batch = a_class(served, "late-essays", 0)
        row(page, batch).wait_for()


def test_a_stuck_batch_stands_first_and_shows_its_cause(school, visit, keep):
    page = visit("/")

    page.get_by_role("link", name="Stuck").first.click()
    stuck = row(page, school["stuck"])
    cause = "All slots are accounted for, but the batch was not announced"
    assert cause in stuck.inner_text()

    stuck.get_by_role("link").click()
    page.get_by_role("heading", name=cause).wait_for()
    assert "the sweep seals and announces it within seconds" in page.inner_text("main")
    live(page)
    keep(page, "stuck")


def test_people_search_from_the_keyboard(school, visit):
    page = visit("/outbox")

    page.keyboard.press("/")
    page.keyboard.type(school["half"][:-2])
    page.keyboard.press("Enter")

    row(page, school["half"]).wait_for()
    assert page.locator("#rows tr").count() == 1


def test_the_grid_shows_a_slot_and_fills_while_the_page_is_open(served, school, visit, keep):
    batch = a_class(served, "autumn-essays-9e", 9)
    story.reject(served.lifecycle, batch, "blank", original_file_name="blank.pdf")
    page = visit(f"/batches/{batch}")
    live(page)
    cells = {each: page.locator(f".grid .{each}") for each in ("assigned", "failed", "open")}
    assert {each: found.count() for each, found in cells.items()} == {
        "assigned": 9,
        "failed": 1,
        "open": 15,
    }
    page.locator(".grid .assigned").first.click()
    page.locator("#slot").get_by_text("text-").first.wait_for()
    live(page)

    with never_loaded_again(page):
        upload(served, batch, 8, 9)
        cells["assigned"].nth(16).wait_for()
        page.locator(".tally .assigned").get_by_text("17", exact=True).wait_for()
        assert page.locator("#slot").is_visible()
        page.evaluate("scrollTo(0, 0)")
        page.set_viewport_size({"width": 1280, "height": 1000})
        keep(page, "filling")


def test_lists_follow_what_happens(served, visit):
    page = visit("/dead-letters")
    live(page)

    with never_loaded_again(page):
        letter(served, make.new_batch(), message="something new went wrong")
        page.get_by_text("something new went wrong").wait_for()


def test_a_page_outlives_the_process_that_served_it(served, browser):  # noqa: F811
    """Not by `visit`: the browser may well complain that nobody answers."""
    batch = a_class(served, "autumn-essays-9f", 3)
    urls = served.settings.database_url, served.settings.redis_url
    with Served(*urls) as first:
        page = browser.new_context().new_page()
        page.goto(first.url)
        live(page)
    with never_loaded_again(page):
        page.get_by_text("Connection lost").wait_for()
        story.upload(served.lifecycle, batch, story.texts(4, 3))

        with Served(*urls, port=first.port):
            live(page)
            row(page, batch).get_by_text("7 of 25").wait_for()
    page.context.close()


def test_a_heading_sorts_from_the_keyboard_and_keeps_the_focus(served, school, visit, keep):
    letter(served, school["half"], "AN_EARLIER_CODE")
    page = visit("/dead-letters?all=1")
    heading = page.get_by_role("columnheader", name="Code")

    for direction, first in (("ascending", "AN_EARLIER_CODE"), ("descending", "VALIDATION_ERROR")):
        heading.get_by_role("link").focus()
        page.keyboard.press("Enter")
        page.locator(f"th[aria-sort={direction}]", has_text="Code").wait_for()

        assert page.get_by_role("rowheader").first.inner_text().startswith(first)
        assert page.evaluate("document.activeElement.id") == "by-code"
    keep(page, "letters-sorted")


def test_what_somebody_types_into_a_filter_outlives_a_change_of_the_list(served, school, visit):
    page = visit("/dead-letters")
    live(page)
    page.get_by_label("From").type("2h")

    letter(served, make.new_batch(), message="something else went wrong")
    page.get_by_text("something else went wrong").wait_for()
    page.keyboard.press("Enter")

    page.locator(".chosen-times", has_text="2 h ago").wait_for()
    assert page.get_by_text("something else went wrong").is_visible()


def test_the_board_shows_a_range_of_time_with_the_time_there(school, visit, keep):
    page = visit("/", timezone_id="Asia/Tokyo")

    page.get_by_text("Range of time").click()
    page.get_by_text("where you are, write +09:00 behind it").wait_for()
    page.get_by_label("From").fill("2026-01-31 08:00")
    page.get_by_role("button", name="Filter").click()

    page.locator(".chosen-times", has_text="2026-01-31 08:00:00 UTC").wait_for()
    assert "· 17:00:00 here" in page.locator(".chosen-times").inner_text()
    assert page.get_by_role("columnheader", name="Age").get_attribute("aria-sort") == "ascending"
    row(page, school["half"]).wait_for()
    keep(page, "board-range")


def test_a_paused_page_stays_still_and_then_catches_up(served, visit):
    batch = a_class(served, "autumn-essays-9g", 3)
    page = visit("/")
    live(page)
    row(page, batch).get_by_text("3 of 25").wait_for()

    with never_loaded_again(page):
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("Paused", exact=True).wait_for()
        upload(served, batch, 4, 3)
        with served.viewer() as event:  # another viewer sees it
            until(lambda: "<b>7</b> of 25" in event().get("data", ""), what="it is sent")
        assert row(page, batch).get_by_text("3 of 25").is_visible()
        upload(served, batch, 2, 7)

        page.get_by_role("button", name="Resume").click()
        row(page, batch).get_by_text("9 of 25").wait_for()
        live(page)


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_workers_and_activity_follow_what_happens(served, visit, viewport, monkeypatch):
    monkeypatch.setitem(SECTIONS, "activity", replace(SECTIONS["activity"], every_s=0.0))
    workers, activity = visit("/workers", viewport), visit("/activity", viewport)
    for page in (workers, activity):
        live(page)

    with never_loaded_again(workers), never_loaded_again(activity):
        served.lives()
        write_sign(served.client, "worker@test", {"at": time.time(), "task": "els.some_task"})
        workers.get_by_text("els.some_task").wait_for()
        served.client.hset(MINUTES, int(time.time() / 60), 4321)
        activity.get_by_text("4\u202f321 in all").first.wait_for()
    served.client.delete(MINUTES)


def test_it_works_without_javascript(served, school, visit):
    page = visit("/", java_script_enabled=False)

    page.get_by_role("searchbox").fill(school["stuck"])
    page.get_by_role("button", name="Search").click()
    row(page, school["stuck"]).get_by_role("link").click()

    page.get_by_role("heading", name=school["stuck"]).wait_for()
    assert page.locator(".grid .assigned").count() == 25
    page.locator(".grid .assigned").nth(3).click()
    assert "essay-000003" in page.inner_text("#slot")
    assert "Reload for news" in page.inner_text("header >> nth=0")


def luminance(page, selector):
    return page.evaluate(
        """selector => {
            const ctx = document.createElement('canvas').getContext('2d');
            ctx.fillStyle = getComputedStyle(document.querySelector(selector)).backgroundColor;
            ctx.fillRect(0, 0, 1, 1);
            const [r, g, b] = ctx.getImageData(0, 0, 1, 1).data;
            return (r + g + b) / 765;
        }""",
        selector,
    )


def test_it_is_dark_where_people_want_it_dark(school, visit, keep):
    light, dark = visit("/", color_scheme="light"), visit("/", color_scheme="dark")

    assert luminance(light, "body") > 0.9
    assert luminance(dark, "body") < 0.15
    live(dark)
    keep(dark, "board-dark")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/batches/{half}", "/batches/{overfull}", "/dead-letters", "/dead-letters/{letter}"),
        *("/outbox", "/workers", "/activity", "/nothing", "/?sort=-age&from=3d"),
        *("/dead-letters?all=1", "/dead-letters?all=1&sort=code&from=3d"),
        *("/outbox?sort=attempts", "/outbox?from=soon"),
    ],
)
def test_a_page_fits_and_no_part_is_cut_off_or_covers_another(served, school, profile, keep, path):
    """Not by `visit`: the browser complains of an address that does not exist."""
    with profile(timezone_id="Asia/Tokyo").new_page() as page:
        page.goto(served.url + path.format(**school))
        page.get_by_role("heading", level=1).wait_for(state="attached")

        for width in WIDTHS:
            page.set_viewport_size({**PHONE, "width": width})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(CUT_OFF) == [], width

        if path == "/":
            page.set_viewport_size(PHONE)
            live(page)
            keep(page, "board-phone")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/batches/{half}", "/batches/{overfull}", "/dead-letters?all=1", "/outbox"),
        *("/dead-letters/{letter}", "/workers", "/activity", "/?sort=-age&from=3d&to=1s"),
        *("/dead-letters?all=1&sort=-code&from=3d", "/outbox?sort=attempts"),
    ],
)
def test_axe_finds_no_serious_problem(school, visit, path):
    assert serious_problems(visit(path.format(**school), bypass_csp=True)) == []


def test_a_field_of_a_filter_stands_below_its_label(visit):
    page = visit("/dead-letters")

    for viewport, name in product((DESK, PHONE), ("Batch", "Task", "Code")):
        page.set_viewport_size(viewport)
        label = page.locator(".fields label", has_text=name).first.bounding_box()
        field = page.get_by_label(name, exact=True).bounding_box()
        below, beside = field["y"] - label["y"], field["x"] - label["x"]
        assert abs(beside) < 2
        assert 0 < below < 40


def test_a_date_in_a_list_breaks_into_no_more_lines_than_it_has(school, visit, keep):
    page = visit("/dead-letters?all=1", timezone_id="Asia/Tokyo")
    page.locator(".local", has_text=" here").first.wait_for()

    for cell in page.locator(".list .both").all():
        lines = cell.evaluate("cell => cell.getClientRects()[0].height / 22.5")
        assert lines < 2.5, "UTC; the age and the time there"
    keep(page, "letters")


def test_a_page_that_is_never_live_does_not_ask_for_a_reload(school, visit):
    page = visit("/dead-letters/{letter}".format(**school))

    page.get_by_role("heading", level=1).wait_for()

    assert not page.get_by_text("Reload for news").is_visible()


def test_in_utc_no_other_time_is_shown(school, visit):
    page = visit("/dead-letters?all=1", timezone_id="UTC")
    live(page)

    assert page.locator(".local:visible").count() == 0


@pytest.mark.parametrize("name", ["workers", "activity", "dead-letters/{letter}"])
def test_the_other_pages_look_as_they_should(served, school, visit, keep, name):
    now = time.time()
    sign = {"at": now, "queues": ["els", "els.internal", "els.control"], "held": 3, "pid": 41}
    more = {"task": "els.assign_content", "began_at": now, "progress_at": now, "host": "host-1"}
    write_sign(served.client, "worker@test", {**sign, **more})
    page = visit(f"/{name.format(**school)}")

    for viewport, of in ((DESK, "desk"), (PHONE, "phone")):
        page.set_viewport_size(viewport)
        page.get_by_role("heading", level=1).wait_for()
        keep(page, f"{name.partition('/')[0]}-{of}")


def test_a_script_in_a_name_is_shown_and_never_run(served, visit):
    batch = make.new_batch()
    story.register(served.lifecycle, batch, 1)
    story.assign(served.lifecycle, batch, original_file_name=SCRIPT)
    page = visit(f"/batches/{batch}?slot=essay-000000")
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))

    live(page)

    assert SCRIPT in page.inner_text("#slot")


@pytest.mark.parametrize(
    "odd",
    [
        "255 letters",
        "255 of four bytes",
        "right to left",
        "an override of direction",
        "HTML",
        "blanks around",
        "line separator",
    ],
)
def test_a_name_is_shown_found_and_no_wider_than_a_phone(served, visit, odd):
    batch, name = make.new_batch(), NAMES[odd]
    story.register(served.lifecycle, batch, 1, user_id=name, course_code=name)
    page = visit(f"/batches/{batch}", PHONE)
    narrow = page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]

    page.locator(".about a").click()
    page.get_by_role("link", name=batch, exact=True).wait_for()
    narrow &= page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    shown = page.locator("#rows tr bdi").all_inner_texts()
    page.get_by_role("searchbox").press("Enter")  # the name stands in the field
    page.get_by_role("link", name=batch, exact=True).wait_for()

    assert narrow
    assert shown[:2] == [name, name]
