"""The example receiver on the transport that loses nothing when it is killed."""

from examples.receiver import app

__all__ = ["app"]

app.conf.broker_transport = "durable_redis:Transport"
app.conf.broker_transport_options = {"visibility_timeout": 5}
