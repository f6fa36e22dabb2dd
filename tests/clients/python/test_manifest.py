"""A receiver checks that it has all essays of a batch, also of one too large for its event."""

import pytest

from els_client import read_event, verify_manifest
from els_client.events import EssaysLeftOut, ManifestMismatch
from els_client.fake import FakeELS


@pytest.fixture
def ready():
    els = FakeELS()
    els.sender.register_batch("b", ["e-1", "e-2"], course_code="c", user_id="u")
    for text in ("text-1", "text-2"):
        els.sender.assign_content(
            "b",
            text_storage_id=text,
            file_upload_id=text,
            original_file_name="x",
            file_size_bytes=1,
        )
    return read_event(els.events[-1]).body


def test_the_essays_of_an_event_are_those_that_were_sealed(ready):
    verify_manifest(ready)

    with pytest.raises(ManifestMismatch):
        verify_manifest(ready, ready.ready_essays[:1])


def test_essays_that_were_read_elsewhere_may_be_json(ready):
    large = ready.model_copy(update={"ready_essays": None})
    essays = [
        {"essay_id": "e-2", "text_storage_id": "text-2", "state": "ready_for_processing"},
        {"essay_id": "e-1", "text_storage_id": "text-1", "state": "ready_for_processing"},
    ]

    verify_manifest(large, essays)

    with pytest.raises(EssaysLeftOut):
        verify_manifest(large)
    with pytest.raises(ManifestMismatch):
        verify_manifest(large, essays[:1])
