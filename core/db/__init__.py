"""Postgres: every statement of the service, each in a function of the module of its subject.

Each takes a connection first: on an autocommitting one the statement is a transaction of its own.
The long statements stand in `sql/`.
"""

from core.db import batches as batches
from core.db import completion as completion
from core.db import dead_letters as dead_letters
from core.db import idempotency as idempotency
from core.db import outbox as outbox
from core.db import retention as retention
from core.db import slots as slots
from core.db import sweep as sweep
from core.db.connection import connect as connect
from core.db.connection import connect_once as connect_once
from core.db.connection import transaction as transaction
