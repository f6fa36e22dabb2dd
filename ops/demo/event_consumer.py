"""The example consumer on our transport: killed, it loses no event and holds none for long.

On RabbitMQ it is the example itself, which loses none there.
"""

import os

from examples.consumer import app

if not str(app.conf.broker_url).startswith("amqp"):
    app.conf.update(
        broker_transport="durable_redis:Transport",
        broker_transport_options={
            "visibility_timeout": float(os.environ["ELS_VISIBILITY_TIMEOUT"])
        },
    )
