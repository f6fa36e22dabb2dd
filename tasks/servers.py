"""The URLs of our settings, as Celery, Kombu and Flower take them.

They read TLS and Sentinels from settings beside the URL.
"""

from typing import Any, cast

from celery import Celery
from redis.connection import URL_QUERY_ARGUMENT_PARSERS

import durable_redis
from core.servers.redis_client import ASKED_ONCE
from core.servers.urls import (
    LIMITS,
    completed,
    for_ssl,
    is_amqp,
    pieces,
    query_of,
    sentinels,
)
from tasks.worker import amqp

SOCKET_URLS = ("unix://", "redis+socket://")
REPLICAS = 1  # that have a message of ours before it counts as sent, where there are Sentinels


def set_broker(app: Celery, url: str) -> None:
    """Set the broker of an app, over our transports; its other transport options stay."""
    durable_redis.install()
    amqp.install()
    url = completed(url)
    query = query_of(pieces(url)[0])
    options: dict[str, Any] = {}  # Any: as Kombu has them
    if url.startswith("sentinel://"):
        options = _of_sentinels(url) | {"replicas": REPLICAS}
    elif not is_amqp(url):
        options = {name: _value(name, query[name]) for name in LIMITS if name in query}
    conf: Any = app.conf  # its types take some of it for read-only
    conf.broker_url = ";".join(_bare(each) for each in url.split(";"))
    conf.broker_transport_options = {**(conf.broker_transport_options or {}), **options}
    if tls := for_ssl(query):
        conf.broker_use_ssl = tls


def set_results(app: Celery, url: str) -> None:
    """Set the Redis that keeps an app's results, and the counts of its chords."""
    url = completed(url)
    query = query_of(pieces(url)[0])
    conf: Any = app.conf  # as above
    if url.startswith("sentinel://"):
        conf.result_backend = ";".join(_bare(each) for each in url.split(";"))
        conf.result_backend_transport_options = _of_sentinels(url)
    else:
        conf.result_backend = _socket(url)
    if url.startswith(SOCKET_URLS):
        conf.redis_socket_keepalive = False  # which a socket does not know
    if tls := for_ssl(query):
        conf.redis_backend_use_ssl = tls


def _of_sentinels(url: str) -> dict[str, Any]:  # Any: as Kombu and Celery have them
    said = sentinels(url)
    asked = {**ASKED_ONCE, **said.own, **said.tls}
    return {"master_name": said.primary, "sentinel_kwargs": asked}


def _value(name: str, text: str) -> object:
    read: Any = URL_QUERY_ARGUMENT_PARSERS.get(name, str)
    return cast(object, read(text))


def _bare(url: str) -> str:
    """Drop the parameters, which Kombu takes for arguments; a socket keeps its database."""
    base, _, _ = url.partition("?")
    if not url.startswith(SOCKET_URLS):
        return base
    database = query_of(pieces(url)[0]).get("db")
    return _socket(f"{base}?db={database}" if database else base)


def _socket(url: str) -> str:
    """Write the URL of a socket as Kombu and Celery read it."""
    return url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)
