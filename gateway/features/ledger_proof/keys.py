"""The Ed25519 key that signs heads, in a PEM file."""

from __future__ import annotations

from typing import Any

from gateway.errors import StartError
from gateway.extras import loading
from gateway.features.ledger_proof.tree import LedgerKey
from gateway.files import SECRET_BYTES_MAX, read_regular


def read_key(path: str) -> LedgerKey:
    """Return the private key in a file, for signing; `StartError` if it is not Ed25519 in PEM."""
    with loading("proof"):
        from cryptography.hazmat.primitives import serialization  # of keepers that sign alone
        from cryptography.hazmat.primitives.asymmetric import ed25519
    try:
        key: Any = serialization.load_pem_private_key(read_regular(path, SECRET_BYTES_MAX), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise StartError(f"{_wrong(path)} ({type(error).__name__})") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise StartError(_wrong(path))
    return LedgerKey(key.public_key().public_bytes_raw(), key.sign)


def read_public(path: str) -> bytes:
    """Return the public key in a file with a public or private key; `StartError` if it has neither."""
    with loading("proof"):
        from cryptography.hazmat.primitives import serialization  # of commands alone
        from cryptography.hazmat.primitives.asymmetric import ed25519
    try:
        raw = read_regular(path, SECRET_BYTES_MAX)
        if b"PRIVATE" in raw:
            return read_key(path).public
        key: Any = serialization.load_pem_public_key(raw)
    except (OSError, ValueError) as error:
        raise StartError(f"{path} is no Ed25519 key as PEM ({type(error).__name__})") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise StartError(f"{path} is no Ed25519 key as PEM")
    return key.public_bytes_raw()


def is_signed(key: bytes, signature: bytes, text: bytes) -> bool:
    with loading("proof"):
        from cryptography.exceptions import InvalidSignature  # of commands alone
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def _wrong(path: str) -> str:
    made = f"openssl genpkey -algorithm ed25519 -out {path}"
    return f"TOLLKEEPER_LEDGER_KEY_FILE={path} is no private key of Ed25519 as PEM: make one with {made}"
