"""The example consumer on our transports: a kill loses no event and delays none for long."""

import os

from core.servers.urls import is_amqp
from examples.consumer import app
from tasks.servers import set_broker
from tasks.worker import amqp

url = os.environ["DOWNSTREAM_BROKER_URL"]
app.conf.broker_transport_options = (
    amqp.OPTIONS
    if is_amqp(url)
    else {"visibility_timeout": float(os.environ.get("ELS_VISIBILITY_TIMEOUT", "60"))}
)
set_broker(app, url)
