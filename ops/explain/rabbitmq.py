"""What RabbitMQ shows without giving a message away: depth and consumers of queues, and alarms."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from amqp import Message
from kombu import Connection
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name

from core.servers.rabbitmq import missing
from core.servers.urls import kind_and_path
from core.signs.pauses import Outage
from ops.explain.clues import Clue
from ops.queues import UNANSWERED, brief_connection, look, queue_lengths
from ops.wording import number

DEFAULT = "celery"  # where a message goes whose sender names no queue
DEFAULT_VHOST = "/"  # where it goes whose sender names no virtual host
NOBODY = "els.nobody"  # a queue that is not there: what is sent to it is dropped
ALARM_S = 0.3  # for RabbitMQ to say that it blocks senders
LONG = 10  # level of delay: 2**10 s, longer than any of ours
OURS = ("", ".internal", ".control", ".dead")  # ends of the names of queues and exchanges
RESTORE = "els worker  # with a RabbitMQ user that may declare them: els access rabbitmq"
LOOK = "rabbitmqctl list_queues name messages consumers  # on a host of ELS_BROKER_URL"


NOTHING_SEEN = Clue(
    "RabbitMQ drops what no queue is bound for (rabbitmqctl list_bindings), what a policy limits"
    " (list_policies) and what somebody purges, and keeps what was sent to another virtual host"
    " (list_vhosts; list_queues -p VHOST); it tells none of this to a client, so look there",
    "rabbitmqctl list_policies; rabbitmqctl list_bindings; rabbitmqctl list_vhosts"
    "  # on a host of ELS_BROKER_URL",
)


@dataclass(frozen=True)
class Around:
    """What was seen in the broker. RabbitMQ does not show whose messages wait there."""

    clues: list[Clue]
    alarm: Outage | None
    consumers: int | None  # as in a heartbeat
    otherwise: Sequence[Clue] = ()  # what may be so where nothing else is known
    nowhere: bool = False  # the broker has no message of the batch: each was looked at


NOTHING_AROUND = Around([], None, None)


def look_around(broker_url: str, queue: str) -> Around:
    """Tell of messages that nobody takes, by queue, and of an alarm. Raises one of UNANSWERED."""
    broker = brief_connection(broker_url)
    try:
        found = {name: look(broker, name) for name in (queue, DEFAULT)}
        clues = [
            *_deleted(broker, queue),
            *_clues(found, queue),
            *_delayed(broker),
            *_in_default_vhost(broker_url, queue),
        ]
        return Around(clues, alarm_of(broker), found[queue][1], [NOTHING_SEEN])
    finally:
        broker.collect()  # a blocked connection does not answer when it is closed


def deleted(broker: Connection, queue: str) -> list[str]:
    """Name the queues and exchanges that are not there, if others are: workers declare them all.

    Raises one of UNANSWERED.
    """
    channel = broker.default_channel
    names = [queue + end for end in OURS]
    gone = [f"the {kind} {name}" for name in names for kind in missing(channel, name, name)]
    return gone if len(gone) < 2 * len(names) else []


def _deleted(broker: Connection, queue: str) -> Iterator[Clue]:
    if gone := deleted(broker, queue):
        what = " and ".join(gone)
        yield Clue(
            f"RabbitMQ has lost {what}, by somebody's hand: it drops what comes there", RESTORE
        )


def _clues(found: dict[str, tuple[int, int]], queue: str) -> Iterator[Clue]:
    for name, (messages, consumers) in found.items():
        if messages and not consumers and name == queue:
            yield Clue(f"{_wait(messages)} in the queue {queue}, and no worker has it open")
        elif messages and not consumers:
            yield Clue(
                f"{_wait(messages)} in the queue {name}, which nobody takes from, and workers take"
                f" from {queue}: RabbitMQ does not show whose they are",
                LOOK,
            )


def _delayed(broker: Connection) -> Iterator[Clue]:
    """Tell of messages that wait for a moment which their senders gave."""
    levels = [level_name(level) for level in range(MAX_LEVEL, LONG - 1, -1)]
    if waiting := sum(queue_lengths(broker, levels).values()):
        yield Clue(
            f"RabbitMQ holds {number(waiting, 'message')} for over {2**LONG // 60} minutes, because"
            " the sender gave a moment (`eta`, or `countdown` in seconds); it does not show whose"
        )


def _in_default_vhost(broker_url: str, queue: str) -> Iterator[Clue]:
    """Tell of messages in a queue of the same name, in the virtual host of a careless sender."""
    ours = kind_and_path(broker_url).partition("/")[2] or DEFAULT_VHOST
    if ours == DEFAULT_VHOST or ";" in broker_url:
        return
    with (
        suppress(*UNANSWERED),  # nobody may look there, so no sender of ours sends there
        brief_connection(urlsplit(broker_url)._replace(path="//").geturl()) as broker,
    ):
        messages, consumers = look(broker, queue)
        if messages and not consumers:
            yield Clue(
                f"{_wait(messages)} in the queue {queue} of the virtual host /, which nobody takes"
                f" from, and workers take from that of {ours}",
                LOOK,
            )


def _wait(messages: int) -> str:
    return number(messages, "message waits", "messages wait")


def alarm_of(broker: Connection) -> Outage | None:
    """Tell whether an alarm for memory or disk keeps senders waiting.

    RabbitMQ says so only to those that send: so this sends a message that is dropped. A connection
    that is blocked is given up, as RabbitMQ does not answer when it is closed.
    """
    alarms: list[str] = []
    with suppress(*UNANSWERED):  # whatever is wrong then has another cause
        client = broker.connection
        client.on_blocked = alarms.append
        client.channel()._basic_publish(Message(b""), "", NOBODY)  # waits for no confirm
        broker.drain_events(timeout=ALARM_S)
    if not alarms:
        return None
    broker.collect()
    return Outage("broker", "it keeps senders waiting: an alarm for memory or disk is set")
