"""Signs what the page says, so that it knows its own words when they come back.

The key follows from the login: every process of the page with the same login has the same key, and
nobody without it can sign. To guess the login by a signature is as slow as scrypt.
"""

import hashlib
import hmac
import json
import time

LASTS_S = 3_600  # a form that was open for longer is opened again
SCRYPT = {"n": 2**14, "r": 8, "p": 1}


class Signer:
    def __init__(self, user: str, password: str) -> None:
        self.user = user
        salt = b"the forms of the ops page: " + user.encode()
        self._key = hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)

    def sign(self, said: object) -> str:
        """Sign something JSON; the signature is valid for an hour."""
        return self._signed(int(time.time()), said)

    def verify(self, signature: str, said: object) -> bool:
        """Tell whether a page with this login signed exactly this within the last hour."""
        at, _, _ = signature.partition(".")
        if not (at.isascii() and at.isdigit() and len(at) < 12):
            return False
        wanted = self._signed(int(at), said).encode()
        fresh = -60 <= time.time() - int(at) <= LASTS_S  # clocks may differ by a minute
        return hmac.compare_digest(wanted, signature.encode(errors="replace")) and fresh

    def _signed(self, at: int, said: object) -> str:
        text = json.dumps([at, self.user, said], sort_keys=True).encode()
        return f"{at}.{hmac.new(self._key, text, hashlib.sha256).hexdigest()}"
