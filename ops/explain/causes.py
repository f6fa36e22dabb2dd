"""Every cause of a batch that is not ready: a broken rule, or what is none, with its words."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Cause:
    """Why a batch is not ready, what the service does about it, and what a person can do.

    The texts of the table name facts in braces; `fill` fills them in.
    """

    code: str
    title: str
    reason: str
    by_itself: str
    command: str
    since: datetime | None = None

    def fill(
        self, since: datetime | None = None, *, step: str | None = None, **facts: object
    ) -> "Cause":
        """Fill the facts into the texts; `step` replaces the command where another one fits."""
        texts = (self.title, self.reason, self.by_itself, self.command)
        title, reason, by_itself, command = (text.format(**facts) for text in texts)
        return Cause(self.code, title, reason, by_itself, step or command, since)


RECONCILE = "els reconcile {batch}"
UNTIL_THE_DEADLINE = "nothing before the deadline; at the deadline the batch is timed out"
BROKEN_RULES = [
    Cause(
        code="status_wrong",
        title="The status of the batch is not what happened to it",
        reason="somebody changed its row by hand",
        by_itself="the sweep puts back the status that its events and its seal say, in its turn",
        command=RECONCILE,
    ),
    Cause(
        code="slot_missing",
        title="A slot of the batch is gone",
        reason="somebody deleted it by hand; its essay id is stored nowhere else",
        by_itself=UNTIL_THE_DEADLINE,
        command="els cancel {batch} --reason WHY",
    ),
    Cause(
        code="slot_extra",
        title="The batch has more slots than registered essays",
        reason="somebody inserted slots by hand",
        by_itself=UNTIL_THE_DEADLINE,
        command="els find {batch}",
    ),
    Cause(
        code="slot_cancelled",
        title="Single slots of an open batch are cancelled",
        reason="somebody changed them by hand; the service cancels a slot only with its batch",
        by_itself="the sweep gives them back the state that their contents say, in its turn",
        command=RECONCILE,
    ),
    Cause(
        code="counter_wrong",
        title="The counter of open slots differs from the slots",
        reason="a row was changed by hand, or restored from a backup",
        by_itself="the sweep counts the slots of the batch again, in its turn",
        command=RECONCILE,
    ),
    Cause(
        code="pending_though_registered",
        title="Contents wait although the batch is registered",
        reason="a row was written by hand, or restored from a backup",
        by_itself="the sweep gives them their slots within seconds",
        command=RECONCILE,
    ),
    Cause(
        code="full_not_announced",
        title="All slots are accounted for, but the batch was not announced",
        reason="its seal is under way, or the worker that sealed it died before it announced it",
        by_itself="the sweep seals and announces it within seconds",
        command=RECONCILE,
    ),
    Cause(
        code="slot_drift",
        title="Redis offers other slots than Postgres has open",
        reason="Redis was flushed or restored, or a worker died between claim and commit",
        by_itself="the next content of the batch, or the sweep, rebuilds Redis from Postgres",
        command=RECONCILE,
    ),
    Cause(
        code="deadline_never",
        title="The deadline of the batch never comes",
        reason="somebody changed it by hand; a deadline is at most ten years away",
        by_itself="the sweep sets it to a day from now, within seconds",
        command=RECONCILE,
    ),
    Cause(
        code="deadline_passed",
        title="The deadline has passed",
        reason="contents, or the confirmation of students, did not come in time",
        by_itself="the sweep times the batch out, or proceeds with what is there, within seconds",
        command=RECONCILE,
    ),
    Cause(
        code="event_missing",
        title="The outbox lacks an event of the batch",
        reason="somebody deleted it by hand, so nobody can tell whether it was delivered",
        by_itself="the sweep writes it again, with the same id, in its turn",
        command=RECONCILE,
    ),
    Cause(
        code="event_not_delivered",
        title="An event of the batch has not been delivered",
        reason="the broker did not take it, or no worker relays",
        by_itself="the sweep and beat's relay try again",
        command="els outbox list",
    ),
    Cause(
        code="dead_letter_waiting",
        title="The service could not carry out a message for the batch",
        reason="its sender must correct it, or somebody must mend its cause",
        by_itself="nothing: a person must replay or discard it",
        command="els dead-letters list --batch {batch}",
    ),
    Cause(
        code="pending_not_registered",
        title="Contents wait for a batch that nobody has registered",
        reason="the registration is late, got lost, or is a dead letter",
        by_itself="they get their slots when the batch is registered",
        command="els dead-letters list --task els.register_batch",
    ),
]
LAST_STATE = "nothing: this is its last state; its essays may be registered again as another batch"
# Not broken rules: what every batch waits for, what this one waits for, or how it ended.
PLAIN = [
    Cause(
        "unknown_batch",
        "Nobody has registered this batch, and no content waits for it",
        "nothing here has this id or a similar one, and no dead letter may be of this batch: the id"
        " is mistyped, or its messages never arrived",
        "nothing",
        "els find {batch}",
    ),
    Cause(
        "postgres_unreachable",
        "Postgres does not answer",
        "{error}",
        "workers keep their messages, and go on once it answers",
        "els env",
    ),
    Cause(
        "schema_missing",
        "The database has no schema that this release can use",
        "{error}",
        "workers keep their messages, or wait to start, until it is there",
        "els migrate",
    ),
    Cause(
        "cannot_read",
        "Postgres does not let this command read the batch",
        "{error}",
        "nothing: whoever asks needs the right to read the tables",
        "els migrate --roles",
    ),
    Cause(
        "redis_unreachable",
        "Redis does not answer",
        "{error}",
        "messages are retried until it is back",
        "els env",
    ),
    Cause(
        "broker_unreachable",
        "The broker does not answer",
        "{error}",
        "senders keep their messages, and events wait in the outbox, until it is back",
        "els env",
    ),
    Cause(
        "broker_lacks",
        "Something is wrong with RabbitMQ: {wrong}",
        "{why}",
        "workers go on with what reaches them; nothing mends it by itself",
        "els env",
    ),
    Cause(
        "server_refuses",
        "{server} refuses writes",
        "{error}",
        "workers keep their messages, ask again every 10 s at most, and go on once it takes writes",
        "els env",
    ),
    Cause(
        "lock_held",
        "Another session has locked {what} ({holder})",
        "its transaction has not ended; {waiting} for it",
        "messages are tried again meanwhile, and become dead letters after ELS_RETRY_FOR",
        "els env",
    ),
    Cause(
        "worker_other_queue",
        "No worker takes messages of the queue {queue}",
        "{worker} takes those of {queues} alone{waiting}",
        "messages wait in the queue",
        "els worker",
    ),
    Cause(
        "worker_other_broker",
        "No worker takes messages of this broker ({broker})",
        "{worker} takes those of {theirs}{waiting}",
        "messages wait in the queue",
        "els worker",
    ),
    Cause(
        "foreign_consumer",
        "Another program takes messages of the queue {queue} ({worker})",
        "that Celery worker is none of this service, and drops or keeps what it takes",
        "nothing: what it dropped is lost, so its sender must send it again",
        "els env",
    ),
    Cause(
        "worker_other_redis",
        "A worker takes messages of the queue {queue}, and gives no sign of life here ({worker})",
        "its ELS_REDIS_URL is another one, or it belongs to another installation",
        "nothing: what it executes is stored in the database that it knows",
        "els env",
    ),
    Cause(
        "worker_other_database",
        "A worker works on another database than this one",
        "{worker} works on {theirs}, and this is {database}",
        "nothing: what it executes is stored there",
        "els worker",
    ),
    Cause(
        "worker_waits",
        "The worker {worker} waits to start: {wrong}",
        "{why}{waiting}",
        "it starts by itself once that is so",
        "els migrate",
    ),
    Cause(
        "worker_restarts",
        "The worker {worker} has started {times} times in 20 minutes, and nobody stopped it",
        "it ends by itself or is killed, as for want of memory; its log, or that of its host, says"
        " why{waiting}",
        "the broker delivers again what it held; what five processes died of becomes a dead letter",
        "els worker",
    ),
    Cause(
        "worker_limited",
        "Remote control limits what the worker {worker} executes ({limits})",
        "it holds what comes faster than that",
        "it executes those messages at that rate",
        "els worker",
    ),
    Cause(
        "worker_crashes",
        "The worker {worker} has {setting}, so its processes end on purpose",
        "that setting is for tests alone: each process ends at that point of its first messages",
        "the broker delivers again what it held; what five processes died of becomes a dead letter",
        "els worker",
    ),
    Cause(
        "worker_stalled",
        "A process of the worker {worker} does not move",
        "{doing}; the worker holds {held}",
        "nothing while it hangs; when it ends, the broker delivers its messages again",
        "els worker",
    ),
    Cause(
        "worker_silent",
        "The worker {worker} gives no sign of life, and held {held}",
        "it was killed, hangs, or cannot reach Redis{doing}",
        "the broker delivers them again after ELS_VISIBILITY_TIMEOUT, unless the worker comes back",
        "els worker",
    ),
    Cause(
        "no_worker",
        "{title}",
        "{last}{waiting}",
        "messages wait in the queue",
        "els worker",
    ),
    Cause(
        "sweep_lock_held",
        "Another session holds the lock of the sweep ({holder})",
        "a worker or a command hangs in a sweep, or somebody took the lock by hand",
        "the sweep goes on once that session ends or gives the lock back",
        "els reconcile",
    ),
    Cause(
        "beat_silent",
        "{title} ({beats})",
        "{reason}",
        "nothing that the sweep mends is mended meanwhile",
        "els beat",
    ),
    Cause(
        "queue_backlog",
        "{waiting} messages wait in the queue",
        "more messages come than the workers execute",
        "the workers execute them in turn",
        "els status",
    ),
    Cause(
        "event_not_taken",
        "Delivered, but nobody takes it ({type} is in queue {queue}, where {messages} wait)",
        "{why}",
        "the broker keeps it; start or repair the receiver of queue {queue}, and it takes it",
        "els env  # then start its receiver: celery -A PROGRAM -b BROKER_URL worker -Q {queue}",
    ),
    Cause(
        "readiness_goes_nowhere",
        "Nobody gets the readiness: a route sends BatchEssaysReady nowhere",
        "ELS_EVENT_ROUTES has an empty list for it",
        "nothing: it counts as delivered",
        "els outbox republish --batch {batch} --since 30d",
    ),
    Cause(
        "claims_in_flight",
        "Contents of the batch are in work ({held} held for them)",
        "a worker writes them at this moment, or it died and the broker delivers them again",
        "the broker delivers them within ELS_VISIBILITY_TIMEOUT; the slots are free in 3 minutes",
        "els health worker",
    ),
    Cause(
        "deadline_near",
        "The deadline is near",
        "contents, or students, are still missing",
        "{ending}",
        "els amend {batch} --deadline 1d --reason WHY",
    ),
    Cause(
        "being_sealed",
        "Every slot is accounted for, and the batch is being sealed at this moment",
        "its last content has just come",
        "it is announced within seconds",
        "els reconcile {batch}",
    ),
    Cause(
        "waiting_for_contents",
        "The batch waits for contents ({open} of {slots} open)",
        "{lacking}",
        "the next content continues it; {ending}",
        "els find {batch}  # lists the files that have come",
    ),
    Cause(
        "waiting_for_students",
        "The batch waits for the confirmation of its students",
        "els.confirm_students has not been carried out for class {class_id}",
        "that message continues it; {ending}",
        "els find {batch}",
    ),
    Cause(
        "all_slots_failed",
        "Every file of the batch was rejected",
        "no essay is left to be ready ({rejections})",
        LAST_STATE,
        "els find {batch}",
    ),
    Cause(
        "timed_out",
        "The batch was timed out at its deadline",
        "{lacked} when the deadline passed at {deadline}, and on_deadline does not let it proceed",
        LAST_STATE,
        "els find {batch}",
    ),
    Cause(
        "cancelled",
        "The batch was cancelled",
        "this reason was given: {reason}",
        LAST_STATE,
        "els find {batch}",
    ),
    Cause(
        "event_deleted",
        "The outbox lacks {gone} of the batch (number {numbers} of {written})",
        "somebody deleted it by hand, so nobody can tell whether it was delivered",
        "nothing: ask the consumers whether they have it",
        "els find {batch}",
    ),
    Cause(
        "event_under_way",
        "The outbox holds {waiting} of the batch that {have} not been delivered yet",
        "written a moment ago",
        "the relay sends what waits within seconds",
        "els outbox list",
    ),
]
CAUSES = {cause.code: cause for cause in [*BROKEN_RULES, *PLAIN]}
TITLES = {cause.code: cause.title for cause in BROKEN_RULES}  # of the rules
