"""The example consumer on our transport: killed, it loses no event and holds none for long."""

import os

from examples.consumer import app

app.conf.update(
    broker_transport="durable_redis:Transport",
    broker_transport_options={"visibility_timeout": float(os.environ["ELS_VISIBILITY_TIMEOUT"])},
)
