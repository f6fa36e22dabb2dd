"""What operators do on the page: confirmed, signed by its login, recorded; and nothing else."""

import base64
import http.client
import os
import re
import time
from dataclasses import dataclass
from html import unescape
from urllib.parse import urlencode, urlsplit

import pytest
from pydantic import SecretStr

from core.errors import BadSettings
from core.outbox import relay
from core.settings import Settings
from ops.web import forms, limits, tokens
from ops.web.acts import dead_letters
from ops.web.app import create_app
from ops.web.tokens import Signer
from tests import factories as make
from tests.core import looks, story
from tests.ops.conftest import els
from tests.ops.place import a_place
from tests.ops.served import Served, own_redis

LOGIN = "anna:sesame"
SCRIPT = "<script>alert(1)</script>"


@dataclass
class Reply:
    status: int
    text: str
    headers: dict

    @property
    def words(self):
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", self.text)))

    @property
    def hidden(self):
        """The fields that the form of a confirmation sends back."""
        found = re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', self.text)
        return {name: unescape(value) for name, value in found}


class Operator:
    """A browser that knows the login."""

    def __init__(self, page, login=LOGIN):
        self.port = page.port
        self.login = base64.b64encode(login.encode()).decode()

    def ask(self, method, path, body=None, **headers):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Authorization": f"Basic {self.login}", **named}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            return Reply(answer.status, answer.read().decode(), dict(answer.getheaders()))
        finally:
            connection.close()

    def get(self, path):
        return self.ask("GET", path)

    def post(self, name, fields, **headers):
        form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        return self.ask("POST", f"/act/{name}", urlencode(fields), **form)

    def act(self, name, reason="", **given):
        """Confirm and do; return the page that it leads to."""
        asked = self.get(f"/act/{name}?{urlencode(given)}")
        assert asked.status == 200, asked.words
        done = self.post(name, {**asked.hidden, "reason": reason})
        assert done.status == 303, done.words
        return self.get(done.headers["location"])


@pytest.fixture(scope="module")
def whole(database_url):
    with a_place(database_url) as made:
        yield made


@pytest.fixture(scope="module")
def page(whole):
    urls = whole.urls["ELS_DATABASE_URL"], whole.urls["ELS_REDIS_URL"]
    with Served(*urls, ops_auth=SecretStr(LOGIN), ops_actions=True) as served:
        yield served


@pytest.fixture
def place(whole, page):
    """The servers, empty."""
    whole.client.flushdb()
    page.lives()
    with whole.pool.connection() as conn:
        conn.execute("TRUNCATE batch_essay_trackers, idempotency_keys CASCADE")
        conn.execute("TRUNCATE dead_letters, operator_actions, event_outbox")
    return whole


@pytest.fixture
def anna(page):
    return Operator(page)


def a_batch(place, **fields):
    batch = make.new_batch()
    story.register(place.lifecycle, batch, 2, **fields)
    return batch


def status_of(place, batch):
    with place.pool.connection() as conn:
        return looks.batch(conn, batch)


# --- each action ---------------------------------------------------------------------------------


def test_a_batch_is_cancelled_by_the_login_with_its_reason(place, anna):
    batch = a_batch(place)
    story.assign(place.lifecycle, batch)

    asked = anna.get(f"/act/cancel?batch={batch}")
    shown = anna.act("cancel", "sent twice", batch=batch)

    assert "1 slot of it will stay empty" in asked.words
    assert "It keeps the 1 content that it has" in asked.words
    assert shown.status == 200
    assert "This batch was cancelled." in shown.words
    assert "cancelled by anna: sent twice" in shown.words
    assert "/act/cancel" not in shown.text
    (action,) = place.actions(batch_id=batch)
    assert (action["actor"], action["action"], action["reason"]) == ("anna", "cancel", "sent twice")
    assert action["changes"] == {"status": ["awaiting_content_validation", "cancelled"]}
    with place.pool.connection() as conn:
        (event,) = looks.events(conn, batch)
    assert (event["type"], event["data"]["reason"]) == ("BatchCancelled", "sent twice")
    assert event["published_at"] is not None


def test_a_batch_is_amended_as_it_was_confirmed(place, anna):
    batch = a_batch(place)

    first = anna.get(f"/act/amend?batch={batch}")
    given = {"batch": batch, "deadline": "3d", "on_deadline": "proceed", "prompt_ref": '{"id": 7}'}
    asked = anna.get(f"/act/amend?{urlencode(given)}")
    shown = anna.act("amend", "school is closed", **given)

    assert first.hidden == {"batch": batch}
    assert 'name="deadline"' in first.text
    assert "At the deadline: fail becomes proceed." in asked.words
    assert 'The prompt null becomes {"id": 7}.' in asked.words
    assert "This batch was amended." in shown.words
    (action,) = place.actions(batch_id=batch)
    assert (action["actor"], action["reason"]) == ("anna", "school is closed")
    assert set(action["changes"]) == {"deadline_at", "on_deadline", "student_prompt_ref"}
    wanted = make.datetime.fromisoformat(asked.hidden["deadline"])
    assert abs((status_of(place, batch)["deadline_at"] - wanted).total_seconds()) < 30


def test_the_sweep_runs_for_a_batch_and_for_all(place, anna):
    batch = make.new_batch()
    story.fill(place.lifecycle, batch, 1)

    shown = anna.act("reconcile", "cannot wait", batch=batch)
    anna.act("reconcile")

    assert "The sweep ran: it found 1, mended 1, and left 0." in shown.words
    everywhere, here = place.actions(name="reconcile")
    assert (here["target"], here["actor"], here["reason"]) == (
        f"batch {batch}",
        "anna",
        "cannot wait",
    )
    assert here["changes"]["mended"]["full_not_announced"] == 1
    assert (everywhere["target"], everywhere["reason"]) == ("every batch", None)


@pytest.mark.parametrize(("name", "state"), [("replay", "replayed"), ("discard", "discarded")])
def test_a_letter_is_sent_again_or_settled(place, anna, name, state):
    number = place.park("batch-x")

    asked = anna.get(f"/act/{name}?number={number}")
    shown = anna.act(name, "of a test", number=number)

    assert f"dead letter {number}" in asked.words
    assert "Batch: batch-x." in asked.words
    assert place.letter(number)["state"] == state
    assert "1 dead letter" in shown.words
    assert len(place.sent()) == (name == "replay")
    (action,) = place.actions()
    assert (action["actor"], action["action"], action["reason"]) == ("anna", name, "of a test")
    assert action["target"] == f"dead letter {number}"


def test_a_discarded_letter_can_still_be_sent_again_and_a_sent_one_cannot(place, anna):
    number = place.park("batch-x")
    anna.act("discard", number=number)

    shown = anna.act("replay", number=number)
    again = anna.get(f"/act/replay?number={number}")

    assert "/act/" not in shown.text
    assert again.status == 409
    assert f"els dead-letters replay {number}" in again.words
    assert len(place.sent()) == 1


@pytest.mark.parametrize("name", ["replay", "discard"])
def test_the_letters_of_a_filter_are_meant_and_none_that_come_later(place, anna, name):
    old = [place.park("batch-a", code="EXPIRED") for _ in range(3)]
    other = place.park("batch-a", code="UNKNOWN_BATCH")
    listed = anna.get("/dead-letters?code=EXPIRED&batch=batch-a")
    (address,) = re.findall(rf'href="(/act/{name}\?[^"]*)"', listed.text)

    asked = anna.get(unescape(address))
    late = place.park("batch-a", code="EXPIRED")
    done = anna.post(name, {**asked.hidden, "reason": "mended"})

    assert "3 letters: els.cancel_batch, EXPIRED" in asked.words
    assert done.status == 303, done.words
    assert done.headers["location"].startswith("/dead-letters?batch=batch-a&code=EXPIRED&done=")
    assert {place.letter(each)["state"] for each in old} != {"waiting"}
    assert [place.letter(each)["state"] for each in (other, late)] == ["waiting", "waiting"]
    assert {each["target"] for each in place.actions()} == {f"dead letter {each}" for each in old}
    assert {(each["actor"], each["reason"]) for each in place.actions()} == {("anna", "mended")}


def test_letters_outside_the_range_of_time_are_not_meant(place, anna):
    earlier, later = (place.park("batch-t") for _ in range(2))
    with place.pool.connection() as conn:
        conn.execute(
            "UPDATE dead_letters SET parked_at = now() - interval '3 hours' WHERE id = %s",
            [earlier],
        )
    listed = anna.get("/dead-letters?batch=batch-t&to=2h")
    (address,) = re.findall(r'href="(/act/discard\?[^"]*)"', listed.text)

    done = anna.post("discard", {**anna.get(unescape(address)).hidden, "reason": "old"})

    assert done.headers["location"].startswith("/dead-letters?batch=batch-t&to=20")
    assert [place.letter(each)["state"] for each in (earlier, later)] == ["discarded", "waiting"]


def test_letters_that_cannot_be_sent_again_are_skipped_and_said(place, anna):
    place.park("batch-x")
    unreadable = place.park(None, "unknown", "MALFORMED_MESSAGE", {"base64": "eA=="})

    shown = anna.act("replay")
    alone = anna.get(f"/act/replay?number={unreadable}")

    assert "1 dead letter sent again. 1 skipped" in shown.words
    assert alone.status == 409
    assert "correct it at its sender" in alone.words


def test_more_letters_than_the_page_sends_at_once_are_left_to_the_command(place, anna, monkeypatch):
    monkeypatch.setattr(dead_letters, "AT_ONCE", 1)
    for _ in range(2):
        place.park(code="RETRIES EXHAUSTED")

    refused = anna.get("/act/replay?code=RETRIES+EXHAUSTED")

    assert refused.status == 409
    assert "els dead-letters replay --code 'RETRIES EXHAUSTED'" in refused.words


def test_events_are_delivered_again(place, anna):
    batch = make.new_batch()
    story.fill(place.lifecycle, batch, 1)
    place.lifecycle.complete(batch)
    relay(place.pool, [batch], lambda events: None)

    form = anna.get("/act/republish?type=BatchEssaysReady")
    shown = anna.act("republish", "lost downstream", since="2h", type="BatchEssaysReady")
    nothing = anna.get("/act/republish?since=2h&type=BatchCancelled")
    of_batch = anna.get(f"/act/republish?batch={batch}")

    assert 'name="since"' in form.text
    assert "1 event queued" in shown.words
    assert nothing.status == 404
    assert "1 event: the relay delivers them again" in of_batch.words
    (action,) = place.actions()
    assert (action["actor"], action["action"]) == ("anna", "republish")
    assert (action["target"], action["changes"]) == (f"events of batch {batch}", {"events": 1})
    assert "events to be delivered again: 1 by anna: lost downstream" in place.timeline(batch)


# --- what is refused -----------------------------------------------------------------------------

CASES = ["cancel", "amend", "reconcile", "replay", "discard", "republish", "replay all"]


@pytest.fixture(params=CASES)
def prepared(request, place, anna):
    """An action that a confirmation asks about, and how to see that nothing came of it."""
    batch = make.new_batch()
    story.fill(place.lifecycle, batch, 1)
    number = place.park(batch)
    with place.pool.connection() as conn:
        conn.execute("UPDATE batch_essay_trackers SET deadline_at = now() + interval '1 day'")
    if request.param == "republish":
        place.lifecycle.complete(batch)
        relay(place.pool, [batch], lambda events: None)
    given = {
        "amend": {"batch": batch, "on_deadline": "proceed"},
        "replay": {"number": number},
        "discard": {"number": number},
        "replay all": {},
    }.get(request.param, {"batch": batch})
    name = request.param.partition(" ")[0]
    asked = anna.get(f"/act/{name}?{urlencode(given)}")
    assert asked.status == 200, asked.words

    def state():
        with place.pool.connection() as conn:
            tables = ("batch_essay_trackers", "event_outbox", "dead_letters", "operator_actions")
            rows = [conn.execute(f"SELECT * FROM {each} ORDER BY 1").fetchall() for each in tables]
        return rows, place.sent()

    return name, {**asked.hidden, "reason": "because"}, state


def another_signature(name, fields, login="bert:sesame"):
    given = {each: v for each, v in fields.items() if each not in ("reason", "signature")}
    return {**fields, "signature": Signer(*login.split(":")).sign([name, given])}


REFUSALS = {
    "without a signature": lambda name, fields: {**fields, "signature": ""},
    "no signature field": lambda name, fields: {
        k: v for k, v in fields.items() if k != "signature"
    },
    "a signature of nobody": lambda name, fields: {**fields, "signature": "1.é"},
    "of another user": another_signature,
    "of another password": lambda *form: another_signature(*form, login="anna:other"),
    "another field": lambda name, fields: {**fields, "batch": "batch-other"},
    "one field more": lambda name, fields: {**fields, "code": "EXPIRED"},
}


@pytest.mark.parametrize("change", REFUSALS)
def test_a_form_that_this_page_did_not_sign_changes_nothing(anna, prepared, change):
    name, fields, state = prepared
    before = state()

    refused = anna.post(name, REFUSALS[change](name, fields))

    assert refused.status == 403
    assert "open the page again" in refused.words
    assert state() == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=lambda headers: " ".join(*headers.items()),
)
def test_a_form_of_another_site_changes_nothing(anna, prepared, headers):
    name, fields, state = prepared
    before = state()

    assert anna.post(name, fields, **headers).status == 403
    assert state() == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_only_a_post_acts(anna, prepared, method):
    name, fields, state = prepared
    before = state()

    answer = anna.ask(method, f"/act/{name}?{urlencode(fields)}")

    assert answer.status in ({200} if method in ("GET", "HEAD") else {405})
    assert state() == before


def test_without_the_login_nothing_is_even_asked(page, prepared):
    name, fields, state = prepared
    before, stranger = state(), Operator(page, "anna:wrong")

    assert stranger.get(f"/act/{name}").status == 401
    assert stranger.post(name, fields).status == 401
    assert state() == before


def test_another_process_with_the_login_takes_the_form(place, anna, prepared):
    name, fields, _ = prepared
    urls = place.urls["ELS_DATABASE_URL"], place.urls["ELS_REDIS_URL"]
    with Served(*urls, ops_auth=SecretStr(LOGIN), ops_actions=True) as second:
        origin = f"http://127.0.0.1:{second.port}"
        done = Operator(second).post(name, fields, Origin=origin, Sec_Fetch_Site="same-origin")

    assert done.status == 303, done.words
    assert place.actions()


def test_a_form_that_was_open_for_too_long_is_opened_again(place, anna, monkeypatch):
    batch = a_batch(place)
    asked = anna.get(f"/act/cancel?batch={batch}")
    late = time.time() + tokens.LASTS_S + 1
    monkeypatch.setattr(tokens.time, "time", lambda: late)

    refused = anna.post("cancel", {**asked.hidden, "reason": "x"})

    assert refused.status == 403
    assert place.actions() == []
    again = anna.get(onward(refused))
    assert anna.post("cancel", {**again.hidden, "reason": "x"}).status == 303


def onward(refused):
    """The address that a refusal leads on to."""
    return unescape(re.search(r'class="error".*?<a href="([^"]*)"', refused.text, re.S)[1])


@pytest.mark.parametrize("reason", ["", "  ", "x" * 1025], ids=["none", "blank", "too long"])
@pytest.mark.parametrize("name", ["cancel", "amend", "discard"])
def test_a_reason_is_required_as_for_the_commands(place, anna, name, reason):
    batch = a_batch(place)
    place.park(batch)
    asked = anna.get(f"/act/{name}?batch={batch}&on_deadline=proceed")
    assert "required" in asked.text

    refused = anna.post(name, {**asked.hidden, "reason": reason})

    assert refused.status == 400
    assert "reason" in refused.words
    assert place.actions() == []
    assert anna.get(onward(refused)).hidden.keys() == asked.hidden.keys()


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("cancel?batch=nobody", 404),
        ("cancel", 404),
        ("amend?batch=nobody", 404),
        ("amend?batch={batch}&deadline=soon", 400),
        ("amend?batch={batch}&deadline=2001-01-01", 400),
        ("amend?batch={batch}&deadline=1e999d", 400),
        ("amend?batch={batch}&deadline=99999999999999d", 400),
        ("amend?batch={batch}&on_deadline=wait", 400),
        ("amend?batch={batch}&prompt_ref=[1]", 400),
        ("amend?batch={batch}&prompt_ref={{", 400),
        ("cancel?batch={done}", 409),
        ("amend?batch={done}&deadline=2h", 409),
        ("replay?number=999999", 404),
        ("replay?number=-1", 400),
        ("discard?number=99999999999999999999", 400),
        ("replay?code=NONE", 404),
        ("replay?from=yore", 400),
        ("republish?since=yore", 400),
        ("republish?since=99999999d", 400),
        ("purge", 404),
        ("cancel?batch=%00", 400),
    ],
)
def test_what_cannot_be_done_is_a_plain_page(place, anna, address, status):
    batch, done = a_batch(place), make.new_batch()
    story.fill(place.lifecycle, done, 1)
    place.lifecycle.complete(done)

    refused = anna.get("/act/" + address.format(batch=batch, done=done))

    assert refused.status == status, refused.words
    assert "<h1>" in refused.text
    assert "signature" not in refused.text
    assert anna.get(onward(refused)).status == (404 if "batch=nobody" in address else 200)


def test_what_changed_since_the_confirmation_is_refused(place, anna):
    batch, number = a_batch(place), place.park()
    cancel = anna.get(f"/act/cancel?batch={batch}").hidden
    replay = anna.get(f"/act/replay?number={number}").hidden
    anna.act("cancel", "first", batch=batch)
    anna.act("replay", number=number)

    refused = [
        anna.post("cancel", {**cancel, "reason": "second"}),
        anna.post("replay", replay),
    ]

    assert [each.status for each in refused] == [409, 409]
    assert [onward(each) for each in refused] == [f"/batches/{batch}", f"/dead-letters/{number}"]
    assert len(place.actions()) == 2
    assert [task for task, _ in place.sent()] == ["els.cancel_batch"]


def test_a_deadline_past_every_limit_is_refused_as_the_commands_refuse_it(place, anna):
    batch = a_batch(place)
    asked = anna.get(f"/act/amend?batch={batch}&deadline=9000d")

    refused = anna.post("amend", {**asked.hidden, "reason": "x"})

    assert refused.status == 409
    assert "deadline_s" in refused.words
    assert place.actions() == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ("reason=" + "x" * limits.FORM_BYTES, None, 413),
        ("{}", "application/json", 415),
        ("reason=x", "multipart/form-data; boundary=x", 415),
        ("reason=x", "", 415),
        ("reason=x&reason=y", None, 400),
        ("reason=%00", None, 400),
        ("reason=%FF", None, 400),
        ("é", None, 400),
        ("&".join(f"f{n}=1" for n in range(forms.FIELDS + 1)), None, 400),
        ("", None, 403),
    ],
)
def test_a_body_that_no_form_of_ours_sends_is_refused(place, anna, body, kind, status):
    kind = forms.TYPE if kind is None else kind

    refused = anna.ask("POST", "/act/reconcile", body.encode(), Content_Type=kind)

    assert refused.status == status, refused.words
    assert refused.headers["connection"] == "close"
    assert place.actions() == []


def test_a_form_that_never_comes_whole_ends(place, page, anna, monkeypatch):
    monkeypatch.setattr(forms, "HEAD_S", 0.2)
    headers = {"Content-Type": forms.TYPE, "Content-Length": "100"}

    assert anna.ask("POST", "/act/reconcile", b"reason=", **headers).status == 408


def test_a_server_that_is_away_is_named_with_the_next_step(place, page, anna, monkeypatch):
    number = place.park()
    asked = anna.get(f"/act/replay?number={number}")
    away = page.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    connections = page.app.state.stream.connections
    monkeypatch.setattr(connections, "settings", away)

    refused = anna.post("replay", asked.hidden)

    assert refused.status == 503
    assert "The broker did not take it" in refused.words
    assert "els actions list" in refused.words
    assert onward(refused) == f"/act/replay?number={number}"
    assert place.letter(number)["state"] == "waiting"


def test_a_role_that_only_reads_is_named_with_the_next_step(place):
    batch = a_batch(place)
    role = f"reader_{batch.replace('-', '_')}"
    url = urlsplit(place.urls["ELS_DATABASE_URL"])
    reader = url._replace(netloc=f"{role}:x@{url.netloc.rpartition('@')[2]}").geturl()
    with place.pool.connection() as conn:
        conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE pg_read_all_data")
    redis_url = place.urls["ELS_REDIS_URL"]
    try:
        with Served(reader, redis_url, ops_auth=SecretStr(LOGIN), ops_actions=True) as page:
            operator = Operator(page)
            asked = operator.get(f"/act/cancel?batch={batch}")
            refused = operator.post("cancel", {**asked.hidden, "reason": "x"})
    finally:
        with place.pool.connection() as conn:
            conn.execute(f"DROP ROLE {role}")

    assert refused.status == 503
    assert "Postgres does not let the page write" in refused.words
    assert "docs/access.md" in refused.words
    assert status_of(place, batch)["status"] == "awaiting_content_validation"


def test_hostile_text_is_escaped_wherever_it_is_shown(place, anna):
    batch = a_batch(place)

    asked = anna.get("/act/cancel?" + urlencode({"batch": SCRIPT}))
    shown = anna.act("cancel", SCRIPT, batch=batch)
    forged = anna.get(f"/batches/{batch}?" + urlencode({"done": "Call 555", "signed": "1.x"}))

    assert SCRIPT in shown.words or f"cancelled by anna: {SCRIPT}" in unescape(shown.text)
    for each in (asked, shown):
        assert "<script>" not in each.text
    assert "Call 555" not in forged.words
    assert place.actions()[0]["reason"] == SCRIPT


# --- with and without the setting ----------------------------------------------------------------


def test_the_pages_offer_what_can_be_done(place, anna):
    batch, number = a_batch(place), place.park()

    offered = {
        path: set(re.findall(r'href="/act/(\w+)', anna.get(path).text))
        for path in (
            *(f"/batches/{batch}", "/batches/nobody", "/dead-letters", f"/dead-letters/{number}"),
            *("/outbox", "/?state=in_trouble", "/"),
        )
    }

    assert list(offered.values()) == [
        {"reconcile", "amend", "cancel"},
        set(),
        {"replay", "discard"},
        {"replay", "discard"},
        {"republish"},
        {"reconcile"},
        set(),
    ]


@pytest.mark.parametrize("login", [LOGIN, None])
def test_without_the_setting_there_is_neither_a_form_nor_a_button(place, login):
    batch, number = a_batch(place), place.park()
    urls = place.urls["ELS_DATABASE_URL"], place.urls["ELS_REDIS_URL"]
    with Served(*urls, ops_auth=login and SecretStr(login)) as plain:
        operator = Operator(plain)
        paths = (f"/batches/{batch}", "/dead-letters", f"/dead-letters/{number}", "/outbox", "/")
        shown = [operator.get(path) for path in paths]
        answers = [operator.get(f"/act/cancel?batch={batch}"), operator.post("reconcile", {})]
        posted = operator.ask("POST", f"/batches/{batch}", "reason=x").status

    assert {each.status for each in shown} == {200}
    assert all("/act/" not in each.text and "Read-only" in each.words for each in shown)
    assert [each.status for each in answers] == [404, 404]
    assert posted == 405
    assert place.actions() == []


def test_with_the_setting_the_other_pages_still_take_no_post(place, anna):
    batch = a_batch(place)

    answers = {
        anna.ask("POST", path, "a=b").status for path in ("/", f"/batches/{batch}", "/outbox")
    }

    assert answers == {405}


def test_a_page_that_acts_does_not_start_without_a_login():
    url = own_redis(os.environ["ELS_REDIS_URL"])
    given = {"database_url": os.environ["ELS_DATABASE_URL"], "redis_url": url, "ops_actions": True}
    settings = Settings(**given)

    with pytest.raises(BadSettings, match="set ELS_OPS_AUTH=user:password"):
        create_app(settings)


@pytest.mark.parametrize("command", ["ops", "run"])
def test_that_is_one_line_with_the_next_step(command, tmp_path):
    urls = {name: os.environ[name] for name in ("ELS_DATABASE_URL", "ELS_REDIS_URL")}

    told = els(command, home=tmp_path / "home", ELS_OPS_ACTIONS="1", **urls)

    assert told.returncode == 1
    assert told.stderr.splitlines()[-1].startswith("els: ELS_OPS_ACTIONS lets whoever sees")
    assert "set ELS_OPS_AUTH=user:password" in told.stderr
    assert "Traceback" not in told.stderr
