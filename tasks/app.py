"""The Celery app: its configuration. README.md in `tasks/worker` tells how our workers differ."""

from amqp.exceptions import AMQPError
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery, signals
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from core import faults, logs, records
from core.catalogue import BATCHED
from core.messages import WIRE_LIMIT
from core.servers.urls import is_amqp
from core.settings import Settings
from durable_redis import BodyTooLarge, Misshapen
from tasks import versions
from tasks.servers import set_broker, set_results
from tasks.worker import amqp
from tasks.worker.setup import set_up

settings = Settings.from_env()

RESULT_EXPIRES_S = 3600  # only chord keys: results are not stored
RESULT_ANSWER_S = 5.0  # for Redis to take a result; Celery waits for 120 s
SOFT_SHUTDOWN_S = 3.0  # for running tasks to end, before their messages go back
DEATHS = 5  # of processes that executed a message; then it is the message that kills them
AT_ONCE = 200  # messages of one job: some 80 ms of work
BYTES_AT_ONCE = 256 * 1024  # some 150 single contents, or 800 in uploads; `claim.lua` takes 4 000
# Tasks that share jobs: the hop to a process costs as much as one of these. Not
# els.announce_ready, which takes 2 ms a batch: other processes are to share these.
QUICK = (*BATCHED, "els.seal_slots", "els.seal_books")
# What we send ourselves has queues of its own: a backlog of `els` delays none of it, and nobody
# else needs a right to write there. Older workers send it to `els`, where it is executed as well.
CONTROL = ("els.sweep", "els.relay", "els.purge")
INTERNAL = ("els.seal_slots", "els.seal_books", "els.announce_ready", "els.seal_failed")
# What messages of the chord may call. A message from outside calls nothing.
LINKS = {"chord": "els.announce_ready", "errbacks": "els.seal_failed"}
ONCE = {"retry": False, "headers": versions.headers()}  # of publishing a tick: beat tries again
PURGE = {"purge": {"task": "els.purge", "schedule": 60.0, "options": ONCE}}
PUSHED = 2 * AT_ONCE  # messages a process on RabbitMQ, which pushes them: in work and next

app = Celery(
    "els",
    task_cls="tasks.eager:Task" if settings.eager else None,
    include=["tasks.upstream", "tasks.completion", "tasks.maintenance"],
)
app.conf.update(
    broker_url="memory://",
    result_backend="cache+memory://",
    accept_content=["json"],
    task_serializer="json",
    result_serializer="json",
    task_default_queue=settings.queue,
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in settings.queues],
    task_default_exchange=settings.queue,
    task_default_routing_key=settings.queue,
    task_routes={
        **{task: {"queue": settings.control_queue} for task in CONTROL},
        **{task: {"queue": settings.internal_queue} for task in INTERNAL},
    },
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
    largest_body=WIRE_LIMIT,  # bytes, inflated; this setting and the next three are ours
    links=LINKS,
    own_headers=[versions.HEADER],  # beside Celery's, of messages of our own tasks
    dead_letters="tasks.dead_letters",  # the module that keeps them; this setting is ours
    worker_concurrency=settings.concurrency,
    worker_prefetch_multiplier=1,
    worker_deduplicate_successful_tasks=False,  # loses chord callbacks
    worker_soft_shutdown_timeout=SOFT_SHUTDOWN_S,
    worker_enable_remote_control=settings.remote_control,
    worker_send_task_events=True,  # what Flower shows
    event_queue_expires=None,  # Redis needs no queue for it, and Flower's user may run no script
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_channel_error_retry=True,  # a broker that refuses what a worker needs does not end it
    broker_transport_options={
        "visibility_timeout": settings.visibility_timeout,
        "socket_keepalive": True,
        "on_malformed": "tasks.dead_letters:keep_malformed",
        "deliver_malformed": True,  # to `Consumer.on_decode_error`, which keeps it
        "batching": {"tasks": QUICK, "messages": AT_ONCE, "bytes": BYTES_AT_ONCE},
        "urgent_queues": (settings.control_queue, settings.internal_queue),
    },
    beat_scheduler="tasks.worker.beat:Scheduler",
    beat_schedule={  # no `expires`: beat would set it by its clock, a worker judge it by another
        "sweep": {"task": "els.sweep", "schedule": settings.sweep_every, "options": ONCE},
        "relay": {"task": "els.relay", "schedule": settings.relay_every, "options": ONCE},
        **({} if settings.retention_days is None else PURGE),
    },
)
if broker_url := settings.broker_or_redis_url:
    set_broker(app, broker_url)
if settings.redis_url:
    set_results(app, settings.redis_url)
if is_amqp(str(app.conf.broker_url)):
    app.conf.update(
        task_queues=[amqp.queue(name, delays=name == settings.queue) for name in settings.queues],
        task_create_missing_queue_type="quorum",  # those of events
        worker_prefetch_multiplier=PUSHED,
        event_queue_expires=60.0,  # seconds, as Celery has it
        broker_transport_options=amqp.OPTIONS,
        broker_heartbeat=amqp.HEARTBEAT_S,
        broker_heartbeat_checkrate=amqp.HEARTBEAT_S,  # once a second
    )
elif settings.crashpoint:  # in tests only
    app.conf.broker_transport_options["crashpoint"] = "core.crash:crashpoint"
set_up(app, settings)
records.install()  # whatever runs this app: a worker, beat, Flower, `celery inspect`
records.know(lambda word: word in vars(app)["_tasks"])  # `app.tasks` would import them all
faults.trust(AMQPError, BodyTooLarge, Misshapen, OperationalError, TimeLimitExceeded)
faults.trust(WorkerLostError)


@signals.setup_logging.connect
def _log_our_way(**_: object) -> None:
    logs.configure(settings, for_good=True)
