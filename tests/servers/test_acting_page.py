"""A page that acts, with the rights on Redis that `els access redis` prints for it."""

from pydantic import SecretStr

from core.settings import Settings
from ops.access import redis_users, user
from tests import factories as make
from tests.core import story
from tests.ops.place import a_place
from tests.ops.served import Served
from tests.ops.test_page_actions import LOGIN, Operator
from tests.servers.test_forbidden import fresh, guarded  # noqa: F401 - fixtures


def test_with_its_rights_the_page_acts_and_without_them_it_says_so(fresh, database_url):  # noqa: F811
    acts = redis_users(Settings(ops_actions=True))[user(Settings(), "ops")]
    fresh.admin.execute_command("ACL", "SETUSER", "acting", *acts, ">acting")
    url = f"redis://acting:acting@127.0.0.1:{fresh.port}/0"
    more = {"ops_auth": SecretStr(LOGIN), "ops_actions": True}
    with a_place(database_url) as place:
        batches = make.new_batch(), make.new_batch()
        with Served(place.urls["ELS_DATABASE_URL"], url, **more) as page:
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
