"""The sweep: named rules for what must not stay as it is, each with the way it is mended."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from psycopg import Error as PostgresError

from core import ledger
from core.errors import BrokenSeal
from core.ledger import Conn
from core.lifecycle import Lifecycle

PAGE = 200  # batches mended by one sweep
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Rule:
    """Something that heals itself: what is wrong, why it can happen, how to find and mend it."""

    code: str
    title: str
    reason: str
    check: Callable[[Conn, int], list[str]]  # the batches that break the rule, at most so many
    repair: Callable[[Lifecycle, str], object]


RULES = [
    Rule(
        code="full_not_announced",
        title="All slots are accounted for, but the batch was not announced",
        reason="the completion chord is under way, or a worker died before its callback ran",
        check=ledger.full_not_announced,
        repair=Lifecycle.complete,
    ),
]


def sweep(lifecycle: Lifecycle) -> dict[str, list[str]]:
    """Find what breaks a rule and mend it; return the mended batches by the rule's code.

    A batch that cannot be mended is logged as an error and hinders no other one. Two sweeps at
    once do no harm: every repair is guarded.
    """
    mended: dict[str, list[str]] = {}
    for rule in RULES:
        with lifecycle.pool.connection() as conn:
            found = rule.check(conn, PAGE)
        for batch_id in found:
            try:
                rule.repair(lifecycle, batch_id)
            except (BrokenSeal, PostgresError):
                log.exception("repair_failed", rule=rule.code, batch_id=batch_id)
                continue
            log.warning("repaired", rule=rule.code, batch_id=batch_id)
            mended.setdefault(rule.code, []).append(batch_id)
    return mended
