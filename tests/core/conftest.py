import pytest

from core.catalogue import OPT_IN
from core.lifecycle import Lifecycle
from tests.factories import new_batch


@pytest.fixture
def batch_id():
    """A batch that no other test knows."""
    return new_batch()


@pytest.fixture
def telling(pool, slots):
    """A lifecycle where somebody asks for every opt-in event."""
    return Lifecycle(pool, slots, OPT_IN)


@pytest.fixture
def failing_essay(pool, database_url):
    """Let the row of this essay fail to be inserted, until it is mended."""
    essay_id = "essay-that-fails"
    with pool.connection() as conn:
        conn.execute(
            "CREATE FUNCTION fail_on_essay() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'this essay fails'; END $$"
        )
        conn.execute(
            "CREATE TRIGGER fail_on_essay BEFORE INSERT ON essay_states FOR EACH ROW"
            f" WHEN (NEW.essay_id = '{essay_id}') EXECUTE FUNCTION fail_on_essay()"
        )

        def mend():
            conn.execute("DROP TRIGGER IF EXISTS fail_on_essay ON essay_states")
            conn.execute("DROP FUNCTION IF EXISTS fail_on_essay")

        yield essay_id, mend
        mend()
