"""Blocks of code that do not run beside the pages, each with what holds it instead.

A key is a page and how the block begins. A block with a name, such as `python redis-send`, runs in
`tests/live/test_wire.py`. The commands `els` and `make` in these blocks are checked all the same:
that they exist, with these options.
"""

BY_NODE = "tests/clients/node/test_examples.py starts the same programs"
WITH_NODE = "docs/how-to/send-and-receive-with-node.md"

ELSEWHERE = {
    ("README.md", "$ make demo"): "tests/ops/test_readme.py runs it",
    ("README.md", "$ .venv/bin/els "): "tests/ops/test_readme.py runs it",
    ("CONTRIBUTING.md", "make env"): "it makes the environment of this test",
    ("CONTRIBUTING.md", ".venv/bin/pytest"): "tests/test_contributing.py finds what it names",
    ("clients/node/README.md", "// A "): "tests/clients/node/test_readme.py compares the examples",
    ("clients/python/README.md", "$ pip wheel"): "tests/clients/python/test_wheel.py installs it",
    ("clients/python/README.md", "from els_client"): "tests/clients/python/test_readme.py runs it",
    (WITH_NODE, "(cd ~/els/clients/node"): "scripts/clients-node makes the package",
    (WITH_NODE, "export BROKER_URL"): BY_NODE,
    (WITH_NODE, "// A "): "tests/clients/node/test_readme.py compares the examples",
    (WITH_NODE, "QUEUE=nlp"): BY_NODE,
    (WITH_NODE, "cat > messages.jsonl"): BY_NODE,
    (WITH_NODE, "psql"): "tests/clients/proofs.py asks the same table",
    ("docs/acting.md", "$ els dead-letters"): "tests/ops/test_actions.py runs such commands",
    ("docs/acting.md", "$ els cancel"): "tests/ops/test_actions.py runs such commands",
    ("docs/access.md", "els access redis"): "tests/servers/test_forbidden.py loads such a file",
    ("docs/events.md", "CELERY_BROKER_URL="): "tests/live/test_examples.py starts it",
    ("docs/api.md", "import requests"): "tests/ops/test_api_events.py runs it",
    ("docs/acting.md", "$ els erase"): "tests/ops/test_erasure.py runs it",
    ("docs/explain.md", "batch-7f3a:"): "tests/ops/explain/test_explain.py has its lines",
    ("docs/operations.md", "docker compose"): "tests/ops/test_compose.py reads the file",
    ("docs/operations.md", "kubectl create"): "tests/ops/test_kubernetes.py reads the objects",
    ("docs/operations.md", "pg_dump"): "tests/servers/test_restore.py runs it",
    ("docs/operations.md", "createdb"): "tests/servers/test_restore.py runs it",
    ("docs/performance.md", "$ .venv/bin/els bench"): "tests/ops/test_bench.py runs a part of it",
    ("docs/postgres.md", "ELS_DATABASE_URL="): "tests/ops/test_roles.py runs it",
    ("docs/tasks.md", "CELERY_BROKER_URL="): "tests/live/test_examples.py starts it",
    ("docs/tasks.md", "rabbitmqctl delete_queue"): "tests/rabbitmq/test_declarations.py does it",
    ("docs/tasks.md", "rabbitmqctl set_policy"): "tests/tasks/test_amqp_setup.py compares it",
    ("docs/operations.md", "els access redis"): "tests/ops/test_compose.py has these files",
    ("docs/operations.md", "python3 scripts/secrets"): "tests/ops/test_secrets.py runs it",
    ("docs/tls.md", "ELS_TLS_CA="): "tests/servers/test_tls.py has such settings, and the files",
    ("docs/upgrades.md", "the migration waits"): "tests/core/test_migrations.py has its words",
    ("docs/tutorial/first-batch.md", "make env"): "it makes the environment of this test",
    ("durable_redis/README.md", "$ pip wheel"): "tests/durable_redis/test_wheel.py installs it",
    ("durable_redis/README.md", "$ python -m durable_redis.proof"): "it takes some minutes",
}


def elsewhere(block):
    """Return what holds a block instead, or None."""
    if block.name:
        return "tests/live/test_wire.py runs it"
    for (page, beginning), reason in ELSEWHERE.items():
        if block.page == page and block.text.startswith(beginning):
            return reason
    return None
