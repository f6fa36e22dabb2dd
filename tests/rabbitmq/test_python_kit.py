"""The sender of the Python kit on RabbitMQ: it declares what the workers do, and loses nothing."""

import pytest

from els_client import Sender
from tests.factories import essay_ids, new_batch
from tests.live.conftest import until
from tests.rabbitmq.node import sender as stock  # its process has no transport of ours

TEXT = {"original_file_name": "x", "file_size_bytes": 1}


@pytest.mark.slow
def test_messages_wait_while_the_node_is_away(workers, node, outcome_of, tmp_path):
    batch_id = new_batch()
    with Sender(node.url, spool=tmp_path / "spool", queue=workers.queue) as sender:
        first = sender.register_batch(batch_id, essay_ids(3), course_code="c", user_id="u")
        node.ctl("stop_app")
        waiting = [
            sender.assign_content(batch_id, text_storage_id=name, file_upload_id=name, **TEXT)
            for name in ("t-1", "t-2")
        ]
        held = sender.spooled()
        node.ctl("start_app")
        assert sender.flush(60).messages == 0
        workers.start()
        workers.ready(1)

        found = [until(lambda s=s: outcome_of({"event_id": str(s.event_id)})) for s in waiting]

    assert not first.spooled
    assert (held.messages, bool(held.last_error)) == (2, True)
    assert [each["outcome"] for each in found] == ["assigned", "assigned"]
    assert "declared_otherwise" not in workers.log()


def test_messages_wait_while_the_queue_is_full(policed, node, outcome_of, tmp_path):
    limit = ("set_operator_policy", policed.queue, f"^{policed.queue}$", '{"max-length": 1}')
    node.ctl(*limit, "--apply-to", "queues")
    batch_id = new_batch()
    with Sender(stock(node.url), spool=tmp_path / "spool", queue=policed.queue) as sender:
        sent = [
            sender.assign_content(batch_id, text_storage_id=name, file_upload_id=name, **TEXT)
            for name in ("t-1", "t-2", "t-3", "t-4")
        ]
        held = sender.spooled()
        policed.start()
        left = sender.flush(60).messages
        found = [until(lambda s=s: outcome_of({"event_id": str(s.event_id)})) for s in sent]
    node.ctl("clear_operator_policy", policed.queue)

    assert (held.messages > 0, bool(held.last_error), left) == (True, True, 0)
    assert {each["outcome"] for each in found} == {"pending"}
