"""What does not change of a worker while it lives."""

import os
from importlib.metadata import version
from socket import gethostname
from typing import Any

from core.servers.identity import location
from core.servers.urls import kind_and_path
from core.settings import PREFIX, Settings
from core.signs.installation import detect

# Settings that explain what becomes of messages, where somebody has changed them.
SHOWN = ("retry_for", "visibility_timeout", "crashpoint")


def describe(settings: Settings) -> dict[str, Any]:  # Any: JSON
    """Describe this process, as part of its sign."""
    return {
        "database_name": location(settings.database_url or ""),
        "broker": kind_and_path(settings.broker_or_redis_url),
        "host": gethostname(),
        "pid": os.getpid(),
        "version": version("essay-lifecycle-service"),
        "installation": detect(settings.home),
        "home": str(settings.home.absolute()),
        "settings": {
            f"{PREFIX}{name.upper()}": str(value)
            for name in SHOWN
            if (value := getattr(settings, name)) != Settings.model_fields[name].default
        },
    }
