"""What the service will do by itself about a broken rule: as far as facts carry the promise."""

from core.db.sweep import Unmended
from core.rules import Rule
from ops.explain.causes import CAUSES
from ops.heartbeat import Heartbeat
from ops.wording import utc

SOON = " within seconds"  # a promise for a sweep that runs


def promise(rule: Rule, failed: Unmended | None, heartbeat: Heartbeat) -> str:
    """Say what the sweep does; that it does nothing for now, or that it did not help twice.

    `failed`: a repair of this batch that did not help so far.
    """
    by_itself = CAUSES[rule.code].by_itself
    if rule.repair is None:
        return by_itself
    if failed and failed.hopeless:
        return _not_mending(failed)
    if heartbeat.beat_silent or heartbeat.pauses:
        then = by_itself.replace(SOON, "").rstrip(",")
        return f"nothing for now: {_last_sweep(heartbeat)}; later {then}"
    return by_itself


def last_try(rule: Rule, failed: Unmended | None, heartbeat: Heartbeat) -> str:
    """Say when the sweep ran last, and how its last try to repair this batch ended."""
    if rule.repair is None or heartbeat.swept_at is None:
        return ""
    said = f"; {_last_sweep(heartbeat)}"
    if failed and failed.last_error and not failed.hopeless:
        said += f", and its repair failed: {failed.last_error}"
    return said


def _not_mending(failed: Unmended) -> str:
    return (
        f"not mending itself: the sweep has tried {failed.failures} times since"
        f" {utc(failed.since)}, and tries again less and less often, at the latest"
        f" every 5 minutes; last error: {failed.last_error}"
    )


def _last_sweep(heartbeat: Heartbeat) -> str:
    if heartbeat.swept_at is None:
        return "no sweep has run"
    return f"the last sweep ran at {utc(heartbeat.swept_at)}"
