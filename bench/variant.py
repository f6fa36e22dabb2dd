"""Our app with settings changed that neither `celery worker` nor the environment changes.

`BENCH_VARIANT` is JSON: `conf` has settings of Celery, `at_once` bounds what is carried out
together, `freeze` keeps Python's garbage collector from what a process of the pool inherits.
"""

import gc
import json
import os

from celery import signals

from tasks import app as program

app = program.app
_variant = json.loads(os.environ["BENCH_VARIANT"])
app.conf.update(_variant.get("conf", {}))
if at_once := _variant.get("at_once"):
    program.AT_ONCE = at_once
    taken = {"take_together": (program.QUICK, at_once)}
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **taken}
if _variant.get("freeze"):
    signals.worker_process_init.connect(lambda **_: gc.freeze(), weak=False)
