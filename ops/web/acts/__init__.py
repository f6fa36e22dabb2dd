"""The actions of the page, by the name in their address."""

from ops.web.acts import batches, dead_letters, events
from ops.web.acts.plan import Action

ACTIONS = {
    "cancel": Action(batches.plan_cancel, batches.cancel),
    "amend": Action(batches.plan_amend, batches.amend),
    "reconcile": Action(batches.plan_reconcile, batches.reconcile),
    "replay": Action(dead_letters.plan_replay, dead_letters.replay),
    "discard": Action(dead_letters.plan_discard, dead_letters.discard),
    "republish": Action(events.plan_republish, events.republish),
}
