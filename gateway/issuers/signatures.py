"""Public keys as issuers write them (JWK Set, RFC 7517), and signatures by them (RFC 7515, RFC 7518).

The one module that knows the library; it is loaded where there are issuers.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jwt
from jwt.algorithms import get_default_algorithms

from gateway.core.issuers.issuer import FAMILY_OF
from gateway.core.issuers.signed_token import SignedToken
from gateway.issuers.key_set import KeySet, UnreadableKeys, VerifyingKey

KEYS_MAX: Final = 64
RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 8192
_VERIFIERS = get_default_algorithms()


def read_key_set(data: bytes) -> KeySet:
    """The usable keys of a document; `UnreadableKeys` where it is none or has none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableKeys("what was read is no JSON") from error
    written = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(written, list):
        raise UnreadableKeys("what was read is no set of keys: its `keys` is no list")
    if len(written) > KEYS_MAX:
        raise UnreadableKeys(f"there are {len(written)} keys, {KEYS_MAX} are read at most")
    keys = tuple(_usable(written))
    if not keys:
        raise UnreadableKeys("none of its keys is a public key that a token may be verified by")
    return KeySet(keys)


def _usable(written: list[Any]) -> Iterator[VerifyingKey]:
    for one in written:
        if not isinstance(one, dict) or one.get("use", "sig") != "sig" or "d" in one:
            continue
        operations = one.get("key_ops", ["verify"])
        family = "RSA" if one.get("kty") == "RSA" else one.get("crv")
        algorithms = [name for name, its in FAMILY_OF.items() if its == family]
        only, key_id = one.get("alg"), one.get("kid")
        if not algorithms or not isinstance(operations, list) or "verify" not in operations:
            continue
        if (only is not None and only not in algorithms) or not isinstance(key_id, str | None):
            continue
        public = _public(one, only or algorithms[0])
        if public is not None:
            yield VerifyingKey(key_id, str(family), only, public, _is_by)


def _public(written: Mapping[str, Any], algorithm: str) -> Any:
    """The public key, None where it is not what it says, or too weak or too large to be one."""
    named = {name: value for name, value in written.items() if name not in {"alg", "use", "key_ops"}}
    try:
        with warnings.catch_warnings(action="ignore"):  # of small keys, which are not taken
            found = jwt.PyJWK.from_dict(named, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    size = getattr(found, "key_size", RSA_BITS_MIN) if written.get("kty") == "RSA" else RSA_BITS_MIN
    return found if RSA_BITS_MIN <= size <= RSA_BITS_MAX else None


def _is_by(token: SignedToken, public: Any) -> bool:
    return _VERIFIERS[token.algorithm].verify(token.signed, public, token.signature)
