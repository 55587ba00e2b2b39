"""The ports of what `up` runs, as `up` itself reaches them: their URLs, and which certificate is trusted."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, build_opener

from gateway.core.certificate import TlsFiles
from gateway.errors import SettingError
from gateway.local import ports
from gateway.run.tls_port import check_files
from gateway.settings.settings import PREFIX, Settings
from gateway.settings.tls_files import PREFIXES
from gateway.tls.clients import pinned

# The variables of the certificate that commands show to the Admin API.
SHOWN = (f"{PREFIX}ADMIN_CERT_FILE", f"{PREFIX}ADMIN_KEY_FILE")


def check(settings: Settings) -> None:
    """`SettingError` where a file of TLS cannot be used, or what is started here could not be reached."""
    check_files(settings, "gateway", "admin")
    if settings.admin_tls_client_ca_file and not all(os.environ.get(name) for name in SHOWN):
        said = f"{PREFIX}ADMIN_TLS_CLIENT_CA_FILE asks for certificates"
        raise SettingError(f"{said}, so `up` needs one of its own: set {SHOWN[0]} and {SHOWN[1]}")
    opener_of(settings, "admin")


def gateway_url_of(settings: Settings) -> str:
    """Where this machine reaches the gateway."""
    host = ports.reachable_host(settings.gateway_host)
    return settings.url_of("gateway", host, settings.gateway_port)


def admin_url_of(settings: Settings) -> str:
    """Where this machine reaches the Admin API."""
    return settings.url_of("admin", ports.reachable_host(settings.admin_host), settings.admin_port)


def opener_of(settings: Settings, port: str) -> OpenerDirector:
    """What a port is called with: it must have the very certificate that settings name."""
    files = settings.tls_files(port)
    if files is None:
        return build_opener(ProxyHandler({}))
    shown = [os.environ.get(name, "") for name in SHOWN] if files.authority else ["", ""]
    trusted = f"{PREFIX}{PREFIXES[port].upper()}CERT_FILE"
    tls = pinned(TlsFiles(files.certificate, *shown), f"{PREFIX}ADMIN_", trusted)
    return build_opener(ProxyHandler({}), HTTPSHandler(context=tls))


def ca_file_of(settings: Settings) -> dict[str, str]:
    """What commands beside the data directory trust, where the Admin API speaks TLS."""
    files = settings.tls_files("admin")
    return {"admin_ca_file": str(Path(files.certificate).absolute())} if files is not None else {}
