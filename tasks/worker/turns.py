"""The order in which the requests that a worker holds get a process of its pool."""

from collections import deque
from collections.abc import Mapping

from tasks.worker.request import QuietRequest


class Turns:
    """Requests that wait, in turn; plain ones share a turn, up to a number and a size."""

    def __init__(self, at_once: int, bytes_at_once: int) -> None:
        self._at_once, self._bytes_at_once = at_once, bytes_at_once
        self._turns: deque[QuietRequest | None] = deque()  # None: the turn of those that share
        self._plain: deque[QuietRequest] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, request: QuietRequest, *, plain: bool) -> None:
        """Let a request wait as the last; a plain one with those that wait."""
        if not plain:
            self._turns.append(request)
            return
        if not self._plain:
            self._turns.append(None)
        self._plain.append(request)

    def next(self) -> list[QuietRequest]:
        """Take the requests of the next turn: one, whatever its size, or more."""
        request = self._turns.popleft()
        if request is not None:
            return [request]
        several: list[QuietRequest] = []
        size = 0
        while self._plain and len(several) < self._at_once:
            size += len(self._plain[0].message.body)
            if several and size > self._bytes_at_once:
                break
            several.append(self._plain.popleft())
        if self._plain:
            self._turns.append(None)
        return several


class UrgentFirst:
    """Turns by urgency: the least urgent get one only where no other request waits."""

    def __init__(self, urgency: Mapping[str, int], at_once: int, bytes_at_once: int) -> None:
        """Take the rank of each urgent task, 0 for the first; all others come last."""
        self._urgency = urgency
        ranks = max(urgency.values(), default=-1) + 2
        self._turns = [Turns(at_once, bytes_at_once) for _ in range(ranks)]

    def __bool__(self) -> bool:
        return any(self._turns)

    def add(self, request: QuietRequest, *, plain: bool) -> None:
        rank = self._urgency.get(request.task.name, len(self._turns) - 1)
        self._turns[rank].add(request, plain=plain)

    def next(self) -> list[QuietRequest]:
        """Take the requests of the next turn; none where nothing waits."""
        return next((turns.next() for turns in self._turns if turns), [])
