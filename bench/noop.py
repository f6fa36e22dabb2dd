"""A Celery task that does nothing: what people could have used instead, and what a route costs.

`celery -A bench.noop:like_ours worker -Q bench.like_ours`
"""

import os
from typing import Any

from celery import Celery

TASK = "bench.noop"
# Who sends to a queue declares it, and must say the same of it as the workers.
ON_RABBITMQ = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}
LIKE_OURS = {"task_acks_late": True, "task_ignore_result": True}


def _app(name: str, **settings: Any) -> Celery:  # Any: values of Celery's settings
    broker = os.environ.get("ELS_BROKER_URL", "memory://")
    made = Celery(name, broker=broker, backend=os.environ.get("ELS_REDIS_URL"))
    made.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue=f"bench.{name}",
        **settings,
    )
    if broker.startswith("amqp"):
        made.conf.update(ON_RABBITMQ)
    made.task(name=TASK)(_do_nothing)
    return made


def _do_nothing(**_: object) -> None: ...


like_ours = _app("like_ours", **LIKE_OURS)
on_our_transport = _app("on_our_transport", broker_transport="durable_redis:Transport", **LIKE_OURS)
as_documented = _app("as_documented")  # acknowledged early, results kept, prefetch 4, INFO
