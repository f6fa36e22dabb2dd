"""What only a person can mend, and no sweep of a worker looks for: two rules more."""

from core.checks import by_query
from core.rules import RULES, Rule
from ops.queries.dead_letters import among_needed

DEAD_LETTER_WAITING = among_needed(
    "SELECT batch_id, min(parked_at) AS since, string_agg(DISTINCT code, ', ') AS detail"
    " FROM needed GROUP BY batch_id"
)
# The age does not matter where somebody asks about one batch.
PENDING_NOT_REGISTERED = """
    SELECT batch_id, min(received_at) AS since, count(*) || ' waiting' AS detail
    FROM batch_pending_content p GROUP BY batch_id
    HAVING (%(batch)s::text IS NOT NULL
            OR min(received_at) < now() - make_interval(secs => %(patience_s)s))
       AND (SELECT true FROM batch_essay_trackers t WHERE t.batch_id = p.batch_id) IS NULL
"""


def all_rules(pending_alarm_s: float = 0) -> list[Rule]:
    """List the rules of the sweep and the alarms.

    `pending_alarm_s`: how long contents may wait for the registration of their batch.
    """
    unregistered = by_query(
        "pending_not_registered", PENDING_NOT_REGISTERED, patience_s=pending_alarm_s
    )
    return [
        *RULES,
        Rule("dead_letter_waiting", by_query("dead_letter_waiting", DEAD_LETTER_WAITING)),
        Rule("pending_not_registered", unregistered),
    ]
