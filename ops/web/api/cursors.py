"""Where a page begins, as text that readers hand back unread."""

import base64
import binascii
import json
import re

from ops.web.api.problems import WrongParameter, invalid

MOMENT = r"-?infinity|[0-9]{4,6}-[0-9]{2}-[0-9]{2} [0-9:.]{8,15}[+-][0-9:]{2,8}( BC)?"


def write_cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def read_cursor(cursor: str, *patterns: str) -> list[str]:
    """Read the parts of a cursor, one a pattern. Raises ProblemFound for one that is not ours."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise not_a_cursor() from None
    if not isinstance(parts, list) or len(parts) != len(patterns):
        raise not_a_cursor()
    for part, pattern in zip(parts, patterns, strict=True):
        if not isinstance(part, str) or not re.fullmatch(pattern, part):
            raise not_a_cursor()
    return parts


def not_a_cursor() -> Exception:
    wrong = "must be the `next` of a page before; without it, the first page comes"
    return invalid([WrongParameter(parameter="after", message=wrong)])
