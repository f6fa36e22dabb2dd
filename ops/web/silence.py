"""When a server does not answer: which one it is, and what a person can do next."""

from dataclasses import dataclass

import psycopg
import redis
from psycopg_pool import PoolTimeout

OLD_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)
SILENCE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    *OLD_SCHEMA,
    PoolTimeout,
    redis.RedisError,
    OSError,
)


@dataclass(frozen=True)
class Away:
    """What does not answer, why as it was told, and the next step."""

    title: str
    reason: str
    step: str


def silence(error: Exception) -> Away:
    """Tell what an error of `SILENCE` means to a person."""
    reason = " ".join(str(error).split()) or type(error).__name__
    match error:
        case _ if isinstance(error, OLD_SCHEMA):
            return Away("The database is not at this version of the schema", reason, "els migrate")
        case psycopg.errors.QueryCanceled():
            return Away("Postgres took too long to answer", reason, "els status")
        case redis.RedisError():
            return Away("Redis does not answer", reason, "els env")
        case _:
            return Away("Postgres does not answer", reason, "els env")
