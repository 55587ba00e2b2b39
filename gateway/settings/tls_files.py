"""The TLS settings of our ports: three files each, with the same endings."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from gateway.core.certificates import TlsFiles
from gateway.errors import SettingError
from gateway.files import require_regular

# The prefixes of each port's settings.
PREFIXES = {"gateway": "tls_", "admin": "admin_tls_", "ops": "ops_tls_"}


def files_of(port: str, value: Callable[[str], str]) -> TlsFiles | None:
    """Return the TLS files of a port from its settings, which `value` reads; None without a certificate."""
    prefix = PREFIXES[port]
    certificate = value(f"{prefix}cert_file")
    if not certificate:
        return None
    return TlsFiles(value(f"{prefix}client_ca_file"), certificate, value(f"{prefix}key_file"))


def check_pairs(values: Mapping[str, Any], begin: str) -> None:
    """Raise `SettingError` if a port has only some of its TLS files, since it would silently be unencrypted.

    `begin` is the prefix of variables in the message.
    """
    for prefix in PREFIXES.values():
        certificate, key, authority = (f"{prefix}{name}_file" for name in ("cert", "key", "client_ca"))
        there = next((name for name in (key, authority) if values.get(name)), "")
        if there and not values.get(certificate):
            reason = f"{begin}{certificate.upper()} is not set, but {begin}{there.upper()} is"
            raise SettingError(f"{reason}: expected a PEM file of the certificate")
        if values.get(certificate) and not values.get(key):
            reason = f"{begin}{key.upper()} is not set, but {begin}{certificate.upper()} is"
            raise SettingError(f"{reason}: expected a PEM file of the certificate's key")


def authority_at(ca_file: str | None, otherwise: str) -> ssl.SSLContext:
    """Return a TLS context for a file of authorities. Raise `SettingError(otherwise)` if it is unusable."""
    try:
        require_regular(ca_file)
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # `ssl.SSLError` is one: then it is no PEM file
        raise SettingError(otherwise) from error
