"""How long a message waits before it is tried again: twice as long each time, with jitter."""

from random import uniform

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15.0


def wait_s(retries: int) -> float:
    """Return the jittered wait before retry number `retries` (0 is the first)."""
    return nominal_wait_s(retries) * uniform(0.5, 1)


def nominal_wait_s(retries: int) -> float:
    return min(FIRST_WAIT_S * 2.0 ** min(retries, 20), LONGEST_WAIT_S)


def waited_s(retries: int) -> float:
    """Return how long a message has waited at most after this number of retries."""
    return sum(map(nominal_wait_s, range(retries)))
