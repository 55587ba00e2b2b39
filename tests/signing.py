"""Issuers of the tests: their keys, the documents that publish these, and the tokens they sign.

Signatures are made with `cryptography` itself, never by the library that verifies them.
"""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from gateway.core.issuers import Issuer

ISSUER, AUDIENCE = "https://issuer.example", "tollkeeper"
Json = dict[str, Any]
_CURVES: dict[str, tuple[type[ec.EllipticCurve], int]] = {
    "ES256": (ec.SECP256R1, 32), "ES384": (ec.SECP384R1, 48), "ES512": (ec.SECP521R1, 66),
}  # fmt: skip
_CRVS = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}


@cache
def _rsa_key(number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def _ec_key(algorithm: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(_CURVES[algorithm][0]())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    """A key for EdDSA, made once for all tests of a process."""
    return ed25519.Ed25519PrivateKey.generate()


def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same for RSA."""
    return _rsa_key(number, bits)


def ec_key(algorithm: str = "ES256") -> ec.EllipticCurvePrivateKey:
    """The same of a curve."""
    return _ec_key(algorithm)


def private_of(algorithm: str) -> Any:
    """The key of ours that signs by this algorithm."""
    if algorithm == "EdDSA":
        return ed_key()
    return ec_key(algorithm) if algorithm.startswith("ES") else rsa_key()


def public_jwk(private: Any, **more: object) -> Json:
    """What is published of a key."""
    public = private.public_key()
    if isinstance(private, rsa.RSAPrivateKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e), **more}
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": encoded(public.public_bytes_raw()), **more}
    at = public.public_numbers()
    name = next(name for name, (curve, _) in _CURVES.items() if curve.name == public.curve.name)
    size = _CURVES[name][1]
    return {
        "kty": "EC", "crv": _CRVS[name], "x": encoded(at.x.to_bytes(size)), "y": encoded(at.y.to_bytes(size)),
        **more,
    }  # fmt: skip


def jwks(*keys: Json) -> bytes:
    """A document of keys; without any that of `rsa_key()`, whose id is `one`."""
    return json.dumps({"keys": keys or [public_jwk(rsa_key(), kid="one", use="sig")]}).encode()


def claims(**more: object) -> Json:
    """Claims of a token that is good for an hour; what is None is left out."""
    now = int(time.time())
    said: Json = {"iss": ISSUER, "aud": AUDIENCE, "sub": "agent", "iat": now, "exp": now + 3600} | more
    return {name: value for name, value in said.items() if value is not None}


def issuer(**more: Any) -> Issuer:
    """The issuer of these tokens, as a configuration has it."""
    return Issuer(**{"issuer": ISSUER, "audiences": (AUDIENCE,), "jwks_uri": "https://keys.example"} | more)


def token(
    said: Json | bytes | None = None, *, algorithm: str = "RS256", key: Any = None, **header: object
) -> bytes:
    """A signed token; `header` adds to the usual one, and takes away what is None."""
    fields = {"alg": algorithm, "typ": "JWT", "kid": "one"} | header
    written = {name: value for name, value in fields.items() if value is not None}
    signed = b".".join((encoded_json(written), encoded_json(claims() if said is None else said)))
    return signed + b"." + encoded(signature(signed, algorithm, key or private_of(algorithm))).encode()


def signature(signed: bytes, algorithm: str, key: Any) -> bytes:
    """The signature of these bytes (RFC 7518, 3)."""
    if algorithm == "EdDSA":
        return bytes(key.sign(signed))
    chosen = _HASHES[algorithm[2:]]()
    if algorithm.startswith("HS"):
        return hmac.digest(key, signed, "sha" + algorithm[2:])
    if algorithm.startswith("ES"):
        r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(chosen)))
        size = _CURVES[algorithm][1]
        return bytes(r.to_bytes(size) + s.to_bytes(size))
    pad: Any = padding.PKCS1v15()
    if algorithm.startswith("PS"):
        pad = padding.PSS(padding.MGF1(chosen), chosen.digest_size)
    return bytes(key.sign(signed, pad, chosen))


def encoded(data: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def encoded_json(said: Json | bytes) -> bytes:
    """A part of a token."""
    return encoded(said if isinstance(said, bytes) else json.dumps(said).encode()).encode()


def _number(number: int) -> str:
    return encoded(number.to_bytes((number.bit_length() + 7) // 8))
