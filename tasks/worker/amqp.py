"""RabbitMQ's transport: Kombu's, except that it loses no message.

It waits for each publisher confirm with a deadline, returns an unroutable message to its publisher
as an error, and uses a queue or exchange that somebody declared with other arguments, or that its
account may not declare.
"""

import re
import socket
import ssl
from collections.abc import Callable, Mapping
from mmap import mmap
from time import monotonic
from typing import Any, ClassVar

import structlog
from amqp import serialization, spec
from amqp.exceptions import (
    AccessRefused,
    AMQPError,
    NotFound,
    PreconditionFailed,
    RecoverableConnectionError,
)
from billiard.process import current_process
from celery import Celery
from kombu import Exchange, Queue, transport
from kombu import Message as KombuMessage
from kombu.exceptions import KombuError, OperationalError
from kombu.transport import pyamqp

from core.faults import describe
from durable_redis import DELIVERY_COUNT, Misshapen, mark, refuse_large

CONFIRM_S = 10  # for a confirm; RabbitMQ sends none while an alarm of memory or disk blocks us
ANSWER_S = 10  # for any other answer, so that a frozen server is not waited for without end
TURN_S = 1.0  # of a wait; then a process asks whether its worker has lost its connection
PERSISTENT = 2  # delivery mode of messages; monitors' events are transient
CHAT = ".pidbox"  # exchanges of remote control; their messages may reach nobody

# A connection that a firewall drops silently ends within 20 s: the kernel probes it after 10 s, and
# gives up on bytes that nobody acknowledges.
SOCKET_SETTINGS = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 2,
    socket.TCP_USER_TIMEOUT: 20_000,  # ms
}
OPTIONS = {
    "confirm_publish": True,
    "write_timeout": CONFIRM_S,
    "socket_settings": SOCKET_SETTINGS,
}
FAREWELL_S = 2  # for the answer to a farewell: often the connection is dead, and there are several
OTHERWISE = "inequivalent arg"  # RabbitMQ's words where something is declared otherwise
COSTS = {  # of a queue that is declared otherwise, by RabbitMQ's words; others lose nothing
    "arg 'durable'": "lost: what waits in it when RabbitMQ restarts",
    "arg 'auto_delete'": "lost: what waits in it when the last worker ends",
    "arg 'x-expires'": "lost: what waits in it while no worker runs",
    "current is 'stream'": "no worker takes messages from a stream",
}
FAULTS = ("current is 'stream'",)  # nothing is executed
CARRIED_OVER = {"correlation_id", "reply_to", "priority", "message_id", "timestamp", "type"}
FAREWELLS = (spec.Connection.CloseOk, spec.Channel.CloseOk, spec.Basic.CancelOk)
RETURNED = "els-returned"  # a header: a worker has put the message back into its queue
OF_RABBITMQ = re.compile("x-(death|(first|last)-death-.*)")  # headers that tell of drops
UNREAD = "els-unread"  # a property that no sender can set: the others cannot be read
UNREADABLE = "the headers: must be UTF-8, and not nested that deeply, with times until 9999"
# Two without a byte end a connection on the worker's side, two to three on RabbitMQ's. Below
# 5 s healthy ones would end (RabbitMQ's documentation says so).
HEARTBEAT_S = 6

log = structlog.get_logger(__name__)


def queue(name: str, *, delays: bool) -> Queue:
    """Describe a replicated queue behind an exchange of its own.

    `delays`: messages also reach it through the exchanges that delay. Whoever may write to those
    reaches each such queue, whatever else he may do.
    """
    exchange = Exchange(name, type="topic" if delays else "direct")
    return Queue(name, exchange, routing_key=name, queue_arguments={"x-queue-type": "quorum"})


class Message(pyamqp.Message):
    """A message that is never dropped: `on_drop` of its channel's class keeps it first."""

    channel: "Channel | None"
    headers: dict[str, Any]  # Any: AMQP's

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        super().__init__(*args, **kwargs)
        refuse_large(self)
        if UNREAD in self.properties:
            mark(self, Misshapen(UNREADABLE))
        # RabbitMQ counts requeues and closed connections too, where no worker died; and a message
        # that somebody published once more carries the old count.
        count = self.headers.pop(DELIVERY_COUNT, 0)
        if RETURNED in self.headers:  # RabbitMQ takes it for a new one
            self.delivery_info["redelivered"] = count = True
        if count and self.delivery_info.get("redelivered"):
            self.headers[DELIVERY_COUNT] = 1

    def reject(self, requeue: bool = False) -> None:
        """Give the message back, or end it: handed to `on_drop`, and then acknowledged.

        Where that fails, RabbitMQ gets the message back.
        """
        drop = type(self.channel).on_drop if self.channel else None
        if requeue or drop is None:
            super().reject(requeue=requeue)
        elif self._dropped(drop):
            self.ack()
        else:
            super().reject(requeue=True)

    def _dropped(self, drop: Callable[[pyamqp.Message], None]) -> bool:
        try:
            drop(self)
        except (AMQPError, KombuError, OSError) as error:
            log.warning("message_not_kept_yet", error=describe(error))
            return False
        return True


class Waits:
    """A channel or connection that waits for each answer with a deadline."""

    def wait(
        self,
        method: Any,  # Any: as py-amqp has it
        callback: Callable[..., Any] | None = None,
        timeout: float | None = None,
        returns_tuple: bool = False,
    ) -> Any:
        """Wait for an answer. Raises TimeoutError where none comes, or what `_end_if_lost` does."""
        is_farewell = method in FAREWELLS
        deadline = monotonic() + (timeout or (FAREWELL_S if is_farewell else ANSWER_S))
        while True:
            if not is_farewell:
                _end_if_lost(getattr(self, "connection", None) or self)
            try:
                return super().wait(method, callback, _turn_s(deadline), returns_tuple)  # type: ignore[misc] # theirs
            except TimeoutError:
                if monotonic() >= deadline:
                    raise


def _turn_s(deadline: float) -> float:
    """Return how long to wait now, in seconds."""
    return min(max(deadline - monotonic(), 0.001), TURN_S)


class Channel(Waits, pyamqp.Channel):
    """Publishes, declares and rejects without loss."""

    Message = Message
    # A worker's. Raises AMQPError, KombuError or OSError.
    on_drop: ClassVar[Callable[[pyamqp.Message], None] | None] = None

    # py-amqp's own, absent from its types.
    connection: Any
    is_open: bool
    _confirm_selected: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as py-amqp calls it
        super().__init__(*args, **kwargs)
        self.auto_decode = False  # the body of a message is UTF-8, whatever it says of itself
        self._begin()

    def _begin(self) -> None:
        """Start to count confirms, as RabbitMQ does when a channel opens."""
        self._published = self._confirmed = 0
        self._refused = False
        self._returned = ""

    def _on_open_ok(self) -> None:
        self._begin()
        super()._on_open_ok()  # type: ignore[misc] # not in its types

    # --- publishing ----------------------------------------------------------------------------

    def basic_publish_confirm(
        self,
        msg: Any,  # Any: py-amqp's message, untyped
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        **kwargs: Any,
    ) -> None:
        """Publish; return once a queue has a persistent message for sure.

        Raises OperationalError where RabbitMQ refuses it, has no queue for it, or is silent for
        too long; then the connection is closed, since a late confirm would be taken for another's.
        """
        confirm_s = kwargs.pop("confirm_timeout", None) or CONFIRM_S
        _end_if_lost(self.connection)
        lasts = msg.properties.get("delivery_mode") == PERSISTENT and not exchange.endswith(CHAT)
        if lasts and not self._confirm_selected:
            self.confirm_select()
            self._confirm_selected = True
        self._returned, self._refused = "", False
        self._basic_publish(msg, exchange, routing_key, mandatory or lasts, **kwargs)  # type: ignore[attr-defined]
        if not self._confirm_selected:
            return
        self._published += 1
        if not lasts:
            return
        self._await_confirm(self._published, confirm_s)
        if self._returned:
            self._forget_declarations()  # somebody deleted the queue: declare it again next time
            raise OperationalError(f"RabbitMQ has no queue for {routing_key}: {self._returned}")
        if self._refused:
            raise OperationalError(f"RabbitMQ refused the message for {routing_key}")

    def _await_confirm(self, number: int, confirm_s: float) -> None:
        connection = self.connection
        deadline = monotonic() + confirm_s
        while self._confirmed < number:
            _end_if_lost(connection)
            try:
                connection.drain_events(timeout=_turn_s(deadline))
            except NotFound as missing:
                self._forget_declarations()
                raise OperationalError(f"RabbitMQ has no such exchange: {missing}") from missing
            except AccessRefused as refused:
                raise OperationalError(f"RabbitMQ forbids it: {refused}") from refused
            except TimeoutError as silence:
                if monotonic() < deadline:
                    continue
                connection.collect()
                raise OperationalError(
                    f"RabbitMQ did not confirm a message within {confirm_s:g} s: an alarm of"
                    " memory or disk blocks it, or the connection is dead"
                ) from silence

    def _forget_declarations(self) -> None:
        if client := getattr(self.connection, "client", None):
            client.declared_entities.clear()

    def _on_basic_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._confirmed = max(self._confirmed, delivery_tag)

    def _on_basic_nack(self, delivery_tag: int, multiple: bool) -> None:
        self._refused = True
        self._confirmed = max(self._confirmed, delivery_tag)

    def _on_basic_return(self, code: int, text: str, *_: object) -> None:
        self._returned = text

    # --- declaring -----------------------------------------------------------------------------

    def queue_declare(self, queue: str = "", *args: Any, **kwargs: Any) -> Any:  # Any: py-amqp's
        """Declare a queue, or use one that is there, whatever its arguments."""
        if args or kwargs.get("passive") or not kwargs.get("durable"):
            return super().queue_declare(queue, *args, **kwargs)
        return self._declared("queue", queue, pyamqp.Channel.queue_declare, (queue,), kwargs)

    def exchange_declare(self, exchange: str, type: str, *args: Any, **kwargs: Any) -> Any:  # noqa: A002 - py-amqp's
        """Declare an exchange, or use one that is there, whatever its type."""
        if args or kwargs.get("passive") or not kwargs.get("durable"):
            return super().exchange_declare(exchange, type, *args, **kwargs)
        declare = pyamqp.Channel.exchange_declare
        return self._declared("exchange", exchange, declare, (exchange, type), kwargs)

    def _declared(
        self,
        kind: str,
        name: str,
        declare: Callable[..., Any],  # Any: py-amqp's reply
        args: tuple[str, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Declare on a channel of its own: RabbitMQ's refusal closes the one that asked."""
        with self.connection.channel() as asking:
            try:
                return declare(asking, *args, **{**kwargs, "nowait": False})
            except (PreconditionFailed, AccessRefused) as refused:
                if OTHERWISE in str(refused):  # not a limit of queues, for instance
                    _log_difference(kind, name, describe(refused))
                try:
                    return declare(asking, *args, passive=True)
                except NotFound:
                    raise refused from None

    def queue_bind(self, queue: str, *args: Any, **kwargs: Any) -> Any:  # Any: py-amqp's
        """Bind a queue, or leave that to who declared it, where this account may not."""
        with self.connection.channel() as asking:
            try:
                return pyamqp.Channel.queue_bind(
                    asking, queue, *args, **{**kwargs, "nowait": False}
                )
            except AccessRefused as refused:
                if _is_first("binding", queue):
                    log.info("binding_left_as_it_is", queue=queue, refusal=describe(refused))


_logged: set[tuple[str, str]] = set()
costly: dict[str, dict[str, str]] = {}  # queue -> for `/readyz`, what its declaration costs


def _is_first(kind: str, name: str) -> bool:
    """Tell whether this process has not yet logged that this is otherwise than declared."""
    if (kind, name) in _logged:
        return False
    _logged.add((kind, name))
    return True


def _log_difference(kind: str, name: str, refusal: str) -> None:
    """Log it once. The processes of a pool leave that to the worker's parent."""
    if not _is_first(kind, name):
        return
    costs = [cost for words, cost in COSTS.items() if kind == "queue" and words in refusal]
    say = log.warning if current_process().name == "MainProcess" else log.debug
    again = {
        "queue": f"rabbitmqctl delete_queue {name} --if-empty",
        "exchange": f"celery -A tasks.app amqp exchange.delete {name} false",
    }[kind]
    step = (
        f"stop all workers and senders, empty it, run `{again}`, start the workers first;"
        " docs/tasks.md says how senders declare it"
    )
    if costs:
        wrong = f"somebody has declared the queue {name} otherwise: {refusal}"
        severity = "fault" if any(words in refusal for words in FAULTS) else "warning"
        why = "; ".join(costs)
        costly[name] = {"wrong": wrong, "why": why, "step": step, "severity": severity}
    say(
        f"{kind}_declared_otherwise",
        **{kind: name},
        refusal=refusal,
        used="unchanged",
        to_change_it=step,
    )


# Of the worker's connection, modulo 256; its pool shares that.
_losses = mmap(-1, 1)


def note_loss() -> None:
    """Note that this worker has lost its connection. Those of its pool have mostly died as well.

    They send no heartbeats: each would wait for a confirm until its deadline, one after the other.
    """
    _losses[0] = (_losses[0] + 1) % 256


class Connection(Waits, pyamqp.Connection):
    """A connection that no process uses any more once its worker has lost its own."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # Any: as Kombu calls it
        super().__init__(*args, **kwargs)
        self.losses = _losses[0]


def _end_if_lost(connection: object) -> None:
    """Raise RecoverableConnectionError where the worker has lost its own connection since."""
    if isinstance(connection, Connection) and connection.losses != _losses[0]:
        connection.collect()
        raise RecoverableConnectionError("the worker has lost its own connection")


class Transport(pyamqp.Transport):
    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):
    """The same over TLS: a server is verified unless the URL turns that off."""

    Connection = Connection

    def establish_connection(self) -> Any:  # Any: as Kombu has it
        """Connect; `ssl_…` are named as for Redis, and the host is what the certificate names."""
        client: Any = self.client
        before = client.ssl, client.hostname  # Kombu would turn localhost into an address
        client.ssl = _as_amqp(client.ssl, client.hostname or "localhost")
        try:
            return super().establish_connection()
        finally:
            client.ssl, client.hostname = before


def _as_amqp(given: object, host: str) -> dict[str, Any]:  # Any: as py-amqp has it
    """Name TLS parameters as py-amqp does. What has its names already stays."""
    names = {"ssl_ca_certs": "ca_certs", "ssl_certfile": "certfile", "ssl_keyfile": "keyfile"}
    known: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    result = {names.get(name, name): value for name, value in known.items()}
    verify = result.pop("ssl_cert_reqs", result.get("cert_reqs", ssl.CERT_REQUIRED))
    if result.pop("ssl_check_hostname", True) and verify != ssl.CERT_NONE:
        result.setdefault("server_hostname", host)
    return {**result, "cert_reqs": verify}


def forward(
    app: Celery,
    message: KombuMessage,
    exchange: Exchange,
    routing_key: str,
    headers: Mapping[str, str],
) -> None:
    """Publish a received message elsewhere, and wait for the confirm.

    The headers of former drops stay behind: RabbitMQ drops for good what it has dropped before from
    the same queue, and takes that for a cycle. Raises OperationalError or OSError.
    """
    inflated = () if message.errors else ("compression",)
    kept = {
        name: message.headers[name]
        for name in message.headers
        if name not in inflated and not OF_RABBITMQ.fullmatch(name)
    }
    given = message.properties
    about: dict[str, Any] = {name: given[name] for name in CARRIED_OVER & given.keys()}
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish(
            message.body,
            exchange=exchange,
            routing_key=routing_key,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers={**kept, **headers},
            delivery_mode=PERSISTENT,
            retry=True,
            retry_policy={"max_retries": 1},
            **about,
        )


TRANSPORTS = {
    "amqp": f"{__name__}:Transport",
    "pyamqp": f"{__name__}:Transport",
    "amqps": f"{__name__}:SSLTransport",
}


def _properties(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:  # Any: py-amqp's
    """Read the properties of a message; of those that py-amqp cannot read, none.

    Its error would end each worker that gets the message.
    """
    try:
        return serialization.decode_properties_basic(buffer, offset)
    except Exception:  # noqa: BLE001 - a sender chose the bytes
        return {UNREAD: True}, offset


def install() -> None:
    """Make every RabbitMQ broker of this process use these transports."""
    serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID] = _properties  # type: ignore[assignment] # their type is wrong
    for scheme, ours in TRANSPORTS.items():
        transport.TRANSPORT_ALIASES[scheme] = ours
        transport._transport_cache.pop(scheme, None)  # type: ignore[attr-defined] # not in its types
