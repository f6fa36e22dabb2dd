"""In which order the requests that a worker holds get a process."""

from types import SimpleNamespace

import pytest

from tasks.worker.batching import URGENCY, Batcher
from tasks.worker.turns import UrgentFirst

ASSIGN, REGISTER, SEAL, ANNOUNCE, SWEEP = (
    f"els.{name}"
    for name in ("assign_content", "register_batch", "seal_slots", "announce_ready", "sweep")
)


def request(task, name, size=10):
    message = SimpleNamespace(body="x" * size)
    return SimpleNamespace(task=SimpleNamespace(name=task), id=name, message=message)


@pytest.fixture
def waiting():
    return UrgentFirst(URGENCY, at_once=3, bytes_at_once=100)


@pytest.fixture
def turns(waiting):
    """Take all turns; each is the ids of its requests."""

    def take():
        return list(iter(lambda: [each.id for each in waiting.next()], []))

    return take


def test_what_is_urgent_goes_first_whenever_it_came(waiting, turns):
    for n in range(4):
        waiting.add(request(ASSIGN, f"content {n}"), plain=True)
    first = [each.id for each in waiting.next()]
    waiting.add(request(ANNOUNCE, "announce"), plain=False)
    waiting.add(request(SEAL, "seal"), plain=True)
    waiting.add(request(SWEEP, "sweep"), plain=False)

    assert first == ["content 0", "content 1", "content 2"]
    assert turns() == [["sweep"], ["announce"], ["seal"], ["content 3"]]
    assert not waiting


def test_equally_urgent_requests_go_in_turn_and_plain_ones_share_theirs(waiting, turns):
    waiting.add(request(ASSIGN, "content 0"), plain=True)
    waiting.add(request(REGISTER, "registration 0"), plain=False)
    for n in range(1, 5):
        waiting.add(request(ASSIGN, f"content {n}"), plain=True)
    waiting.add(request(REGISTER, "registration 1"), plain=False)

    assert turns() == [
        ["content 0", "content 1", "content 2"],
        ["registration 0"],
        ["registration 1"],
        ["content 3", "content 4"],
    ]


def test_those_that_share_a_turn_are_small_together_and_one_may_have_any_size(waiting, turns):
    for n, size in enumerate((60, 40, 1, 500, 1)):
        waiting.add(request(ASSIGN, n, size), plain=True)

    assert turns() == [[0, 1], [2], [3], [4]]


def test_what_is_forgotten_gets_no_turn(hub):
    asked = []
    batcher = Batcher(hub, asked.append)
    batcher.add(request(SWEEP, "sweep"))

    batcher.forget()
    next(hub.create_loop())

    assert asked == []
