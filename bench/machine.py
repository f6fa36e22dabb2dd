"""The machine and the versions that the figures depend on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import redis

from bench.queues import Json
from bench.testbed import Testbed

PACKAGES = ("celery", "kombu", "redis", "hiredis", "psycopg", "pydantic", "sqlalchemy")
PEERS = ("dramatiq", "procrastinate", "rq", "dbos")
DURABILITY = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "wal_level")


def describe(testbed: Testbed) -> Json:
    """Describe the machine, the servers with their durability settings, and the versions."""
    with testbed.pool.connection() as conn:
        rows = conn.execute(
            "SELECT name, current_setting(name) AS value FROM unnest(%s::text[]) name",
            [["server_version", *DURABILITY]],
        )
        postgres = {row["name"]: row["value"] for row in rows}
    with redis.Redis.from_url(testbed.redis_url, decode_responses=True) as client:
        info = client.info("server")
        persistence = {k: v for name in ("append*",) for k, v in client.config_get(name).items()}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "postgres": postgres,
        "redis": {
            "version": info.get("valkey_version") or info.get("redis_version"),
            "server": "valkey" if "valkey_version" in info else "redis",
            **{k: persistence[k] for k in ("appendonly", "appendfsync") if k in persistence},
        },
        "packages": {name: found for name in (*PACKAGES, *PEERS) if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
