"""What two services send while something is wrong: one with stock Celery, one with the kit."""

import threading
import time
from contextlib import contextmanager

from amqp.exceptions import AMQPError
from kombu.exceptions import KombuError

from els_client import Sender
from tests import factories as make
from tests.live.conftest import until
from tests.rabbitmq.node import sender

BEFORE, MEANWHILE, AFTER = 5, 40, 5
CONTENTS = BEFORE + MEANWHILE + AFTER
PACE_S = 0.03
REFUSALS = (OSError, AMQPError, KombuError)


class Traffic:
    """A batch of each service; its contents are sent as the test lets them."""

    def __init__(self, workers, spool):
        self._workers = workers
        self._kit = Sender(sender(workers.node.url), spool=spool, queue=workers.queue)
        self.batches = [make.new_batch(), make.new_batch()]
        self.numbers = [0, 0]
        self.refusals: set[str] = set()
        self._let = [threading.Semaphore(0), threading.Semaphore(0)]
        self._threads = [
            threading.Thread(target=self._run, args=(number, send), daemon=True)
            for number, send in enumerate([self._by_celery, self._kit.send])
        ]

    @classmethod
    @contextmanager
    def of(cls, workers, spool):
        """Make traffic for these workers."""
        made = cls(workers, spool)
        yield made
        made._kit.close()

    @contextmanager
    def sent(self):
        """Send some before the body, and the rest after it; return when all of it is sent."""
        for batch in self.batches:
            event = make.registration(batch, CONTENTS)
            self._by_celery("els.register_batch", event)
        for thread in self._threads:
            thread.start()
        self.send(BEFORE)
        until(lambda: min(self.numbers) >= BEFORE, 30, "the first contents are sent")
        yield
        self.send(AFTER)
        for thread in self._threads:
            thread.join(60)
        assert self.numbers == [CONTENTS, CONTENTS], f"not all was sent: {self.refusals}"
        assert self._kit.flush(30).messages == 0

    def send(self, number=MEANWHILE, within_s=0.0):
        """Send so many contents of each batch; wait so long for that, for the broker may refuse."""
        for each in self._let:
            each.release(number)
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and min(self.numbers) < BEFORE + number:
            time.sleep(0.02)

    def _run(self, number, send):
        for content in range(CONTENTS):
            self._let[number].acquire()
            send("els.assign_content", make.content(self.batches[number], f"text-{content}"))
            self.numbers[number] += 1
            time.sleep(PACE_S)

    def _by_celery(self, task, event):
        while True:
            try:
                self._workers.send(task, event)
            except REFUSALS as error:
                self.refusals.add(f"{type(error).__name__}: {error}")
                time.sleep(0.2)
            else:
                return
