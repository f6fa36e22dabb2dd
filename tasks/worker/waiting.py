"""How a task waits, in the main process or in one of a pool."""

import os
import signal
import time

from billiard.process import current_process
from celery.exceptions import Reject

from tasks.worker import heartbeat, stopping

POLL_S = 0.2  # a wait ends so soon after somebody asks the worker to stop


def sleep(seconds: float) -> None:
    """Wait, and send heartbeats. Raises Reject if the worker is to stop.

    A process of a pool ends at once instead, and its parent gives the messages back. While a worker
    stops, nobody reads the pipe of that process, so a result in it could block the parent.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stopping.asked():
            if current_process().name != "MainProcess":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Reject("the worker stops while a server refuses", requeue=True)
        heartbeat.send_if_solo()
        time.sleep(min(POLL_S, left))
