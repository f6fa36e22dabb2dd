"""The served read API keeps its OpenAPI document, whatever schemathesis asks it."""

import json
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from core.db.dead_letters import DeadLetter, add
from ops.web.api.openapi import openapi
from tests.core import story
from tests.factories import association, confirmation, new_batch, take

EXAMPLES = 15  # of each operation and kind, so that the whole file takes well under 30 s
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
DOCUMENT = openapi()
CASES = [
    pytest.param(path, mode, id=f"{mode.value} {path}")
    for path, each in DOCUMENT["paths"].items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or "parameters" in each["get"]
]


@pytest.fixture(scope="module")
def known(served):
    """Fill the service with batches of every kind; return ids that exist, by parameter."""
    batches = {name: new_batch() for name in ("open", "ready", "regular", "cancelled", "early")}
    story.register(served.lifecycle, batches["open"], 3, user_id="lärare \N{SNOWMAN}", org_id="o")
    story.reject(served.lifecycle, batches["open"], "file-1")
    story.fill(served.lifecycle, batches["ready"], 2, metadata={"a": [1, None]})
    story.assign(served.lifecycle, batches["ready"], "one-too-many")
    served.lifecycle.complete(batches["ready"])
    essay = "essay-" + uuid4().hex
    story.fill(served.lifecycle, batches["regular"], [essay], class_id="7b")
    served.lifecycle.complete(batches["regular"])
    told = confirmation(batches["regular"], [association(essay, "student")], "7b")
    take(served.lifecycle, "els.confirm_students", told)
    story.register(served.lifecycle, batches["cancelled"], 1)
    story.cancel(served.lifecycle, batches["cancelled"])
    story.assign(served.lifecycle, batches["early"], "text")
    refused = uuid4()
    body = json.dumps({"event_id": str(refused)})
    with served.pool.connection() as conn:
        add(conn, DeadLetter("els.x", "task", None, body, "CODE", "why"), announced=True)
        keys = conn.execute("SELECT key FROM idempotency_keys").fetchall()
    return {
        "batch_id": [*batches.values()],
        "essay_id": [essay],
        "event_id": [str(refused), *(str(row["key"]) for row in keys)],
    }


# The page runs in threads of this process, and redis-py draws its waits from `random`: Hypothesis
# takes that for a strategy of ours.
@pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")
@pytest.mark.parametrize(("path", "mode"), CASES)
def test_every_answer_keeps_the_document(served, known, path, mode):
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path]["GET"]
    positive = mode is GenerationMode.POSITIVE
    statuses = set()

    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def ask(case, data):
        if positive:
            for name in case.path_parameters:
                case.path_parameters[name] = data.draw(st.sampled_from(known[name]))
            cursor = case.query.pop("after", None)
        answer = case.call(base_url=served.url)
        case.validate_response(answer, checks=[*CHECKS, *extra])
        statuses.add(answer.status_code)
        if positive and cursor is not None:
            case.query["after"] = cursor
            case.call_and_validate(base_url=served.url, checks=CHECKS)

    extra = [positive_data_acceptance if positive else negative_data_rejection]
    ask()

    assert 200 in statuses or not positive
