"""The read API over HTTP: pages, cursors, ETags, problems, and what hostile requests get."""

import base64
import json
import urllib.parse

import pytest
from jsonschema import Draft202012Validator

from core import events
from ops import pages
from ops.client import Sender
from ops.web.api.openapi import openapi
from tests.core import story
from tests.factories import content, new_batch, registration
from tests.ops.conftest import answering, fetch
from tests.ops.served import Served
from tests.scenarios import ASSIGN

HOSTILE = {
    "NUL": "%00",
    "NUL inside": "b%00atch",
    "very long": "x" * 9_000,
    "unicode": urllib.parse.quote("bätch-\N{SNOWMAN}"),
    "like SQL": urllib.parse.quote("' OR 1=1; DROP TABLE essay_states --"),
    "percent": "%25",
    "half of a character": "%ff%fe",
    "line break": "b%0d%0aX-More:%201",
    "path upward": "..%2f..%2fetc%2fpasswd",
    "blank": "%20",
    "dot": "%2e",
}


def schema_of(name):
    document = openapi()
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def answer_of(served, path, model=None, **headers):
    """Read JSON that fits its schema."""
    answer = served.get(path, **headers)
    assert answer.status == 200, answer.text
    found = json.loads(answer.text)
    if model:
        Draft202012Validator(schema_of(model)).validate(found)
    return found


def problem_of(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    found = json.loads(answer.text)
    Draft202012Validator(schema_of("Problem")).validate(found)
    assert found["status"] == answer.status
    assert found["detail"]
    return found


def pages_of(served, path, model):
    """Follow `next` from the first page on; return the items of each page."""
    join, found, after = "&" if "?" in path else "?", [], None
    while True:
        more = f"{join}after={urllib.parse.quote(after)}" if after else ""
        page = answer_of(served, path + more, model)
        found.append(page["items"])
        after = page["next"]
        if after is None:
            return found


@pytest.fixture
def batch_id():
    return new_batch()


@pytest.fixture
def user():
    return "user " + new_batch()


def registered(served, count, **fields):
    """Register batches; return their ids, the newest first."""
    made = [new_batch() for _ in range(count)]
    for each in made:
        story.register(served.lifecycle, each, 2, **fields)
    return made[::-1]


# --- batches --------------------------------------------------------------------------------------


def test_batches_come_newest_first_page_by_page(served, user):
    made = registered(served, 7, user_id=user)

    path = f"/v1/batches?user_id={urllib.parse.quote(user)}&limit=3"
    found = pages_of(served, path, "Batches")

    assert [[each["batch_id"] for each in page] for page in found] == [
        made[:3],
        made[3:6],
        made[6:],
    ]


def test_a_page_that_is_just_full_has_no_next_one(served, user):
    registered(served, 3, user_id=user)

    path = f"/v1/batches?user_id={urllib.parse.quote(user)}&limit=3"

    assert answer_of(served, path, "Batches")["next"] is None


def test_a_batch_that_comes_while_a_reader_pages_changes_no_later_page(served, user):
    made = registered(served, 4, user_id=user)
    path = f"/v1/batches?user_id={urllib.parse.quote(user)}&limit=2"
    first = answer_of(served, path)

    registered(served, 1, user_id=user)
    second = answer_of(served, f"{path}&after={first['next']}")

    assert [each["batch_id"] for each in second["items"]] == made[2:]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("state=awaiting_content_validation", "guest"),
        ("state=cancelled", "cancelled"),
        ("class_type=REGULAR", "regular"),
        ("class_type=GUEST&state=awaiting_content_validation", "guest"),
        ("stuck=true", None),
        ("stuck=false&class_type=REGULAR", "regular"),
    ],
)
def test_filters_add_up(served, user, query, wanted):
    org = "org " + new_batch()
    made = {
        "guest": new_batch(),
        "cancelled": new_batch(),
        "regular": new_batch(),
    }
    story.register(served.lifecycle, made["guest"], 1, user_id=user, org_id=org)
    story.register(served.lifecycle, made["cancelled"], 1, user_id=user, org_id=org)
    story.cancel(served.lifecycle, made["cancelled"])
    story.fill(served.lifecycle, made["regular"], 1, user_id=user, org_id=org, class_id="7b")
    served.lifecycle.complete(made["regular"])

    for owner in (f"user_id={user}", f"org_id={org}"):
        path = f"/v1/batches?{query}&{urllib.parse.quote(owner, safe='=')}"
        found = [each["batch_id"] for page in pages_of(served, path, "Batches") for each in page]
        assert found == ([made[wanted]] if wanted else [])


def test_filters_that_leave_out_whole_windows_still_find_all(served, user, monkeypatch):
    monkeypatch.setattr(pages, "WINDOW", 3)
    quoted = urllib.parse.quote(user)
    wanted = registered(served, 2, user_id=user, class_id="7b")
    registered(served, 10, user_id=user)

    found = pages_of(served, f"/v1/batches?user_id={quoted}&class_type=REGULAR", "Batches")

    assert [each["batch_id"] for page in found for each in page] == wanted
    assert found[0] == []


def test_moments_that_python_cannot_hold_break_no_page(served, user):
    made = registered(served, 3, user_id=user)
    moments = ("infinity", "20000-01-01", "0044-03-15 BC")
    with served.pool.connection() as conn:
        for batch, moment in zip(made, moments, strict=True):
            conn.execute(
                "UPDATE batch_essay_trackers SET registered_at = %s::timestamptz"
                " WHERE batch_id = %s",
                [moment, batch],
            )

    path = f"/v1/batches?user_id={urllib.parse.quote(user)}&limit=1"
    found = pages_of(served, path, "Batches")

    assert [page[0]["batch_id"] for page in found] == made
    with served.pool.connection() as conn:
        conn.execute("DELETE FROM batch_essay_trackers WHERE user_id = %s", [user])


def test_a_stuck_batch_says_which_rule_it_breaks(served, batch_id):
    story.fill(served.lifecycle, batch_id, 2)
    served.stream.stuck = None

    found = pages_of(served, "/v1/batches?stuck=true&limit=1", "Batches")

    [mine] = [each for page in found for each in page if each["batch_id"] == batch_id]
    assert [each["code"] for each in mine["stuck"]] == ["full_not_announced"]


# --- one batch ------------------------------------------------------------------------------------


def test_a_batch_has_its_counts_and_its_causes(served, batch_id):
    story.register(served.lifecycle, batch_id, 3, org_id="school")
    story.assign(served.lifecycle, batch_id, "text-1")

    found = answer_of(served, f"/v1/batches/{batch_id}", "BatchExplained")

    assert found["state"] == "awaiting_content_validation"
    assert found["org_id"] == "school"
    counts = {name: found["counts"][name] for name in ("expected_count", "open", "assigned")}
    assert counts == {"expected_count": 3, "open": 2, "assigned": 1}
    assert "waiting_for_contents" in [each["code"] for each in found["causes"]]
    assert found["timeline"]


def test_a_batch_that_fills_no_more_names_where_its_message_lies(served, batch_id):
    story.register(served.lifecycle, batch_id, 3)
    with Sender(served.settings.redis_url, "elsewhere") as sender:
        sender.send(ASSIGN, content(batch_id))

    def reasons():
        found = answer_of(served, f"/v1/batches/{batch_id}", "BatchExplained")
        return " ".join(each["reason"] for each in found["causes"])

    assert "elsewhere" not in reasons()  # a batch that fills costs the broker nothing
    with served.pool.connection() as conn:
        conn.execute(
            "UPDATE batch_essay_trackers"
            " SET registered_at = registered_at - interval '1 minute' WHERE batch_id = %s",
            [batch_id],
        )
    assert "1 message for the batch lies in the list elsewhere" in reasons()
    assert "lies in the list elsewhere" in served.get(f"/batches/{batch_id}").words


def test_a_batch_that_contents_wait_for_is_not_registered(served, batch_id):
    story.assign(served.lifecycle, batch_id, "text-1")

    found = answer_of(served, f"/v1/batches/{batch_id}", "BatchExplained")

    assert (found["state"], found["counts"]["pending"]) == ("not_registered", 1)


def test_an_unknown_batch_is_a_problem_that_says_why(served):
    problem = problem_of(served.get("/v1/batches/nobody-knows-it"))

    assert problem["type"] == "urn:essay-lifecycle-service:problem:unknown-batch"
    assert problem["causes"][0]["code"] == "unknown_batch"


# --- essays ---------------------------------------------------------------------------------------


def test_essays_come_in_the_order_of_their_ids(served, batch_id):
    story.register(served.lifecycle, batch_id, 25)
    story.assign(served.lifecycle, batch_id, "text-1", original_file_name="Zoë.txt")
    story.reject(served.lifecycle, batch_id, "file-2")

    found = pages_of(served, f"/v1/batches/{batch_id}/essays?limit=10", "BatchEssays")

    ids = [each["essay_id"] for page in found for each in page]
    assert [len(page) for page in found] == [10, 10, 5]
    assert ids == sorted(ids)
    assigned = [e for page in found for e in page if e["state"] == "ready_for_processing"]
    assert [e["original_file_name"] for e in assigned] == ["Zoë.txt"]


def test_essays_of_one_state_are_listed_alone(served, batch_id):
    story.register(served.lifecycle, batch_id, 3)
    story.reject(served.lifecycle, batch_id, "file-1")

    path = f"/v1/batches/{batch_id}/essays?state=content_ingestion_failed"

    [essay] = answer_of(served, path, "BatchEssays")["items"]
    assert essay["validation_error_code"]


def test_a_page_of_essays_may_begin_after_any_id(served, batch_id):
    story.register(served.lifecycle, batch_id, 3)
    ids = registration(batch_id, 3)["essay_ids"]

    found = answer_of(served, f"/v1/batches/{batch_id}/essays?after={ids[0]}", "BatchEssays")

    assert [each["essay_id"] for each in found["items"]] == sorted(ids)[1:]


def test_essays_of_an_unknown_batch_are_a_problem(served):
    problem_of(served.get("/v1/batches/nobody-knows-it/essays"))


def test_a_reference_in_an_event_leads_to_the_rest_of_the_essays(served, batch_id, monkeypatch):
    monkeypatch.setattr(events, "EVENT_LIMIT", 2_000)
    monkeypatch.setattr(events, "ROOM", 1_500)
    story.register(served.lifecycle, batch_id, 30)
    for number in range(5):
        story.reject(served.lifecycle, batch_id, f"file-{number}")
    story.upload(served.lifecycle, batch_id, story.texts(25))
    served.lifecycle.complete(batch_id)

    with served.pool.connection() as conn:
        rows = conn.execute("SELECT data FROM event_outbox WHERE batch_id = %s", [batch_id])
        data = [row["data"] for row in rows]
    references = [each["essays_ref"] for each in data if "essays_ref" in each]

    assert {each["field"] for each in references} >= {"essays", "ready_essays"}
    for each in references:
        last = each["first"][-1]["essay_id"]
        rest = answer_of(served, f"{each['rest']}&after={last}")["items"]
        ids = [essay["essay_id"] for essay in (*each["first"], *rest)]
        assert len(ids) == len(set(ids)) == each["total"]


# --- ETags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/batches/{}", "/v1/batches/{}/essays", "/v1/openapi.json"])
def test_what_has_not_changed_is_not_sent_again(served, batch_id, path):
    story.register(served.lifecycle, batch_id, 2, deadline_s=86_400)
    path = path.format(batch_id)
    etag = served.get(path).headers["etag"]

    same = served.get(path, If_None_Match=f'"other", W/{etag}')
    other = served.get(path, If_None_Match='"other"')

    assert (same.status, same.text, same.headers["etag"]) == (304, "", etag)
    assert (other.status, other.headers["etag"]) == (200, etag)


def test_another_check_of_the_rules_alone_is_no_change(served, batch_id):
    story.register(served.lifecycle, batch_id, 2, user_id=batch_id)
    path = f"/v1/batches?user_id={batch_id}"
    etag, before = served.get(path).headers["etag"], answer_of(served, path)
    served.stream.stuck = None  # so the next request checks them

    after = answer_of(served, path)
    same = served.get(path, If_None_Match=etag)

    assert before["rules_checked_at"] < after["rules_checked_at"]
    assert (same.status, same.headers["etag"]) == (304, etag)


def test_a_change_has_another_etag(served, batch_id):
    story.register(served.lifecycle, batch_id, 2)
    etag = served.get(f"/v1/batches/{batch_id}").headers["etag"]

    story.assign(served.lifecycle, batch_id, "text-1")

    assert served.get(f"/v1/batches/{batch_id}", If_None_Match=etag).status == 200


# --- problems -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/batches/{}",
        "/v1/batches/{}/essays",
        "/v1/batches?state={}",
        "/v1/batches?after={}",
        "/v1/batches?limit={}",
        "/v1/batches?stuck={}",
        "/v1/batches?{}=1",
        "/v1/batches/b/essays?after={}",
        "/v1/{}",
    ],
)
def test_a_hostile_value_is_a_problem(served, path, value):
    problem = problem_of(served.get(path.format(value)))

    assert problem["status"] in (404, 422)
    assert value not in json.dumps(problem)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_finds_nothing_or_is_a_problem(served, value):
    answer = served.get(f"/v1/batches?user_id={value}")

    if answer.status != 200:
        assert problem_of(answer)["errors"][0]["parameter"] == "user_id"
    else:
        assert json.loads(answer.text)["items"] == []


FORGED = {
    "no base64": "not a cursor!",
    "another list": base64.urlsafe_b64encode(b'["a"]').decode(),
    "no list": base64.urlsafe_b64encode(b"7").decode(),
    "no text": base64.urlsafe_b64encode(b"[1, 2]").decode(),
    "no such month": base64.urlsafe_b64encode(b'["2026-13-01 00:00:00+00", "b"]').decode(),
    "far away": base64.urlsafe_b64encode(b'["999999-01-01 00:00:00+00", "b"]').decode(),
    "SQL": base64.urlsafe_b64encode(b'["now()\'; SELECT", "b"]').decode(),
    "NUL": base64.urlsafe_b64encode(b'["infinity", "b\\u0000"]').decode(),
    "half a pair": base64.urlsafe_b64encode(b'["infinity", "\\ud800"]').decode(),
    "deep": base64.urlsafe_b64encode(b"[" * 700).decode(),
}


@pytest.mark.parametrize("cursor", FORGED.values(), ids=FORGED)
def test_a_forged_cursor_is_a_problem(served, cursor):
    problem = problem_of(served.get(f"/v1/batches?after={urllib.parse.quote(cursor)}"))

    assert problem["errors"][0]["parameter"] == "after"


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/batches?limit=0", "limit"),
        ("/v1/batches?limit=201", "limit"),
        ("/v1/batches?limit=1e2", "limit"),
        ("/v1/batches?limit=%2010", "limit"),
        ("/v1/batches?limit=1&limit=2", "limit"),
        ("/v1/batches?stat=cancelled", "stat"),
        ("/v1/batches?stuck=yes", "stuck"),
        ("/v1/batches/b?batch_id=c", "batch_id"),
        ("/v1/batches/b/essays?limit=10001", "limit"),
        ("/v1/openapi.json?pretty=1", "pretty"),
    ],
)
def test_a_wrong_parameter_is_named(served, path, parameter):
    problem = problem_of(served.get(path))

    assert problem["status"] == 422
    assert [each["parameter"] for each in problem["errors"]] == [parameter]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/v1/batches?limit=0", "must be greater than or equal to 1"),
        ("/v1/batches?user_id=%00", "must not hold control characters"),
        ("/v1/batches?state=open", "must be 'awaiting_content_validation', "),
        ("/v1/batches?limit=%C2%B2", "must be a whole number, written in digits"),
        ("/v1/batches?after=", "must have at least 1 character"),
        ("/v1/batches/%E2%82%AC", "must be 1 to 64 characters, each a letter"),
        ("/v1/batches/b/essays?after=", "must be 1 to 64 characters, each a letter"),
        ("/v1/messages/b", "must be a UUID"),
    ],
)
def test_the_rule_that_a_parameter_breaks_is_said_in_words(served, path, rule):
    (error,) = problem_of(served.get(path))["errors"]

    assert error["message"].startswith(rule)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/batches/b/nothing"])
def test_an_unknown_address_is_a_problem(served, path):
    assert problem_of(served.get(path))["status"] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_a_problem(served, method):
    answer = served.get("/v1/batches", method=method)

    assert problem_of(answer)["status"] == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_a_head_has_the_headers_of_the_answer(served, batch_id):
    story.register(served.lifecycle, batch_id, 1)

    head, whole = (served.get(f"/v1/batches/{batch_id}", method=m) for m in ("HEAD", "GET"))

    assert (head.status, head.text) == (200, "")
    assert head.headers["etag"] == whole.headers["etag"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example.com"}, 400),
        ({"Content-Length": "5"}, 413),
        ({"X-More": "x" * 40_000}, 431),
    ],
)
def test_a_refused_request_gets_a_problem(served, headers, status):
    answer = served.get("/v1/batches", **headers)

    if answer.headers.get("content-type") != "application/problem+json":
        assert status == 431, "the head was too large to be read at all"
    else:
        assert problem_of(answer)["status"] == status


def test_the_api_asks_for_the_password_of_the_page(served):
    right = base64.b64encode(b"els:secret").decode()
    urls = served.settings.database_url, served.settings.redis_url
    with Served(*urls, ops_auth="els:secret") as guarded:
        refused = guarded.get("/v1/openapi.json")
        admitted = guarded.get("/v1/openapi.json", Authorization=f"Basic {right}")

    assert problem_of(refused)["status"] == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert admitted.status == 200


def test_without_postgres_the_answer_is_503_and_says_what_to_do():
    environ = {"ELS_DATABASE_URL": "postgresql://els@127.0.0.1:1/els"}
    with answering("ops", "ELS_OPS_PORT", "/healthz", **environ) as (url, _):
        status, text = fetch(url + "/v1/batches")

    problem = json.loads(text)
    assert (status, problem["status"]) == (503, 503)
    assert problem["title"] == "Postgres does not answer"
    assert "els env" in problem["detail"]


def test_without_redis_the_api_goes_on_and_names_the_cause(served, batch_id):
    story.register(served.lifecycle, batch_id, 1)
    environ = {
        "ELS_DATABASE_URL": served.settings.database_url,
        "ELS_REDIS_URL": "redis://127.0.0.1:1/0",
    }
    with answering("ops", "ELS_OPS_PORT", "/healthz", **environ) as (url, _):
        status, text = fetch(f"{url}/v1/batches/{batch_id}")

    assert status == 200, text
    assert json.loads(text)["causes"][0]["code"] == "redis_unreachable"
