"""Log lines say what went wrong, and nothing of whose essay it was."""

import os
import subprocess
import sys

import pytest

NAMES = ["Anna.txt", "Anna (A).txt", 'Anna "A".txt', "Anna 'A'.txt", "A\nAnna.txt", "A\\Anna.txt"]
REFUSED = f"""
import logging
import psycopg, structlog
from core import db, logs
from core.settings import Settings

settings = Settings.from_env()
logs.configure(settings)
log = structlog.get_logger("ours")
with db.connect_once(settings.database_url) as conn:
    conn.execute("CREATE TEMP TABLE t (name text, n int, CONSTRAINT small CHECK (n < 1))")
    for name in {NAMES!r}:
        try:
            conn.execute("INSERT INTO t VALUES (%s, 1)", [name])
        except psycopg.Error as error:
            log.exception("first")
            log.warning("second", error=str(error))
            logging.getLogger("celery").error("third %r", error, exc_info=True)
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_row_that_postgres_refused_is_in_no_line(database_url, form):
    told = subprocess.run(
        [sys.executable, "-c", REFUSED],
        env={**os.environ, "ELS_LOG_FORMAT": form},
        capture_output=True,
        text=True,
        check=True,
    ).stderr

    for line in ("first", "second", "third"):
        assert told.count(line) == len(NAMES)
    assert told.count("violates check constraint") >= 3 * len(NAMES)
    assert "Anna" not in told
