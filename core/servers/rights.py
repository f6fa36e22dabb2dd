"""The rights of workers on each table: checked at start, granted by `els migrate --roles`."""

from collections.abc import Mapping

NO_RIGHT = "42501"  # SQLSTATE: insufficient privilege

RIGHTS: Mapping[str, tuple[str, ...]] = {
    "batch_essay_trackers": ("SELECT", "INSERT", "UPDATE"),
    "essay_states": ("SELECT", "INSERT", "UPDATE"),
    "batch_pending_content": ("SELECT", "INSERT", "DELETE"),
    "excess_content": ("SELECT", "INSERT"),
    "idempotency_keys": ("SELECT", "INSERT"),
    "event_outbox": ("SELECT", "INSERT", "UPDATE"),
    "dead_letters": ("SELECT", "INSERT", "UPDATE"),
    "repairs": ("SELECT", "INSERT"),
    "unmended": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "operator_actions": ("SELECT", "INSERT"),
    "purged_batches": ("SELECT", "INSERT", "UPDATE"),
}
OF_OPERATORS = {"operator_actions", "purged_batches"}  # no message waits for a write to these
OF_MESSAGES = tuple(name for name in RIGHTS if name not in OF_OPERATORS)
