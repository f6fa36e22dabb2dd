"""Flower as this service runs it: read-only, and behind a password or a login if one is set.

Without one its REST API stays closed: an open one lets every web site that a user of this host
visits read it.
"""

import logging
import sys
from collections.abc import Mapping

from celery.__main__ import main as celery

from core.errors import BadSettings
from core.settings import Settings
from ops.output import say

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOGINS = {
    "google": "flower.views.auth.GoogleAuth2LoginHandler",
    "github": "flower.views.auth.GithubLoginHandler",
    "gitlab": "flower.views.auth.GitLabLoginHandler",
    "okta": "flower.views.auth.OktaLoginHandler",
}


def command(settings: Settings) -> list[str]:
    """Return the command line; it wins over `FLOWER_*` variables, and holds no secret."""
    return [
        *(sys.executable, "-m", __name__, "-A", "tasks.app", "flower"),
        "--read_only=True",
        "--enable_events=False",  # workers send them anyway
        "--debug=False",  # its error pages would show settings
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        "--tasks_columns=name,state,kwargs,result,received,runtime,worker",
    ]


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the password or login. Raises BadSettings."""
    result = {k: v for k, v in environ.items() if k != "FLOWER_UNAUTHENTICATED_API"}
    if settings.flower_auth:
        password = settings.flower_auth.get_secret_value()
        if "," in password or not password.isascii():
            raise BadSettings("ELS_FLOWER_AUTH: Flower allows only ASCII in it, and no comma")
        result["FLOWER_BASIC_AUTH"] = password
    elif login := settings.flower_oauth:
        result |= {
            "FLOWER_AUTH_PROVIDER": LOGINS[login.provider],
            "FLOWER_AUTH": login.allow,
            "FLOWER_OAUTH2_KEY": login.key,
            "FLOWER_OAUTH2_SECRET": login.secret.get_secret_value(),
            "FLOWER_OAUTH2_REDIRECT_URI": login.redirect_uri,
        }
    elif settings.flower_host not in LOOPBACK:
        say(
            f"els: Flower listens on {settings.flower_host} and asks nobody for a password;"
            " set ELS_FLOWER_AUTH or ELS_FLOWER_OAUTH"
        )
    return result


def main() -> None:
    """Run Flower in this process.

    Without remote control no worker answers what it asks, and it would warn of each question.
    """
    if not Settings.from_env().remote_control:
        logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    celery()


if __name__ == "__main__":
    main()
