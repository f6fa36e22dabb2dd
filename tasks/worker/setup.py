"""Installs the parts that replace Celery's or Kombu's. README.md has the reasons."""

import sys

from celery import Celery, signals

import durable_redis
from core.catalogue import EVENTS
from core.crash import crashpoint
from core.servers.urls import is_amqp
from core.settings import Settings
from tasks.worker import amqp_delays
from tasks.worker.monitoring import Receiver


def set_up(app: Celery, settings: Settings) -> None:
    """Make this program's workers ours, before its first connection."""
    durable_redis.limit_bodies(app.conf.largest_body)
    backends = dict.fromkeys(("redis", "rediss"), "tasks.worker.results:Backend")
    backends["sentinel"] = "tasks.worker.results:SentinelBackend"
    app.loader.override_backends = backends
    app.Task.Request = "tasks.worker.request:QuietRequest"
    app.events.dispatcher_cls = "tasks.worker.monitoring:Dispatcher"
    app.events.receiver_cls = "tasks.worker.monitoring:Receiver"
    if flower := sys.modules.get("flower.events"):  # Celery's command line has imported it
        vars(flower)["EventReceiver"] = Receiver  # it does not ask the app for its class
    Receiver.names = frozenset(route.task for event in EVENTS for route in settings.routes(event))
    if is_amqp(str(app.conf.broker_url)):
        app.steps["consumer"].add("tasks.worker.amqp_setup:Queues")
        amqp_delays.install()
    if settings.crashpoint:  # in tests only
        signals.before_task_publish.connect(
            lambda **_: crashpoint("callback_claimed"), sender="els.announce_ready", weak=False
        )
