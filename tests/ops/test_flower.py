"""Flower: who may look, that looking is all, and that nothing secret or personal is seen."""

import base64
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest

from core import db
from tests import factories as make
from tests.live.conftest import until
from tests.ops.conftest import answering, els

KNOWN = {"Authorization": "Basic " + base64.b64encode(b"flower:sesame").decode()}
PAGES = [
    "/",
    "/workers?json=1",
    "/tasks",
    "/broker",
    "/api/workers",
    "/api/tasks",
    "/api/task/types",
    "/api/queues/length",
]
LOGIN = {
    "provider": "github",
    "allow": r".*@school\.example",
    "key": "key-of-els",
    "secret": "secret-of-els",
    "redirect_uri": "http://127.0.0.1:5555/login",
}


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def ask(url, headers=KNOWN, **more):
    """Return status, headers and body; redirects are not followed."""
    request = urllib.request.Request(url, headers=headers, **more)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()
    except urllib.error.URLError:
        return 0, {}, ""


@pytest.fixture(scope="module")
def flower(service):
    url = service.env["flower_url"]
    until(lambda: ask(f"{url}/healthcheck")[0] == 200, 60, "Flower is up")
    return url


def serve(**environ):
    return answering("flower", "ELS_FLOWER_PORT", "/healthcheck", **environ)


def submit(service, *messages):
    lines = [json.dumps({"task": task, "event": event}) for task, event in messages]
    return service.els("submit", "-", "--wait", "--timeout-s", "5", stdin="\n".join(lines))


def tasks_of(flower, batch, state):
    """Wait for Flower to show tasks of this batch in this state."""

    def shown():
        tasks = json.loads(ask(f"{flower}/api/tasks")[2] or "{}").values()
        return [t for t in tasks if batch in (t["kwargs"] or "") and t["state"] == state]

    return until(shown, what=f"Flower shows a {state}")


def test_finished_tasks_are_shown_without_names(service, flower):
    batch, name = make.new_batch(), f"Anna-{uuid4().hex[:6]}.docx"

    submit(
        service,
        ("els.register_batch", make.registration(batch, 1)),
        ("els.assign_content", make.content(batch, original_file_name=name)),
    )

    def both():
        return len({t["name"] for t in tasks_of(flower, batch, "SUCCESS")}) >= 2

    until(both, what="both tasks are shown")
    assert all(task["args"] == "()" for task in tasks_of(flower, batch, "SUCCESS"))
    assert name not in ask(f"{flower}/api/tasks")[2]


def test_a_task_that_failed_is_shown_without_what_its_row_held(service, flower):
    batch, name = make.new_batch(), f"Anna-{uuid4().hex[:6]}.docx"
    with db.connect_once(service.env["database_url"]) as conn:
        conn.execute(
            "CREATE FUNCTION tell_the_row() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'this row fails: %', NEW; END $$"
        )
        conn.execute(
            "CREATE TRIGGER tell_the_row BEFORE UPDATE ON essay_states FOR EACH ROW"
            f" WHEN (NEW.batch_id = '{batch}') EXECUTE FUNCTION tell_the_row()"
        )
        try:
            submit(
                service,
                ("els.register_batch", make.registration(batch, 1)),
                ("els.assign_content", make.content(batch, original_file_name=name)),
            )
            [failed] = tasks_of(flower, batch, "FAILURE")
        finally:
            conn.execute("DROP FUNCTION tell_the_row CASCADE")

    assert failed["exception"].startswith("RaiseException")
    assert name not in json.dumps(failed)
    assert name not in ask(f"{flower}/task/{failed['uuid']}")[2]


@pytest.mark.parametrize("page", PAGES)
def test_no_page_shows_a_password_of_a_server(service, flower, page):
    status, _, body = ask(flower + page)

    urls = [service.env[name] for name in ("database_url", "redis_url", "broker_url")]
    secrets = {urlsplit(url).password for url in urls} | {"sesame"}
    assert status == 200
    assert not [secret for secret in secrets if secret in body]


def test_flower_knows_of_workers_what_their_events_tell(service, flower):
    def workers():
        return json.loads(ask(f"{flower}/workers?json=1")[2])["data"]

    [worker] = until(workers, what="Flower has heard of the worker")
    told = ask(f"{flower}/api/workers?refresh=1")[2]

    assert worker["status"]
    assert "task_acks_late" not in told, "nobody may ask it for more"


def test_flower_does_not_warn_that_no_worker_answers_it(service, flower):
    assert ask(f"{flower}/api/workers?refresh=1")[0] == 200

    log = (Path(service.env["home"]) / "log/flower.log").read_text()

    assert "Inspect method" not in log


@pytest.mark.parametrize("page", PAGES)
def test_without_the_password_no_page_answers(flower, page):
    assert ask(flower + page, headers={})[0] == 401


def test_looking_is_all(flower):
    sent = ask(f"{flower}/api/task/send-task/els.sweep", data=b"{}", method="POST")

    assert sent[0] == 403


def test_without_a_password_the_rest_api_is_closed_to_web_sites(database_url):
    with serve(FLOWER_UNAUTHENTICATED_API="true") as (url, _):
        status, headers, _ = ask(f"{url}/api/workers", headers={})
        page = ask(url, headers={})

    assert status == 401
    assert page[0] == 200
    assert "Access-Control-Allow-Origin" not in [*headers, *page[1]]


def test_with_oauth_whoever_looks_is_sent_to_the_provider(database_url):
    with serve(ELS_FLOWER_OAUTH=json.dumps(LOGIN)) as (url, process):
        login = ask(url, headers={})
        provider = ask(f"{url}/login", headers={})
        api = ask(f"{url}/api/workers", headers={})
        command = " ".join(psutil.Process(process.pid).cmdline())

    assert (login[0], login[1]["Location"].partition("?")[0]) == (302, "/login")
    assert provider[1]["Location"].startswith("https://github.com/login/oauth/authorize?")
    assert "client_id=key-of-els" in provider[1]["Location"]
    assert api[0] in (302, 401)
    assert LOGIN["secret"] not in command


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"ELS_FLOWER_AUTH": "flower:a,b"}, "comma"),
        ({"ELS_FLOWER_AUTH": "flower:a-b-é"}, "ASCII"),
        ({"ELS_FLOWER_OAUTH": '{"provider": "myspace"}'}, "ELS_FLOWER_OAUTH"),
    ],
    ids=["a comma in the password", "a letter that Flower cannot compare", "an unknown provider"],
)
def test_a_setting_that_would_not_protect_is_refused(tmp_path, environ, told):
    refused = els("flower", home=tmp_path, **environ)

    assert refused.returncode == 1
    assert told in refused.stderr
    assert not {"a,b", "a-b"} & {*re.findall("a.b", refused.stderr)}
