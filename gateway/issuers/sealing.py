"""What a provider gives for a session, kept so that only the session's own cookie opens it.

The cookie is in the browser and nowhere else: what is stored is of no use to who reads it.
"""

from __future__ import annotations

import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES: Final = 12
_USE: Final = b"renewal"


def seal(text: str, cookie: str) -> str:
    """The text, for who has the cookie (AES-256-GCM, NIST SP 800-38D)."""
    nonce = os.urandom(NONCE_BYTES)
    return urlsafe_b64encode(nonce + _cipher(cookie).encrypt(nonce, text.encode(), _USE)).decode()


def opened(sealed: str, cookie: str) -> str:
    """What was sealed for a cookie; `ValueError` where it was not for this one."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # for keepers that have providers alone

    data = urlsafe_b64decode(sealed)
    try:
        return _cipher(cookie).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _USE).decode()
    except InvalidTag as error:
        raise ValueError("sealed for another cookie") from error


def _cipher(cookie: str) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # as above

    return AESGCM(hmac.digest(cookie.encode(), _USE, "sha256"))
