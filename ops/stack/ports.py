"""Free ports on loopback."""

import random
import socket

from core.errors import StackError

LOOPBACK = "127.0.0.1"
PORTS = range(20000, 32000)  # below the ports that outgoing connections get: safe to come back to


def free_port() -> int:
    """Pick a port that nobody listens on."""
    candidates = random.sample(PORTS, 1000)
    return next(port for port in candidates if _is_free(port))


def choose_port(setting: str, given: int | None, *usual: int | None) -> int:
    """Take the given port; without one the first of the usual ones that is free, else any.

    Raises StackError that names the setting when the given port is taken.
    """
    if given is not None and not _is_free(given):
        raise StackError(
            f"{setting}={given}: that port is taken on {LOOPBACK}; stop what listens there, "
            f"give another port, or unset {setting} to have a free one chosen"
        )
    candidates = (port for port in (given, *usual) if port is not None and _is_free(port))
    return next(candidates, None) or free_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
