"""What a sender gets back: the outcomes of each task, and the codes of dead letters."""

from core.catalogue import TASKS

# By task: the outcome, the fields beside `outcome` and `batch_id`, and what it means.
OUTCOMES: dict[str, list[tuple[str, str, str]]] = {
    "els.register_batch": [
        (
            "registered",
            "`slots`, `pending_assigned`",
            "how many slots; how many early contents got one",
        ),
        ("already_registered", "", "registered before, alike, under another `event_id`"),
    ],
    "els.assign_content": [
        ("assigned", "`essay_id`", "the content holds this slot"),
        ("pending", "", "the batch is not registered yet; the content waits for it"),
        ("excess", "", "every slot is taken"),
        ("closed", "", "the batch was cancelled or timed out"),
    ],
    "els.assign_contents": [
        (
            "accepted",
            "`contents`",
            "the number of elements sent; each ends as a single content does",
        ),
    ],
    "els.reject_content": [
        ("failed_slot", "`essay_id`", "the file consumes this slot"),
        ("pending", "", "the batch is not registered yet; the file waits for it"),
        ("excess", "", "every slot is taken"),
        ("closed", "", "the batch was cancelled or timed out"),
    ],
    "els.confirm_students": [
        ("confirmed", "`associated`", "so many associations are stored, and the batch is ready"),
    ],
    "els.cancel_batch": [("cancelled", "", "the batch is cancelled")],
    "els.amend_batch": [("amended", "", "the batch has the new values")],
}
ANY_TASK = (
    "dead_letter",
    "`code`, `dead_letter`, `message`",
    "refused: the code, the number of the dead letter, and the reason",
)

CODES = {
    "VALIDATION_ERROR": "the body does not validate, or is too large",
    "IDEMPOTENCY_CONFLICT": "another body, or another task, used this `event_id` before",
    "REGISTRATION_CONFLICT": "the batch is registered, and this registration contradicts it",
    "UNKNOWN_BATCH": "the batch to confirm, to cancel or to amend is not registered",
    "UNKNOWN_ESSAY": "an association names an essay that the batch does not have",
    "WRONG_BATCH_STATE": "the batch is in a state that does not allow this",
    "RETRIES_EXHAUSTED": "contention lasted longer than `ELS_RETRY_FOR`",
    "POISON_MESSAGE": "five processes died while they executed the message",
    "UNKNOWN_TASK": "the service has no task of this name for senders",
    "MALFORMED_MESSAGE": "nobody can decode it, it has a wrong header, or it is no Celery message",
    "EXPIRED": "the message arrived after its `expires`",
    "REVOKED": "somebody revoked or terminated the task",
    "INTERNAL_ERROR": "an error that the service did not expect; the task also fails in Flower",
}
assert OUTCOMES.keys() == TASKS.keys(), "a task has no outcomes"
