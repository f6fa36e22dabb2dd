"""What a backlog delays: the readiness of a full batch, and deadlines.

    python -m bench.backlog --waiting 30000 --broker-url amqp://…

Single contents wait in the queue before the workers start. While at least half of them still wait,
it measures the time from the commit that fills a batch to its readiness, and how late deadlines
are kept. RabbitMQ must be an empty one; without a URL the broker is the embedded Valkey.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

from bench.load import CLASS, register, registration
from bench.measure import number, percentile
from bench.testbed import Crew, Servers, Testbed, open_testbed
from core.messages import BatchEssaysRegistered
from core.parsing import parse
from core.servers.urls import is_amqp
from ops.stack.supervisor import procfile
from tasks.app import PUSHED

DEADLINES = 20
EVERY_S = 1.0  # between two deadlines
PATIENCE_S = 1800
HALF = """
SELECT max(created_at) AS until FROM (
    SELECT created_at FROM idempotency_keys WHERE task = 'els.assign_content'
    ORDER BY created_at LIMIT %s) AS first_half
"""
RATE = """
SELECT count(*) / extract(epoch FROM max(created_at) - min(created_at))::float AS placed,
       count(*) / extract(epoch FROM (SELECT max(published_at) FROM event_outbox
                                      WHERE type = 'BatchEssaysReady')
                                     - min(created_at))::float AS delivered
FROM idempotency_keys WHERE task = 'els.assign_content'
"""
READY = """
SELECT extract(epoch FROM t.ready_at - t.full_at)::float AS ready_s,
       extract(epoch FROM o.published_at - t.full_at)::float AS delivered_s
FROM batch_essay_trackers t
JOIN event_outbox o ON o.batch_id = t.batch_id AND o.type = 'BatchEssaysReady'
WHERE t.full_at < %s
"""
LATE = """
SELECT extract(epoch FROM o.created_at - t.deadline_at)::float AS late_s
FROM batch_essay_trackers t
JOIN event_outbox o ON o.batch_id = t.batch_id AND o.type = 'BatchReadinessTimeout'
WHERE t.deadline_at < %s
"""
KEPT = "SELECT count(*) AS n FROM event_outbox WHERE type = 'BatchReadinessTimeout'"
ANNOUNCED = (
    "SELECT count(*) AS n FROM event_outbox"
    " WHERE type = 'BatchEssaysReady' AND published_at IS NOT NULL"
)


Found = dict[str, dict[str, float]]


def measure(testbed: Testbed, waiting: int, deadlines: int = DEADLINES) -> Found:
    """Fill the queue, let workers and beat begin, and read what they did when."""
    batches = register(testbed, [CLASS] * (waiting // CLASS))
    testbed.queues.fill(testbed.queue, chain.from_iterable(b.singles() for b in batches))
    _register_deadlines(testbed, deadlines)
    testbed.run("beat", procfile()["beat"], {}, times=1)
    workers = testbed.els()
    before = testbed.cpu_s(workers)
    for query, due in ((ANNOUNCED, len(batches)), (KEPT, deadlines)):
        testbed.until(lambda q=query, n=due: _row(testbed, q)["n"] >= n, PATIENCE_S, query)  # type: ignore[misc] # defaults
    used = testbed.cpu_s(workers)
    half = _row(testbed, HALF, waiting // 2)["until"]
    ready, late = _rows(testbed, READY, half), _rows(testbed, LATE, half)
    return {
        "waiting": {"contents": waiting},
        "contents_a_second": _row(testbed, RATE),
        "cpu_us_a_content": {name: (used[name] - before[name]) / waiting * 1e6 for name in used},
        "full_to_ready_s": _spread([row["ready_s"] for row in ready]),
        "full_to_delivered_s": _spread([row["delivered_s"] for row in ready]),
        "deadline_late_s": _spread([row["late_s"] for row in late]),
    }


def _register_deadlines(testbed: Testbed, deadlines: int) -> None:
    for count in range(1, deadlines + 1):
        message = registration(1)
        given = {**message.kwargs["event"], "deadline_s": count * EVERY_S}
        event, idem = parse(BatchEssaysRegistered, message.task, given, 2**23)
        testbed.lifecycle.register_batch(event, idem)


def _row(testbed: Testbed, query: str, *values: object) -> dict[str, Any]:  # Any: of Postgres
    return _rows(testbed, query, *values)[0]


def _rows(testbed: Testbed, query: str, *values: object) -> list[dict[str, Any]]:  # Any: likewise
    time.sleep(0.2)  # it asks again and again, beside what it measures
    with testbed.pool.connection() as conn:
        return conn.execute(query.encode(), values).fetchall()


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return the number of values, the median, the 99th percentile and the largest."""
    if not values:
        return {"n": 0}
    p50, p99 = (percentile(values, share) for share in (0.5, 0.99))
    return {"n": len(values), "p50": p50, "p99": p99, "max": max(values)}


def main() -> None:
    """Read the options, measure once, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Measure what a backlog delays.")
    parser.add_argument("--waiting", type=int, default=30_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--broker-url")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    amqp = is_amqp(str(options.broker_url))
    crew = Crew(processes=options.processes, prefetch=PUSHED if amqp else 1)
    servers = Servers(broker_url=options.broker_url)
    with open_testbed(crew, servers, lambda line: print(line, file=sys.stderr)) as testbed:
        found = measure(testbed, options.waiting)
    if options.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        print(name, " ".join(f"{key} {number(value)}" for key, value in values.items()))


if __name__ == "__main__":
    main()
