"""Ids that follow from what a message says, so that a repeat has the id of the first one."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

from els_client._service.parsing import canonical

NAMESPACE = UUID("0b9f2c53-64b8-5d0e-8c55-3f0c6a4b7d21")
NOT_COMPARED = frozenset({"event_id", "timestamp"})


def event_id(task: str, event: Mapping[str, Any]) -> UUID:  # Any: JSON
    """Return the id of a message: the same for the same task and body, else another one.

    The rule: `uuid5` of `NAMESPACE` and the task, a line break, and the canonical JSON of the body
    (keys sorted, no spaces) without `event_id` and `timestamp`. The service compares the same
    fields, so an id of this rule never meets another body. Raises ValueError, TypeError or
    RecursionError for what JSON cannot hold.
    """
    body = {name: value for name, value in event.items() if name not in NOT_COMPARED}
    return uuid5(NAMESPACE, f"{task}\n{canonical(body)}")


def correlation_id(batch_id: str) -> UUID:
    """Return the correlation id that all messages of a batch have where the sender gives none."""
    return uuid5(NAMESPACE, f"batch\n{batch_id}")
