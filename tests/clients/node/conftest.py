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
def beside(tmp_path, receiver_database):
    """Make neighbours of a queue, ended with the test."""
    made: list[NodeNeighbours] = []

    def make(queue: str) -> NodeNeighbours:
        made.append(NodeNeighbours(tmp_path, queue, receiver_database))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def neighbours(stack, beside):
    return beside(stack.queue)
