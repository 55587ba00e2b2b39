"""Proxies from the standard variables, or from an upstream's entry in the configuration file.

`https_proxy`, `http_proxy` and `no_proxy` take precedence over the same names in capitals, as with curl. The
URL of a proxy may contain credentials, so no message shows it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from gateway.core.network import DIRECT, Proxies, Proxy, read_exempt
from gateway.errors import SettingError
from gateway.settings.tls_files import authority_at

# The value for an upstream that is reached directly, whatever the variables say.
NONE = "none"
WANTED = "http://user:password@host:port, or https:// where the proxy itself speaks TLS"
URL_CHARS_MAX = 2_000
_SCHEMES = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,252}[a-z0-9_])?\.?|[0-9a-f:.]+", re.ASCII)


def read_proxies(environ: Mapping[str, str], settings: Mapping[str, Any]) -> Proxies:
    """Return the proxies that the environment names. Raise `SettingError` with the variable that is wrong.

    NO_PROXY only has an effect with a proxy. The CA file for proxies with TLS, also those of single
    upstreams, is in `settings`.
    """
    ca_file = str(settings.get("proxy_ca_file", ""))
    if ca_file:
        message = f"TOLLKEEPER_PROXY_CA_FILE={ca_file!r} cannot be used"
        authority_at(ca_file, f"{message}: expected a PEM file of the authority of a proxy")
    http, https = (_read(text, name) if text.strip() else None for name, text in _variables(environ))
    if http is None and https is None:
        return Proxies(ca_file=ca_file)
    name, text = _read_variable(environ, "NO_PROXY")
    try:
        return Proxies(http, https, read_exempt(text), ca_file)
    except ValueError as error:
        raise SettingError(f"{name} is not valid: {error}") from error


def own_proxies(text: str, place: str) -> Proxies | None:
    """Return the proxies of one upstream: None if it has no own setting."""
    if text in {"", NONE}:
        return DIRECT if text else None
    found = _read(text, place)
    return Proxies(found, found)


def without_scheme(environ: Mapping[str, str], own: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each proxy that is written without its scheme; `own` has those of upstreams, by place."""
    for place, text in (*_variables(environ), *own.items()):
        if text.strip() not in {"", NONE} and "://" not in text:
            message = "has no scheme and is taken as http://"
            yield f"{place} {message}: begin it with http://, or https:// where the proxy itself speaks TLS"


def _variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    return [_read_variable(environ, name) for name in ("HTTP_PROXY", "HTTPS_PROXY")]


def _read_variable(environ: Mapping[str, str], variable: str) -> tuple[str, str]:
    small = variable.lower()
    found = environ.get(small)
    return (small, found) if found is not None else (variable, environ.get(variable, ""))


def _read(text: str, place: str) -> Proxy:
    """Return the proxy of a URL. Without a scheme, HTTP is used."""
    text = text.strip()
    url = text if "://" in text else f"http://{text}"
    scheme = url.partition("://")[0].lower()
    if scheme.startswith("socks"):
        raise SettingError(f"{place} is not valid: SOCKS is not spoken here; expected {WANTED}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        user, password = (unquote_to_bytes(part or "") for part in (parts.username, parts.password))
    except ValueError as error:
        raise SettingError(f"{place} is not valid: expected {WANTED}") from error
    known = b"" if parts.username is None else user + b":" + password
    plain = len(url) <= URL_CHARS_MAX and url.isascii() and not re.search(r"[\x00-\x20\x7f]", url)
    behind = parts.path not in {"", "/"} or parts.query or parts.fragment
    if not plain or behind or scheme not in _SCHEMES or not _HOST.fullmatch(host) or port == 0:
        raise SettingError(f"{place} is not valid: expected {WANTED}")
    if b":" in user or re.search(rb"[\x00-\x1f\x7f]", known):
        raise SettingError(f"{place} is not valid: its user has a colon, or a character that cannot be sent")
    shown = f"Basic {b64encode(known).decode()}" if known else ""
    return Proxy(host, port or _SCHEMES[scheme], scheme == "https", shown)
