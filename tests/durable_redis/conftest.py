import pytest

from tests.durable_redis.crew import Place


@pytest.fixture
def place(tmp_path):
    opened = Place(tmp_path)
    yield opened
    opened.stop()
