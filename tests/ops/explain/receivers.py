"""Queues of receivers, as a broker would show them."""

from core.catalogue import EVENTS
from ops.queues import EventQueue


def event_queue(name="nlp", types=frozenset(EVENTS), **seen):
    return EventQueue(name, frozenset(types), **{"messages": 0, **seen})
