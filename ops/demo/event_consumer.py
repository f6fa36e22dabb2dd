"""The example consumer on our transport: a kill loses no event and delays none for long."""

import os

from examples.consumer import app

if not str(app.conf.broker_url).startswith("amqp"):
    app.conf.update(
        broker_transport="durable_redis:Transport",
        broker_transport_options={
            "visibility_timeout": float(os.environ["ELS_VISIBILITY_TIMEOUT"])
        },
    )
