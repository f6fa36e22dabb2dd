"""`fake_els`, as `tests/scenarios.py` plays on a service."""

from els_client.fake import FIRST_LETTER, FakeELS


class FakeService:
    def __init__(self, *opt_in):
        self.els = FakeELS(opt_in)

    def send(self, task, event, task_id):
        return self.els.send(task, event, task_id)

    def advance(self, batch_id, seconds):
        self.els.advance(seconds)

    def slots(self, batch_id):
        batch = self.els._batches.known.get(batch_id)
        rows = [slot.row for slot in batch.slots] if batch else []
        return {held(row): row["essay_id"] for row in rows if held(row)}

    def events(self, batch_id):
        """Tell apart the events of the batch, and the refusals of no registered batch."""
        without = [event for event in self.els.events if event["sequence"] >= FIRST_LETTER]
        return [event for event in self.els.events if event not in without], without


def held(row):
    """Name what a slot holds as the scenarios do; None: it is open, or nothing came for it."""
    if row["validation_error_code"]:
        return f"rejected {row['file_upload_id']}"
    return row["text_storage_id"]
