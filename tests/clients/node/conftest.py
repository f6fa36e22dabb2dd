"""The examples of Node beside a stack."""

from pathlib import Path

import pytest

from tests.clients.node.programs import NodeNeighbours, missing


def pytest_collection_modifyitems(items):
    why = missing()
    for item in items:
        if why and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def kit():
    return NodeNeighbours
