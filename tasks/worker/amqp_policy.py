"""The policies by which RabbitMQ hands over what it drops; only an administrator can set them.

A worker checks them whenever it connects, and every few minutes. It logs the commands that set
them, and `/readyz` names what is lost without.
"""

import json
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic
from typing import Any

import structlog
from amqp.exceptions import ChannelError
from celery import Celery
from kombu import Connection, Consumer, Exchange, Message, Producer, Queue
from kombu.exceptions import OperationalError

from tasks.worker.amqp import costly
from tasks.worker.amqp_dropped import (
    CHECK,
    DELAYED,
    check_name,
    dead_name,
    dead_queue,
    left_name,
    outlived,
    unroutable,
)

ANSWER_S = 5  # that RabbitMQ gets to drop the message by which the policy is checked
DROPPED_S = 2  # the same, once a worker has given it back
PRIORITY = 10  # a policy for all queues is mostly set with the default, 0
CHECK_EXPIRES_S = 60  # of a message or queue that a check left behind

DROPPED_LOST = "messages that expire, or reach a limit of the queue"
UNROUTABLE_LOST = "messages that find no queue, because somebody has deleted it or its binding"
COULD_BE_LOST = (DROPPED_LOST, UNROUTABLE_LOST)
LOOK = "rabbitmqctl list_policies; rabbitmqctl list_operator_policies"

lost: list[str] = []  # as the last check has found
kept_back: set[str] = set()  # queues and exchanges that hand over nothing, though others do
_returned: dict[object, float] = {}  # checks that this worker got and gave back, and when
log = structlog.get_logger(__name__)


def policies(queue: str) -> list[tuple[str, str, dict[str, str], str, int]]:
    """List the policies: name, pattern, definition, what it applies to, and priority.

    What is dropped, and what finds no queue, goes to the exchange of the dropped. A full queue
    refuses what is sent to it, rather than to drop its oldest message.
    """
    dead, ours = dead_name(queue), _names(queue)
    kept, full = {"dead-letter-exchange": dead}, {"overflow": "reject-publish"}
    at_least_once = {**kept, "dead-letter-strategy": "at-least-once", **full}
    return [
        (f"{queue}-quorum", f"^{ours}$", at_least_once, "queues", PRIORITY + 1),
        # RabbitMQ takes the other for none on a classic queue.
        (f"{queue}-classic", f"^{ours}$", kept | full, "queues", PRIORITY),
        (f"{queue}-dead", f"^{_literal(dead)}$", full, "queues", PRIORITY),
        (
            f"{queue}-unroutable",
            f"^({ours}|{DELAYED}.*)$",
            {"alternate-exchange": dead},
            "exchanges",
            PRIORITY,
        ),
    ]


def _names(queue: str) -> str:
    """Write a pattern for a queue and those named after it, with two exceptions.

    The queue of dropped messages would drop into itself. Events belong to their receivers, and the
    outbox keeps them.
    """
    return f"{_literal(queue)}([.](?!dead$|events).*)?"


def _literal(name: str) -> str:
    return name.replace(".", "[.]")


def policy_commands(queue: str) -> str:
    """Write the commands that set the policies."""
    return " && ".join(
        f"rabbitmqctl set_policy {name} '{pattern}' '{json.dumps(definition)}'"
        f" --apply-to {kind} --priority {priority}"
        for name, pattern, definition, kind, priority in policies(queue)
    )


def lacks(queue: str) -> list[dict[str, str]]:
    """Say for `/readyz` what this worker has found to be wrong with RabbitMQ."""
    found = [*costly.values()]
    if lost:
        wrong = "it has no policy by which it hands over what it drops"
        found += [
            {"wrong": wrong, "why": f"lost: {'; '.join(lost)}", "step": policy_commands(queue)}
        ]
    for name in sorted(kept_back):
        wrong = f"it hands over nothing of what it drops at the {name}, as it does elsewhere"
        why = f"lost: {'; '.join(COULD_BE_LOST)}; another policy overrules ours there"
        step = f"{LOOK}; delete it, or give it a priority below {PRIORITY}"
        found += [{"wrong": wrong, "why": why, "step": step}]
    if outlived.number:
        wrong = f"a policy limits how long messages wait in {dead_name(queue)}"
        why = "lost: what RabbitMQ drops while no worker is there to take it from that queue"
        step = f"{LOOK}; leave {dead_name(queue)} out of the one that has a message-ttl"
        found += [{"wrong": wrong, "why": why, "step": step}]
    if number := unroutable.number:
        wrong = f"it had no queue for {number} messages within the last minutes"
        why = "somebody deletes what the workers declare; they declare it again"
        step = "find out who: rabbitmqctl list_connections user peer_host"
        found += [{"wrong": wrong, "why": f"{why}, and put the messages back", "step": step}]
    return found


def check(connection: Connection, queue: str) -> None:
    """Note what RabbitMQ loses because a policy is missing, and log the commands that set it.

    Raises AMQPError, KombuError or OSError.
    """
    global lost  # noqa: PLW0603 - of the process
    before = lost
    looks = {DROPPED_LOST: _hands_over_dropped, UNROUTABLE_LOST: _hands_over_unroutable}
    lost = [what for what, look in looks.items() if not look(connection, queue)]
    if not lost:
        log.info("broker_hands_over_what_it_drops", to=dead_name(queue))
    elif lost != before:
        log.warning(
            "broker_has_no_dead_letter_policy",
            queue=queue,
            lost="; ".join(lost),
            run=policy_commands(queue),
        )


def check_each(app: Celery, connection: Connection, names: Iterable[str]) -> None:
    """Check each queue and its exchange as well: a policy may apply to one alone.

    A worker takes the message from its queue, and RabbitMQ drops it then. Raises AMQPError,
    KombuError or OSError.
    """
    queue = str(app.conf.task_default_queue)
    for name in [] if lost else names:
        found = {
            f"queue {name}": _queue_hands_over(app, connection, queue, name),
            f"exchange {name}": _exchange_hands_over(connection, queue, name),
        }
        kept_back.update(each for each, hands_over in found.items() if hands_over is False)
        kept_back.difference_update(each for each, hands_over in found.items() if hands_over)
    if lost:
        kept_back.clear()
    elif kept_back:
        log.warning("broker_keeps_back_what_it_drops", at=sorted(kept_back))


def _queue_hands_over(app: Celery, connection: Connection, queue: str, name: str) -> bool | None:
    """Have a worker give a message back; None: it waits, or another worker has it."""
    check = check_name(queue)
    if _arrives(connection, queue, check, "", routing_key=name, **_harmless(app, check)):
        return True
    return False if monotonic() - _returned.pop(check, inf) > DROPPED_S else None


def _harmless(app: Celery, check: str) -> dict[str, Any]:  # Any: JSON
    """Make a message that a worker of an older release may execute."""
    made = app.amqp.create_task_message(check, app.conf.beat_schedule["relay"]["task"], (), {})
    return {"body": made.body, "headers": made.headers, "expiration": CHECK_EXPIRES_S}


def returning_checks(handler: Callable[[Message], None]) -> Callable[[Message], None]:
    """Have RabbitMQ drop the messages of `check_each`; leave the others to this handler."""

    def on_message(message: Message) -> None:
        if CHECK not in message.headers:
            handler(message)
            return
        Message.reject(message)  # ours would hand it over itself
        _returned[message.headers[CHECK]] = monotonic()

    return on_message


def leave_one(connection: Connection, queue: str) -> None:
    """Leave a message where nobody takes it: a policy that ends it does so in `els.dead` too.

    RabbitMQ shows policies to administrators alone, but it hands over what it drops. Raises
    AMQPError, KombuError or OSError.
    """
    name, dead = left_name(queue), dead_name(queue)
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": dead,
        "x-dead-letter-routing-key": name,
    }
    channel: Any = connection.channel()  # Any: absent from its types
    channel.queue_declare(name, durable=True, auto_delete=False, arguments=arguments)
    # RabbitMQ drops the first message of a queue alone, by the limit that it came with.
    channel.queue_purge(name)
    Producer(channel).publish("", routing_key=name, exchange="", headers={CHECK: name})
    channel.close()


def _hands_over_dropped(connection: Connection, queue: str) -> bool:
    """Let RabbitMQ drop a message, and see."""
    name = check_name(queue)
    arguments = {"x-queue-type": "quorum", "x-expires": CHECK_EXPIRES_S * 1000}
    checked = Queue(name, Exchange(""), name, queue_arguments=arguments)(connection.channel())
    checked.queue_declare()
    try:
        return _arrives(connection, queue, name, "", expiration=0)
    finally:
        checked.delete()


def _hands_over_unroutable(connection: Connection, queue: str) -> bool:
    """Send a message to an exchange without queues, and see."""
    name = check_name(queue)
    checked = Exchange(name, "topic", durable=False)(connection.channel())
    checked.declare()
    try:
        return _exchange_hands_over(connection, queue, name)
    finally:
        checked.delete()


def _exchange_hands_over(connection: Connection, queue: str, exchange: str) -> bool:
    """Send a message by a key to which no queue is bound, and see."""
    try:
        return _arrives(connection, queue, check_name(queue), exchange)
    except OperationalError as error:  # it came back
        if isinstance(error.__cause__, ChannelError):  # this account may not send there
            raise error.__cause__ from None
        return False


def _arrives(
    connection: Connection,
    queue: str,
    name: str,
    exchange: str,
    **options: Any,  # Any: Kombu's
) -> bool:
    """Tell whether a message reaches the exchange of the dropped. Its key is its name, mostly."""
    channel: Any = connection.channel()  # Any: absent from its types
    dead_queue(queue)(channel).declare()
    publish = {"body": "", "routing_key": name, "exchange": exchange, **options}
    publish["headers"] = {**options.get("headers", {}), CHECK: name}
    key = publish["routing_key"]
    seen = Queue(f"{name}-seen", Exchange(dead_name(queue)), key, exclusive=True, durable=False)
    seen = seen(channel)
    seen.queue_declare()
    seen.queue_bind()
    arrived: set[object] = set()

    def note(message: Message) -> None:
        arrived.add(message.headers.get(CHECK))

    with Consumer(channel, [seen], on_message=note, no_ack=True, auto_declare=False):
        Producer(channel).publish(**publish)
        deadline = monotonic() + ANSWER_S
        while name not in arrived and monotonic() < deadline:
            try:
                connection.drain_events(timeout=max(deadline - monotonic(), 0.01))
            except TimeoutError:
                break
    channel.close()  # and with it the queue, which no other may see
    return name in arrived
