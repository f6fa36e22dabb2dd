"""A page that acts, with the rights on RabbitMQ that `els access` prints for it."""

from uuid import uuid4

from kombu import Connection
from pydantic import SecretStr

from core.settings import Settings
from ops.access import rabbitmq_users, user
from tasks.worker import amqp
from tests import factories as make
from tests.core import story
from tests.live.conftest import until
from tests.ops.place import a_place
from tests.ops.served import Served
from tests.ops.test_page_actions import LOGIN, Operator
from tests.rabbitmq.node import STOCK
from tests.rabbitmq.test_forbidden import _refused, acts


def test_with_its_rights_the_page_acts_and_without_them_it_says_so(node, database_url):
    queue = f"page-{uuid4().hex[:8]}"
    names = {"queue": queue, "events_queue": f"{queue}.events"}
    reading, acting = (Settings(**names, ops_actions=acts) for acts in (False, True))
    name = user(acting, "ops")
    node.ctl("add_user", name, "secret")
    node.ctl("set_permissions", "-p", "/", name, *rabbitmq_users(acting)[name])
    more = {"broker_url": node.url.replace("guest:guest", f"{name}:secret"), **names}
    login = {"ops_auth": SecretStr(LOGIN), "ops_actions": True}
    batch = make.new_batch()
    with Connection(node.url) as connection, connection.channel() as channel:
        for each in ("", ".internal", ".control", ".events", ".dead"):  # as workers declare them
            amqp.queue(f"{queue}{each}", delays=not each)(channel).declare()
    with a_place(database_url) as place:
        with Served(*place.urls.values(), **more, **login) as page:
            story.register(page.lifecycle, batch, 1)
            operator, number = Operator(page), place.park(batch)
            done = [
                operator.act("replay", number=number),
                operator.act("cancel", "of a test", batch=batch),
            ]
            sent = {f"{queue}\t1", f"{queue}.events\t1"}
            until(lambda: sent <= waiting(node), 60, "both messages are in their queues")
            node.ctl("set_permissions", "-p", "/", name, *rabbitmq_users(reading)[name])
            with Connection(more["broker_url"], transport=STOCK) as connection:
                allowed = [name for name, act in forbidden(queue) if not _refused(connection, act)]
            letter = place.park(batch)
            asked = operator.get(f"/act/replay?number={letter}")
            refused = operator.post("replay", asked.hidden)
        state = place.letter(letter)["state"]
    node.ctl("delete_user", name)

    assert {each.status for each in done} == {200}
    assert (refused.status, state) == (503, "waiting"), refused.words
    assert "The broker did not take it" in refused.words
    assert allowed == []


def forbidden(queue):
    """List what the page that only reads may not do, without the ways by which this one sends."""
    sends = {f"publish to {queue}", f"publish to {queue}.events"}
    return [
        (name, act)
        for name, act in acts(queue)["ops"]
        if name not in sends and not name.endswith(" by default")
    ]


def waiting(node):
    return set(node.ctl("list_queues", "name", "messages").splitlines())
