"""Messages that never become a task: of an unknown task, undecodable, or no Celery message at all.

Celery logs and drops them. Here each becomes a dead letter before the broker forgets it.
"""

import logging
from functools import partial
from importlib import import_module
from typing import Any

from kombu import Message

from tasks.worker import stopping

KEEP_AGAIN_S = 5  # before a dead letter that could not be written is tried again
logger = logging.getLogger(__name__)  # Kombu writes to it


class Undeliverable:
    """Keeps such messages of one consumer."""

    def __init__(self, consumer: Any) -> None:  # Any: Celery's, untyped
        self._consumer = consumer
        self._dead_letters = import_module(consumer.app.conf.dead_letters)

    def keep(self, message: Message, error: Exception, code: str) -> None:
        """Have a process of the pool write a dead letter, and then acknowledge the message."""
        letter = self._dead_letters.letter_of_message(message, error, code)
        if self._consumer.hub:  # the pool works once the loop turns
            self._consumer.hub.call_soon(self._write, message, letter)
        else:
            self._write(message, letter)

    def _write(self, message: Message, letter: Any) -> None:  # Any: of that module
        self._consumer.pool.apply_async(
            self._dead_letters.keep_if_possible,
            args=(letter,),
            kwargs={"answers": self._dead_letters.asks_for_result(message.headers)},
            callback=partial(self._release, message, letter),
        )

    def _release(self, message: Message, letter: Any, kept: int | None) -> None:
        """Acknowledge a message that is kept; hold another one, and try again.

        It does not go back to the broker: RabbitMQ drops a message that comes back too often.
        """
        if kept is not None:
            message.ack_log_error(logger, self._consumer.connection_errors)
        elif not stopping.asked():  # else it goes back when the channel is closed
            self._consumer.timer.call_after(KEEP_AGAIN_S, self._write, (message, letter))
