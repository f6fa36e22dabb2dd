"""The Celery app, and what each worker process opens once: Postgres, Redis, the lifecycle."""

import gc
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.app import trace

import durable_redis
from core import logs
from core.crash import crashpoint
from core.settings import Settings
from tasks.worker import amqp, amqp_queues
from tasks.worker.starting import wait_for_servers

if TYPE_CHECKING:
    pass

settings = Settings.from_env()
durable_redis.install()  # before the first connection
amqp.install()

RESULT_EXPIRES_S = 3600  # only chord keys: results are not stored
RESULT_ANSWER_S = 5.0  # for Redis to take a result; Celery waits for 120 s
SOFT_SHUTDOWN_S = 3.0  # what running tasks get before their messages are handed back
DEATHS = 5  # of processes that carried a message out; then it is the message that kills them
AT_ONCE = 100  # messages that a process carries out together: some 40 ms of work
BYTES_AT_ONCE = 256 * 1024  # of these: some 800 contents, and always under `claim.lua`'s 4 000
QUICK = (  # tasks whose messages are; their hop to the process costs as much as they do
    "els.assign_content",
    "els.assign_contents",
    "els.reject_content",
    "els.seal_slots",
    "els.seal_books",
)  # not els.announce_ready: it takes 2 ms a batch, and other processes are to share these
FIRST = ("els.sweep", "els.relay")  # taken before all other messages: a backlog delays neither
ONCE = {"retry": False}  # of publishing a tick: beat itself tries again
PUSHED = 2 * AT_ONCE  # messages a process on RabbitMQ, which pushes them: in work and next
GARBAGE = (10_000, 50, 50)  # allocations a collection; Python's 700 are those of two messages

app = Celery("els", include=["tasks.upstream", "tasks.completion", "tasks.maintenance"])
app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "tasks.worker.results:Backend")
app.conf.update(
    broker_url=settings.broker_url or settings.redis_url or "memory://",
    result_backend=settings.redis_url or "cache+memory://",
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    task_default_queue=settings.queue,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_always_eager=settings.eager,
    task_eager_propagates=False,  # else the first retry raises instead of running again
    result_expires=RESULT_EXPIRES_S,
    redis_socket_timeout=RESULT_ANSWER_S,
    redis_socket_connect_timeout=RESULT_ANSWER_S,
    redis_socket_keepalive=True,
    redis_backend_health_check_interval=RESULT_ANSWER_S,
    worker_consumer="tasks.worker.consumer:Consumer",
    worker_concurrency=settings.concurrency,
    worker_prefetch_multiplier=1,
    worker_deduplicate_successful_tasks=False,  # loses chord callbacks
    worker_soft_shutdown_timeout=SOFT_SHUTDOWN_S,
    worker_send_task_events=True,  # what Flower shows
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_channel_error_retry=True,  # a broker that refuses what a worker needs does not end it
    broker_transport_options={
        "visibility_timeout": settings.visibility_timeout,
        "socket_keepalive": True,
        "on_malformed": "tasks.dead_letters:keep_malformed",
        "batching": {"tasks": QUICK, "messages": AT_ONCE, "bytes": BYTES_AT_ONCE},
        "urgent_tasks": FIRST,
    },
    beat_scheduler="tasks.worker.beat:Scheduler",
    beat_schedule={  # no `expires`: beat would set it by its clock, a worker judge it by another
        "sweep": {"task": "els.sweep", "schedule": settings.sweep_every, "options": ONCE},
        "relay": {"task": "els.relay", "schedule": settings.relay_every, "options": ONCE},
    },
)
if str(app.conf.broker_url).startswith("amqp"):
    app.conf.update(
        task_default_queue_type="quorum",
        task_default_exchange_type="topic",
        task_create_missing_queue_type="quorum",  # those of events
        worker_prefetch_multiplier=PUSHED,
        broker_transport_options=amqp.OPTIONS,
        broker_heartbeat=amqp.HEARTBEAT_S,
    )
    app.steps["consumer"].add("tasks.worker.amqp_queues:Queues")
    amqp_queues.wait_at_least_a_second()


app.Task.Request = "tasks.worker.request:QuietRequest"
app.events.dispatcher_cls = "tasks.worker.monitoring:Dispatcher"


def result_repr(result: object, most: int) -> str:
    """Write what a task returned, as monitors see it.

    Celery's own takes 29 µs for one of ours, as it writes any object whatever token by token.
    """
    return repr(result)[:most]


trace.saferepr = result_repr  # type: ignore[attr-defined] # absent from its types


if settings.crashpoint:  # in tests only
    app.conf.broker_transport_options["crashpoint"] = "core.crash:crashpoint"
    signals.before_task_publish.connect(
        lambda **_: crashpoint("callback_claimed"), sender="els.announce_ready", weak=False
    )


@signals.setup_logging.connect
def _log_our_way(**_: object) -> None:
    logs.configure(settings, for_good=True)


@signals.worker_init.connect
def _refuse_to_work_without_servers(sender: Any, **_: object) -> None:  # Any: Celery's worker
    """Exit rather than take messages that cannot be carried out."""
    if sender.app is app and not (settings.database_url and settings.redis_url):
        raise SystemExit(
            "els: a worker needs ELS_DATABASE_URL and ELS_REDIS_URL; `els run` sets both"
        )


@signals.worker_init.connect
def _start_when_the_servers_are_ready(sender: Any, **_: object) -> None:  # Any: Celery's worker
    if sender.app is app:
        wait_for_servers(settings, sender.hostname)


@signals.worker_init.connect
def _collect_garbage_less_often(**_: object) -> None:
    gc.set_threshold(*GARBAGE)  # its processes inherit it
