"""The fixture `fake_els`, for every test of an environment that has this kit."""

import pytest

from els_client.fake import FakeELS


@pytest.fixture
def fake_els() -> FakeELS:
    """The Essay Lifecycle Service in memory, with a clock of its own."""
    return FakeELS()
