"""The lease of the leading beat, as a beat sees it."""

import os
import secrets
import socket
from math import inf
from time import monotonic

import redis
import structlog

from core.faults import describe
from core.signs import beats
from tasks.worker.clients import brief_redis

RENEW_S = 1.0  # a beat that stands by asks as often
LEASE_S = beats.LEASE.total_seconds()

log = structlog.get_logger(__name__)


class Lease:
    """Says whether this beat leads; asks Redis once a second."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        # Two containers may have the same host name and process id.
        self._beat = f"{socket.gethostname()}:{os.getpid()}#{secrets.token_hex(4)}"
        self._asked_at = -inf
        self._answered_at = monotonic()
        self._leads = False

    def leads(self) -> bool:
        """Tell whether this beat is to send ticks.

        Without an answer a leader goes on, and after as long as a lease each other beat leads too:
        ticks from several beats are better than none.
        """
        if monotonic() - self._asked_at >= RENEW_S:
            self._ask()
        return self._leads or monotonic() - self._answered_at > LEASE_S

    def _ask(self) -> None:
        self._asked_at = monotonic()
        try:
            leader = beats.lead(brief_redis(), self._queue, self._beat)
        except redis.RedisError:
            return
        self._answered_at = monotonic()
        led, self._leads = self._leads, leader == self._beat
        if led != self._leads:
            log.info("beat_leads" if self._leads else "beat_stands_by", leader=leader)

    def resign(self) -> None:
        """Let another beat lead at once. If Redis does not answer, the lease expires."""
        try:
            beats.resign(brief_redis(), self._queue, self._beat)
        except redis.RedisError as error:
            log.info("lease_expires_by_itself", error=describe(error))
        self._leads = False
