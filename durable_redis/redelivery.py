"""What a message says of its earlier deliveries."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from kombu.utils.encoding import bytes_to_str

DELIVERY_COUNT = "x-delivery-count"  # 1 once a worker was lost that may have begun the message


def lost_workers(headers: Any) -> int:  # Any: a mapping, or a task's request, which has `get` too
    """Return 1 if a worker was lost that may have begun this message, else 0.

    On RabbitMQ, which has the same header, this is the number of earlier deliveries.
    """
    count = headers.get(DELIVERY_COUNT)
    return count if isinstance(count, int) else 0


def redelivered(entry: bytes, *, overdue: bool) -> tuple[dict[str, Any], str, str]:  # Any: JSON
    """Return message, exchange and routing key of an unacked entry, the message marked.

    An overdue message has lost its worker; its header says so, once. Raises one of MALFORMED.
    """
    message, exchange, routing_key = json.loads(bytes_to_str(entry))
    headers = message.get("headers")
    if overdue and isinstance(headers, dict) and _may_have_begun(message, headers):
        headers[DELIVERY_COUNT] = 1
    for part in (headers, message["properties"].get("delivery_info")):
        if isinstance(part, dict):
            part["redelivered"] = True
    return message, exchange, routing_key


def _may_have_begun(message: Mapping[str, Any], headers: Mapping[str, Any]) -> bool:  # Any: JSON
    """Tell whether the lost worker may have begun this message, and nobody else can count it.

    Whoever begins a redelivered message counts that itself. A worker does not begin a message
    before its `eta`.
    """
    info = message["properties"].get("delivery_info")
    parts = (headers, info) if isinstance(info, dict) else (headers,)
    return not any(part.get("redelivered") for part in parts) and not _lies_ahead(
        headers.get("eta")
    )


def _lies_ahead(eta: object) -> bool:
    try:
        at = datetime.fromisoformat(cast(str, eta))
    except (TypeError, ValueError):
        return False  # no `eta`, or one that Celery refuses
    return (at if at.tzinfo else at.replace(tzinfo=UTC)) > datetime.now(UTC)
