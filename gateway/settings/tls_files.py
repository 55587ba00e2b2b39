"""The settings of TLS of our ports: three files each, named alike."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gateway.core.certificate import TlsFiles
from gateway.errors import SettingError
from gateway.files import require_regular

# What the names of each port's settings begin with.
PREFIXES = {"gateway": "tls_", "admin": "admin_tls_", "ops": "ops_tls_"}


def files_of(port: str, value: Callable[[str], str]) -> TlsFiles | None:
    """What a port speaks TLS with, each file as its setting has it; None without a certificate."""
    prefix = PREFIXES[port]
    certificate = value(f"{prefix}cert_file")
    if not certificate:
        return None
    return TlsFiles(value(f"{prefix}client_ca_file"), certificate, value(f"{prefix}key_file"))


def check_workloads(workloads: Collection[object], values: Mapping[str, Any], begin: str) -> None:
    """`SettingError` where there are workloads, and nobody would ask them for a certificate."""
    if workloads and not values.get("tls_client_ca_file"):
        said = f"{begin}TLS_CLIENT_CA_FILE is not set, but there are workloads"
        raise SettingError(f"{said}: expected a PEM file of the authorities that sign their certificates")


def check_pairs(values: Mapping[str, Any], begin: str) -> None:
    """`SettingError` where a port has half of what TLS needs: nobody should take it for encrypted."""
    for prefix in PREFIXES.values():
        certificate, key, authority = (f"{prefix}{name}_file" for name in ("cert", "key", "client_ca"))
        there = key if values.get(key) else authority if values.get(authority) else ""
        if there and not values.get(certificate):
            said = f"{begin}{certificate.upper()} is not set, but {begin}{there.upper()} is"
            raise SettingError(f"{said}: expected a PEM file of the certificate")
        if values.get(certificate) and not values.get(key):
            said = f"{begin}{key.upper()} is not set, but {begin}{certificate.upper()} is"
            raise SettingError(f"{said}: expected a PEM file of the certificate's key")


def authority_at(ca_file: str | None, otherwise: str) -> ssl.SSLContext:
    """What verifies others by a file of authorities; `SettingError` says `otherwise` where that cannot be."""
    try:
        require_regular(ca_file)
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # `ssl.SSLError` is one: then it is no PEM file
        raise SettingError(otherwise) from error
