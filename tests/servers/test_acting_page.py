"""A page that acts, with the rights on Redis that `els access redis` prints for it."""

import pytest
import redis
from pydantic import SecretStr

from core.lifecycle import Lifecycle
from core.settings import Settings
from core.slots import Slots
from ops.access import redis_users, user
from tests import factories as make
from tests.core import story
from tests.ops.place import a_place
from tests.ops.served import Served
from tests.ops.test_page_actions import LOGIN, Operator
from tests.servers.test_forbidden import SLOTS, _refused, fresh, guarded  # noqa: F401 - fixtures

WRONG = (
    "UPDATE batch_essay_trackers SET available_slots = 1 WHERE batch_id = %(counter)s",
    "UPDATE batch_pending_content SET batch_id = %(waits)s WHERE batch_id = %(early)s",
)


class Page(Served):
    """A page that gives no signs of life of workers: it may not."""

    def lives(self):
        pass


@pytest.fixture
def acting(fresh):  # noqa: F811
    """Return the URL of a user with the rights of a page that acts."""
    acts = redis_users(Settings(ops_actions=True))[user(Settings(), "ops")]
    fresh.admin.execute_command("ACL", "SETUSER", "acting", *acts, ">acting")
    return f"redis://acting:acting@127.0.0.1:{fresh.port}/0"


def test_with_its_rights_the_page_repairs_whatever_the_sweep_repairs(fresh, acting, database_url):  # noqa: F811
    login = {"ops_auth": SecretStr(LOGIN), "ops_actions": True}
    batch = {name: make.new_batch() for name in ("counter", "waits", "early", "drifts", "full")}
    with (
        a_place(database_url) as place,
        Page(place.urls["ELS_DATABASE_URL"], acting, **login) as page,
    ):
        lifecycle = Lifecycle(place.pool, Slots(fresh.admin))
        for name in ("counter", "waits", "drifts", "full"):
            story.register(lifecycle, batch[name], 2)
        fresh.admin.delete(f"batch:{{{batch['drifts']}}}:available_slots")
        story.assign(lifecycle, batch["early"], "text-1")
        story.assign(lifecycle, batch["full"], "text-1")
        story.assign(lifecycle, batch["full"], "text-2")
        with place.pool.connection() as conn:
            for statement in WRONG:
                conn.execute(statement, batch)
        fresh.admin.acl_log_reset()
        operator = Operator(page)
        done = operator.act("reconcile")
        amended = operator.act("amend", "of a test", batch=batch["waits"], on_deadline="proceed")
        operator.act("cancel", "of a test", batch=batch["counter"])
        again = operator.act("republish", "of a test", batch=batch["counter"])
        discarded = operator.act("discard", "of a test", number=place.park(batch["full"]))
        with place.pool.connection() as conn:
            repaired = {
                row["rule"] for row in conn.execute("SELECT DISTINCT rule FROM repairs").fetchall()
            }

    assert {each.status for each in (done, amended, again, discarded)} == {200}
    assert {
        "counter_wrong",
        "pending_though_registered",
        "full_not_announced",
        "slot_drift",
    } <= repaired
    assert fresh.refused() == set()


def test_with_its_rights_the_page_takes_and_forges_nothing(fresh, acting):  # noqa: F811
    acts = [
        *("RPOP els", "LPOP els", "BRPOP els 1", "DEL els", "LTRIM els 1 0", "RENAME els x"),
        *("RPOP els.events", "DEL els.events", "LPUSH els.internal x", "LPUSH els.control x"),
        *("LPUSH els.malformed x", "DEL els.malformed", "HDEL unacked tag", "DEL unacked"),
        *("ZREM unacked_index x", "DEL unacked_mutex", "SET unacked_mutex x"),
        *("ZADD els:workers 1 ghost", "SET els:swept_at 1", "HSET els:pauses worker x"),
        *("SET els:tick:els:els.sweep 1", "SET els:beat:els x", "HSET {els:metrics} a 1"),
        *("SET celery-task-meta-1 x", "GET celery-task-meta-1", "PUBLISH celery-task-meta-1 x"),
        *("PUBLISH /0.celeryev/worker.heartbeat x", "PUBLISH /0.celery.pidbox x"),
        *("DEL other", "FLUSHALL", "KEYS *", "CONFIG SET appendonly no", "CLIENT KILL ID 1"),
    ]
    with redis.Redis.from_url(acting, decode_responses=True) as client:
        allowed = [act for act in acts if not _refused(client, *act.split())]
        client.sadd(SLOTS, "essay")  # a batch's slots are what it repairs

    assert allowed == []


def test_with_its_rights_the_page_acts_and_without_them_it_says_so(fresh, database_url):  # noqa: F811
    acts = redis_users(Settings(ops_actions=True))[user(Settings(), "ops")]
    fresh.admin.execute_command("ACL", "SETUSER", "acting", *acts, ">acting")
    url = f"redis://acting:acting@127.0.0.1:{fresh.port}/0"
    more = {"ops_auth": SecretStr(LOGIN), "ops_actions": True}
    with a_place(database_url) as place:
        batches = make.new_batch(), make.new_batch()
        with Page(place.urls["ELS_DATABASE_URL"], url, **more) as page:
            for batch in batches:
                story.fill(page.lifecycle, batch, 1)
            operator = Operator(page)
            number = place.park(batches[0])
            done = [
                operator.act("replay", number=number),
                operator.act("reconcile", batch=batches[0]),
                operator.act("cancel", "of a test", batch=batches[1]),
            ]
            fresh.admin.execute_command("ACL", "SETUSER", "acting", *reading(), ">acting")
            letter = place.park(batches[0])
            asked = operator.get(f"/act/replay?number={letter}")
            refused = operator.post("replay", asked.hidden)
        kept = {each["action"] for each in place.actions()}
        state = place.letter(letter)["state"]

    assert {each.status for each in done} == {200}
    assert kept == {"replay", "reconcile", "cancel"}
    assert fresh.admin.llen("els") == 1
    assert fresh.admin.llen("els.events") > 0
    assert (refused.status, state) == (503, "waiting")
    assert "NOPERM" in refused.words or "permission" in refused.words


def reading():
    """Return the rights of a page that only reads."""
    return redis_users(Settings())[user(Settings(), "ops")]
