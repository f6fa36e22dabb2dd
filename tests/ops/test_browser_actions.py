"""Operators act in a real browser: by clicking, with and without JavaScript."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from core.outbox import relay
from tests import factories as make
from tests.core import story
from tests.ops.browsing import (
    DESK,
    PHONE,
    browser,  # noqa: F401 - a fixture
    needs_browser,
    profiles,
    serious_problems,
)
from tests.ops.place import a_place
from tests.ops.served import Served
from tests.ops.test_page_actions import LOGIN, SCRIPT

pytestmark = needs_browser


@pytest.fixture(scope="module")
def place(database_url):
    with a_place(database_url) as made:
        made.client.flushdb()
        yield made


@pytest.fixture(scope="module")
def page(place):
    urls = place.urls["ELS_DATABASE_URL"], place.urls["ELS_REDIS_URL"]
    with Served(*urls, ops_auth=SecretStr(LOGIN), ops_actions=True) as served:
        yield served


@pytest.fixture(scope="module")
def profile(browser):  # noqa: F811
    """Profiles of anna, who has logged in."""
    user, _, password = LOGIN.partition(":")
    return profiles(browser, http_credentials={"username": user, "password": password})


@pytest.fixture
def visit(profile, page):
    """Open an address as anna; whatever the browser complains of fails the test."""
    complaints, pages = [], []

    def complain(said):
        if "409 (Conflict)" not in said.text:  # somebody else was faster
            complaints.append(said.text)

    def look(path, **options):
        opened = profile(**options).new_page()
        pages.append(opened)
        opened.set_viewport_size(DESK)
        opened.on("console", complain)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("dialog", lambda dialog: complaints.append(dialog.message))
        opened.goto(page.url + path)
        return opened

    page.lives()
    yield look
    for opened in pages:
        opened.close()
    assert complaints == []


@pytest.fixture
def keep(request):
    """Keep a picture, if somebody asked for pictures."""

    def shoot(opened, name):
        if folder := request.config.getoption("--images"):
            opened.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return shoot


@pytest.fixture
def batch(place):
    name = make.new_batch()
    story.register(place.lifecycle, name, 3)
    story.assign(place.lifecycle, name)
    return name


scripts = pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])


@scripts
def test_a_batch_is_amended_and_then_cancelled_by_clicking(place, batch, visit, keep, scripts):
    opened = visit(f"/batches/{batch}", java_script_enabled=scripts)
    keep(opened, "acts-batch")

    opened.get_by_role("link", name="Amend").click()
    opened.get_by_label("Deadline: from now").fill("3d")
    opened.get_by_label("At the deadline").select_option("proceed")
    keep(opened, "acts-amend")
    opened.get_by_role("button", name="Continue").click()
    opened.get_by_label("Reason").fill("the school is closed")
    keep(opened, "acts-amend-confirm")
    opened.get_by_role("button", name="Amend the batch").click()
    opened.get_by_text("This batch was amended.").wait_for()
    opened.get_by_text("amended by anna: the school is closed").wait_for()

    opened.get_by_role("link", name="Cancel", exact=True).click()
    opened.get_by_role("link", name="Do nothing").click()
    opened.get_by_role("link", name="Cancel", exact=True).click()
    opened.get_by_label("Reason").fill(SCRIPT)
    opened.get_by_role("button", name="Cancel the batch").click()
    opened.get_by_text("This batch was cancelled.").wait_for()
    opened.get_by_text(f"cancelled by anna: {SCRIPT}").wait_for()
    keep(opened, "acts-cancelled")

    done = [(each["action"], each["actor"]) for each in place.actions(batch_id=batch)]
    assert done == [("cancel", "anna"), ("amend", "anna")]


@scripts
def test_a_letter_is_discarded_and_sent_again_by_clicking(place, visit, keep, scripts):
    number = place.park(f"batch-of-{scripts}", code="EXPIRED")
    opened = visit(f"/dead-letters?batch=batch-of-{scripts}", java_script_enabled=scripts)
    keep(opened, "acts-letters")

    opened.get_by_role("link", name="Discard those that wait").click()
    opened.get_by_text("1 letter: els.cancel_batch, EXPIRED").wait_for()
    opened.get_by_label("Reason").fill("of a test")
    opened.get_by_role("button", name="Discard").click()
    opened.get_by_text("1 dead letter discarded.").wait_for()
    discarded = place.letter(number)["state"]
    opened.goto(opened.url.partition("/dead-letters")[0] + f"/dead-letters/{number}")
    opened.get_by_role("link", name="Send again").click()
    keep(opened, "acts-replay")
    opened.get_by_role("button", name="Send again").click()
    opened.get_by_text("1 dead letter sent again.").wait_for()

    assert (discarded, place.letter(number)["state"]) == ("discarded", "replayed")
    assert [each["action"] for each in place.actions()[:2]] == ["replay", "discard"]


@scripts
def test_a_batch_is_mended_and_its_events_delivered_again_by_clicking(place, page, visit, scripts):
    batch = make.new_batch()
    story.fill(place.lifecycle, batch, 1)
    opened = visit(f"/batches/{batch}", java_script_enabled=scripts)

    opened.get_by_role("link", name="Reconcile").click()
    opened.get_by_role("button", name="Run the sweep").click()
    opened.get_by_text("The sweep ran: it found 1, mended 1, and left 0.").wait_for()
    relay(place.pool, [batch], lambda events: None)
    opened.goto(f"{page.url}/batches/{batch}")
    opened.get_by_role("link", name="Deliver its events again").click()
    opened.get_by_text("2 events: the relay delivers them again.").wait_for()
    opened.get_by_role("button", name="Deliver again").click()
    opened.get_by_text("2 events queued").wait_for()

    done = [each["action"] for each in place.actions(batch_id=batch)]
    assert done == ["republish", "reconcile"]


@scripts
def test_whoever_comes_second_is_led_to_what_the_first_has_done(place, batch, visit, scripts):
    first, second = (visit(f"/act/cancel?batch={batch}", java_script_enabled=scripts) for _ in "ab")
    for opened in (first, second):
        opened.get_by_label("Reason").fill("sent twice")

    first.get_by_role("button", name="Cancel the batch").click()
    first.get_by_text("This batch was cancelled.").wait_for()
    second.get_by_role("button", name="Cancel the batch").click()
    second.get_by_text(f"Batch {batch} is cancelled.").wait_for()
    second.get_by_role("link", name="Go there").click()

    second.get_by_text("cancelled by anna: sent twice").wait_for()
    assert len(place.actions(batch_id=batch)) == 1


def test_a_form_of_another_site_is_refused_whatever_the_browser_knows(place, page, batch, visit):
    opened = visit(f"/act/cancel?batch={batch}")
    signature = opened.locator("[name=signature]").get_attribute("value")
    fields = {"batch": batch, "reason": "evil", "signature": signature}
    inputs = "".join(f'<input name="{k}" value="{v}">' for k, v in fields.items())
    form = f'<form method="post" action="{page.url}/act/cancel">{inputs}<button>Go</button></form>'
    other = opened.context.new_page()
    other.route(
        "http://evil.localhost/", lambda route: route.fulfill(body=form, content_type="text/html")
    )
    other.goto("http://evil.localhost/")

    with other.expect_response("**/act/cancel") as answer:
        other.get_by_role("button").click()
    other.close()

    assert answer.value.status == 403
    assert place.actions(batch_id=batch) == []


@pytest.mark.parametrize(
    "path",
    [
        *("/act/cancel?batch={batch}", "/act/amend?batch={batch}", "/act/republish"),
        *("/act/amend?batch={batch}&deadline=3d", "/act/replay?number={number}"),
        *("/batches/{batch}", "/dead-letters", "/dead-letters/{number}", "/outbox"),
        "/batches/{batch}?done=no",
    ],
)
def test_axe_finds_no_serious_problem_and_it_fits_a_phone(place, batch, visit, keep, path):
    opened = visit(path.format(batch=batch, number=place.park(batch)), bypass_csp=True)

    assert serious_problems(opened) == []

    for width in (DESK["width"], PHONE["width"]):
        opened.set_viewport_size({**PHONE, "width": width})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    keep(opened, "phone-" + path.strip("/").partition("?")[0].replace("/", "-"))
