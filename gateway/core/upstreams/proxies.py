"""Proxies that calls to others go through, and who is reached without one.

Pure. `exempt` is what NO_PROXY says, as curl and Python's urllib read it: a name stands for itself and all
below it, with or without a dot before it; an address, or a network, for hosts that are written as addresses;
`host:port` for that port alone; `*` for everybody. No name is looked up for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

EXEMPT_MAX = 1_000
PORT_MAX = 65_535
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(\*?\.)?[a-z0-9_]([a-z0-9_.-]{0,252}[a-z0-9_])?\.?", re.ASCII)
_WITH_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. `secured`: TLS is spoken with it; `authorization` is what it knows us by, empty for none."""

    host: str
    port: int
    secured: bool = False
    authorization: str = field(default="", repr=False)
    ca_file: str = ""

    def __str__(self) -> str:
        """Where it is, fit for a log line."""
        return authority(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Proxies:
    """Which proxy is for URLs of a scheme, if any is."""

    http: Proxy | None = None
    https: Proxy | None = None
    exempt: tuple[str, ...] = ()
    ca_file: str = ""

    def to(self, url: str) -> Proxy | None:
        """The proxy on the way to a URL; None where it is reached directly."""
        parts = urlsplit(url)
        found = self.https if parts.scheme == "https" else self.http
        if found is None or not parts.hostname:
            return None
        port = parts.port or _PORTS.get(parts.scheme, 0)
        if any(_is_for(entry, parts.hostname, port) for entry in self.exempt):
            return None
        return replace(found, ca_file=self.ca_file)

    def with_authority(self, ca_file: str) -> Proxies:
        """The same, their certificates verified with this file."""
        return replace(self, ca_file=ca_file)


DIRECT = Proxies()


def authority(host: str, port: int) -> str:
    """Host and port as URLs have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_exempt(text: str) -> tuple[str, ...]:
    """The entries of NO_PROXY; ValueError says which one nobody could go by."""
    found = tuple(dict.fromkeys(filter(None, re.split(r"[,\s]+", text.lower()))))
    if len(found) > EXEMPT_MAX:
        raise ValueError(f"it has more than {EXEMPT_MAX} entries")
    for entry in found:
        if not _is_readable(entry):
            raise ValueError(
                f"{entry[:100]!r} is neither a name, an address, a network such as 10.0.0.0/8, nor *"
            )
    return found


def _is_readable(entry: str) -> bool:
    host, port = _split(entry)
    if port is not None and not 0 < port <= PORT_MAX:
        return False
    if "/" in host:
        return port is None and _network(host) is not None
    if host == "*" or _address(host) is not None:
        return True
    # What looks like an address and is none would be taken for a name that nobody has.
    return _NAME.fullmatch(host) is not None and not host.rpartition(".")[2].isdigit()


def _is_for(entry: str, host: str, port: int) -> bool:
    """Whether an entry stands for a host, in lower case as URLs are read, and its port."""
    wanted, only = _split(entry)
    if only is not None and only != port:
        return False
    if wanted == "*":
        return True
    address = _address(host)
    if address is not None:
        network = _network(wanted) if "/" in wanted else None
        return address in network if network is not None else address == _address(wanted)
    name, host = wanted.removeprefix("*").strip("."), host.rstrip(".")
    return host == name or host.endswith(f".{name}")


def _split(entry: str) -> tuple[str, int | None]:
    """Host and port of an entry; a bare IPv6 address has colons and no port."""
    found = _WITH_PORT.fullmatch(entry)
    return (found[1], int(found[2])) if found else (entry, None)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(host.strip("[]"))
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None
