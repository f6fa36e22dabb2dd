"""When a server does not answer: which one it is, and what a person can do next."""

from dataclasses import dataclass

import psycopg
import redis
from psycopg_pool import PoolTimeout

from ops.explain.service_causes import look_at
from ops.wording import words_of

OLD_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)
OUTAGES = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    *OLD_SCHEMA,
    PoolTimeout,
    redis.RedisError,
    OSError,
)


@dataclass(frozen=True)
class OutageNotice:
    """What a page says about an outage; `step` is a command to run."""

    title: str
    reason: str
    step: str


def outage_notice(error: Exception) -> OutageNotice:
    """Describe an error of `OUTAGES` to a person."""
    reason = words_of(error)
    match error:
        case _ if isinstance(error, OLD_SCHEMA):
            title = "The database is not at this version of the schema"
            step = "els migrate  # if that changes nothing: curl 127.0.0.1:9095/readyz"
            return OutageNotice(title, reason, step)
        case psycopg.errors.LockNotAvailable():
            step = "curl 127.0.0.1:9095/readyz  # names who has locked it"
            return OutageNotice("Somebody has locked a table", reason, step)
        case psycopg.errors.QueryCanceled():
            return OutageNotice("Postgres took too long to answer", reason, "els status")
        case redis.RedisError():
            return OutageNotice("Redis does not answer", reason, look_at("redis", reason))
        case _:
            return OutageNotice("Postgres does not answer", reason, look_at("postgres", reason))
