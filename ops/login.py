"""The login of a page that acts."""

from core.errors import BadSettings
from core.settings import Settings


def login_of(settings: Settings) -> tuple[str, str] | None:
    """Return the user and password of a page that acts; None: it does not act.

    Raises BadSettings where it acts and has no login.
    """
    if not settings.ops_actions:
        return None
    if settings.ops_auth is None:
        raise BadSettings(
            "ELS_OPS_ACTIONS lets whoever sees the page change data, so it needs a login:"
            " set ELS_OPS_AUTH=user:password, or unset ELS_OPS_ACTIONS"
        )
    user, _, password = settings.ops_auth.get_secret_value().partition(":")
    return user.strip(), password
