"""What upstream services send: registrations, single contents, and uploads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from bench.queues import Json, Message
from bench.testbed import Testbed
from core.messages import BatchEssaysRegistered
from core.parsing import parse
from ops import client
from ops.client import common

CLASS = 25  # essays of a usual batch
UPLOAD = 10_000  # contents of one message at most
_numbers = count()


@dataclass(frozen=True)
class Batch:
    """A registered batch and the number of contents to send it."""

    batch_id: str
    contents: int

    def singles(self) -> Iterator[Message]:
        """Announce each content in its own message."""
        for number in range(self.contents):
            yield Message(
                "els.assign_content", {"event": common(self.batch_id, **_content(number))}
            )

    def uploads(self, size: int = UPLOAD) -> Iterator[Message]:
        """Announce all contents in messages of at most `size`."""
        for start in range(0, self.contents, size):
            texts = [_content(n) for n in range(start, min(start + size, self.contents))]
            yield Message("els.assign_contents", {"event": common(self.batch_id, contents=texts)})


def registration(essays: int) -> Message:
    """Announce a new batch."""
    ids = [f"essay-{number:06d}" for number in range(essays)]
    event = client.registration(f"bench-{next(_numbers):07d}", ids)
    return Message("els.register_batch", {"event": event})


def register(testbed: Testbed, sizes: Sequence[int], contents: int | None = None) -> list[Batch]:
    """Register batches of these sizes in this process, each for `contents` contents, else all."""
    batches = []
    for size in sizes:
        message = registration(size)
        event, idem = parse(BatchEssaysRegistered, message.task, message.kwargs["event"], 2**23)
        testbed.lifecycle.register_batch(event, idem)
        batches.append(Batch(event.batch_id, size if contents is None else contents))
    return batches


def _content(number: int) -> Json:
    return {
        "text_storage_id": f"text-{number:06d}",
        "file_upload_id": f"file-{number:06d}",
        "original_file_name": f"essay {number}.docx",
        "raw_file_storage_id": f"raw-{number:06d}",
        "file_size_bytes": 14_200,
        "content_md5_hash": "9e107d9d372bb6826bd81d3542a419d6",
    }
