"""The ids of both kits follow one rule: the table says what it gives, and this is the rule."""

import json
from pathlib import Path
from uuid import UUID, uuid5

import pytest

from core.parsing import canonical

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
NAMESPACE = UUID("0b9f2c53-64b8-5d0e-8c55-3f0c6a4b7d21")


@pytest.mark.parametrize("vector", VECTORS["event_ids"], ids=lambda vector: vector["case"])
def test_an_event_id_follows_from_task_and_body(vector):
    body = {k: v for k, v in vector["event"].items() if k not in {"event_id", "timestamp"}}

    found = uuid5(NAMESPACE, f"{vector['task']}\n{canonical(body)}")

    assert str(found) == vector["event_id"]


@pytest.mark.parametrize("vector", VECTORS["correlation_ids"], ids=lambda v: v["batch_id"])
def test_a_correlation_id_follows_from_the_batch(vector):
    assert str(uuid5(NAMESPACE, f"batch\n{vector['batch_id']}")) == vector["correlation_id"]
