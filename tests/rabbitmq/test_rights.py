"""A worker whose account may declare nothing beside its queue still works."""

import pytest

from tests import factories as make
from tests.live.conftest import until


@pytest.fixture
def limited(node, workers):
    """An account that may configure `els-…` and what belongs to it, and read and write all."""
    node.ctl("add_user", workers.queue, "secret")
    names = rf"^({workers.queue}|{workers.queue}\..*|celeryev.*|.*pidbox)$"
    node.ctl("set_permissions", workers.queue, names, ".*", ".*")
    yield node.url.replace("guest:guest", f"{workers.queue}:secret")
    node.ctl("delete_user", workers.queue)


def test_a_worker_without_rights_takes_messages(workers, limited, outcome_of):
    event = make.registration(make.new_batch())

    workers.start(ELS_BROKER_URL=limited)
    workers.send("els.register_batch", event)

    assert until(lambda: outcome_of(event), what="it is registered")["outcome"] == "registered"
