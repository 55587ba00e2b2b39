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
RENEWAL: Final = b"renewal"
ID_TOKEN: Final = b"id token"


def seal(text: str, cookie: str, use: bytes = RENEWAL) -> str:
    """The text, for who has the cookie and for one use (AES-256-GCM, NIST SP 800-38D)."""
    nonce = os.urandom(NONCE_BYTES)
    return urlsafe_b64encode(nonce + _cipher(cookie, use).encrypt(nonce, text.encode(), use)).decode()


def opened(sealed: str, cookie: str, use: bytes = RENEWAL) -> str:
    """What was sealed for a cookie and a use; `ValueError` where it was not for this one."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # for keepers that have providers alone

    data = urlsafe_b64decode(sealed)
    try:
        return _cipher(cookie, use).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], use).decode()
    except InvalidTag as error:
        raise ValueError("sealed for another cookie") from error


def _cipher(cookie: str, use: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # as above

    return AESGCM(hmac.digest(cookie.encode(), use, "sha256"))
