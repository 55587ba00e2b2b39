"""Which addresses the product may call on somebody's behalf: public ones, unless private ones are allowed.

Pure. A name is judged when it is resolved, by the addresses it stands for; what is written as an
address is judged here and then. Sources: IANA's special-purpose address registries; RFC 6052 and
3056 for IPv4 addresses carried in IPv6 ones.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

URL_CHARS_MAX = 2_000
NAT64 = IPv6Network("64:ff9b::/96")
LOCAL_NAMES = ("localhost", ".localhost", ".local", ".internal", ".localdomain")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is somebody's on the Internet, whichever way it is written."""
    inner = _carried(address)
    if inner is not None:
        return is_public(inner)
    return address.is_global and not address.is_multicast


def refusal(url: str, *, private: bool) -> str | None:
    """Say why a URL may not be called, as far as it shows by itself; None if it may.

    `private` allows private addresses, and plain HTTP with them.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if len(url) > URL_CHARS_MAX or not url.isascii() or any(char <= " " for char in url):
        return f"must be at most {URL_CHARS_MAX} characters of ASCII without blanks"
    if parts.scheme not in ({"https", "http"} if private else {"https"}):
        return "must begin with https://"
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        return "must name a host, and neither a user nor a fragment"
    if private:
        return None
    if host == LOCAL_NAMES[0] or host.rstrip(".").endswith(LOCAL_NAMES):
        return "must not name a private address"
    address = literal(host)
    if address is not None and not is_public(address):
        return "must not name a private address"
    return None


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address a host is written as; None for a name."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _carried(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address inside an IPv6 one."""
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
