"""The profile `rabbitmq` of compose: its users and policies, loaded by a real RabbitMQ."""

from urllib.parse import urlsplit

from tests.live.deployment import (
    STOPPED_WELL,
    Deployed,
    check_pages,
    make_a_batch_ready,
    open_folder,
    received_types,
    secrets_at,
)
from tests.live.test_deployed import (  # noqa: F401 - fixtures
    EVENTS,
    database,
    made,
    valkey_of_compose,
)
from tests.rabbitmq.node import Node


def test_the_users_of_compose_run_the_service(made, valkey_of_compose, database, tmp_path):  # noqa: F811
    node = Node(tmp_path / "node")  # of its own: its users and policies are those of compose
    node.start()
    try:
        node.ctl("import_definitions", str(made / "rabbitmq_definitions"))
        postgres, rabbitmq = urlsplit(database), urlsplit(node.url)
        here = {
            "postgres:5432/els": f"127.0.0.1:{postgres.port}{postgres.path}",
            "valkey:6379": valkey_of_compose,
            "rabbitmq:5672": f"127.0.0.1:{rabbitmq.port}",
        }
        given = {**secrets_at(made, here), "migrate_database_url": database}
        with open_folder() as folder:
            chosen = {"ELS_BROKER_URL_FILE": "/run/secrets/broker_url"}
            deployed = Deployed("compose", folder, given, **chosen)
            try:
                deployed.come_up()
                make_a_batch_ready(given["sender_broker_url"].strip(), database)
                received = {*received_types(given["receiver_broker_url"].strip())}
                check_pages(deployed, given["ops_auth"].strip(), given["flower_auth"].strip())
                refused = [
                    line
                    for name in deployed.processes
                    for line in deployed.log(name).splitlines()
                    # Flower asks workers by remote control, though that is off.
                    if "ACCESS_REFUSED" in line and "pidbox" not in line
                ]
            finally:
                ended = deployed.stop()
        policies = node.ctl("list_queues", "name", "policy").splitlines()
    finally:
        node.do("stop")

    assert received == EVENTS
    assert refused == []
    assert {status for status, _ in ended.values()} <= {*STOPPED_WELL}
    assert {"els\tels-quorum", "els.control\tels-quorum"} <= {*policies}
