"""What the service needs of its servers, and what these servers lack.

With a fault the service loses messages, or carries none out, without an error: it is not ready.
A warning names what makes a crash or an outage worse. `docs/runbook.md` has a section for each.
"""

import socket

from core.servers.away import PATIENCE_S, addresses, refused, setting_of
from core.servers.finding import Finding
from core.servers.handshake import handshake
from core.servers.postgres import find_in_postgres
from core.servers.redis import check_redis
from core.servers.redis_client import connect_once as connect_to_redis
from core.servers.urls import is_amqp, is_redis
from core.settings import Settings


def check_servers(settings: Settings) -> list[Finding]:
    """Ask every server of these settings; takes `PATIENCE_S` for each that does not answer."""
    database_url, redis_url = settings.server_urls()
    broker_url = settings.broker_or_redis_url
    found = find_in_postgres(database_url, settings.database_prepare)
    if broker_url != redis_url:
        found += _redis(redis_url, "redis")
    if is_redis(broker_url):
        found += _redis(broker_url, "broker")
    elif is_amqp(broker_url):
        found += _listens(broker_url)
    return found


def _redis(url: str, server: str) -> list[Finding]:
    try:
        client = connect_to_redis(url, timeout_s=PATIENCE_S)
    except ValueError as error:
        return [refused(server, error, f"mend {setting_of(server)}")]
    with client:
        return check_redis(client, server, url)


def _listens(urls: str) -> list[Finding]:
    """Ask the nodes of RabbitMQ, until one answers; over TLS where the URL does."""
    error: Exception | None = None
    for at, given in addresses(urls):
        try:
            if urls.startswith("amqps://"):
                handshake(at, given, PATIENCE_S)
            else:
                socket.create_connection(at, PATIENCE_S).close()
        except (OSError, ValueError) as refusal:
            error = refusal
        else:
            return []
    assert error is not None, "there is one URL at least"
    return [refused("broker", error, "start it, or mend ELS_BROKER_URL")]
