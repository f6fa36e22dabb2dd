"""Our app with settings changed that neither `celery worker` nor the environment changes.

`BENCH_VARIANT` is JSON: `conf` has settings of Celery, `at_once` bounds what is carried out
together, `garbage` has the thresholds of Python's garbage collector, `freeze` keeps it from what a
process of the pool inherits, `hiredis` false has Redis' answers parsed in Python, `connections`
sizes the pool of each process.
"""

import gc
import json
import os
from typing import Any

from celery import signals
from redis._parsers import _RESP3Parser
from redis.connection import AbstractConnection

from core import db
from tasks import app as program
from tasks.worker import starting

app = program.app
_variant = json.loads(os.environ["BENCH_VARIANT"])
app.conf.update(_variant.get("conf", {}))
if at_once := _variant.get("at_once"):
    program.AT_ONCE = at_once
    batching = {"tasks": program.QUICK, "messages": at_once, "bytes": program.BYTES_AT_ONCE}
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "batching": batching}
if garbage := _variant.get("garbage"):
    starting.GARBAGE = garbage
if _variant.get("freeze"):
    signals.worker_process_init.connect(lambda **_: gc.freeze(), weak=False)
if not _variant.get("hiredis", True):
    _set_parser: Any = AbstractConnection.set_parser

    def _in_python(connection: Any, _: object) -> None:  # Any: as redis-py has it
        _set_parser(connection, _RESP3Parser)

    AbstractConnection.set_parser = _in_python  # type: ignore[method-assign] # of this process
if size := _variant.get("connections"):
    _connect = db.connect

    def _few(url: str, **options: Any) -> Any:  # Any: as `db.connect`
        return _connect(url, **{**options, "size": size})

    db.connect = _few
