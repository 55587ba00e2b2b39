"""Which addresses the product may call on somebody's behalf: public ones, unless private ones are allowed.

Pure. A name is checked when it is resolved, by the addresses it stands for; what is written as an
address is checked here and then. Other spellings of an address (`127.1`, `0x7f.1`, `2130706433`) are
neither: programs differ in what they read there. Sources: IANA's special-purpose address registries;
RFC 6052 and 3056 for IPv4 addresses carried in IPv6 ones.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

URL_CHARS_MAX = 2_000
NAT64 = IPv6Network("64:ff9b::/96")
UNICAST = IPv6Network("2000::/3")  # all that is given out of IPv6
# Special too, and not in every Python's table.
SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
LOCAL_NAMES = (".localhost", ".local", ".internal", ".localdomain")

# A full name; the last label of one begins with a letter.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}\Z)({_LABEL}\.)+(?![0-9]){_LABEL}\.?", re.ASCII)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is somebody's on the Internet, whichever way it is written."""
    inner = _carried(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    special = any(address in network for network in SPECIAL)
    return address.is_global and not address.is_multicast and not special


def refusal(url: str, *, private: bool) -> str | None:
    """Say why a URL may not be called, as far as it shows by itself; None if it may.

    `private` allows private addresses, and plain HTTP with them.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if len(url) > URL_CHARS_MAX or not url.isascii() or any(char <= " " for char in url):
        return f"must be at most {URL_CHARS_MAX} characters of ASCII without blanks"
    if parts.scheme not in ({"https", "http"} if private else {"https"}):
        return "must begin with https://"
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        return "must name a host, and neither a user nor a fragment"
    if port == 0:
        return "must have a port from 1 to 65535, or none"
    if private:
        return None
    address = literal(host)
    if address is None and (_NAME.fullmatch(host) is None or "[" in parts.netloc):
        return "must name a public host: by its full name, or by an address as it is usually written"
    if host.rstrip(".").endswith(LOCAL_NAMES) or (address is not None and not is_public(address)):
        return "must not name a private address"
    return None


def is_full_name(host: str, *, private: bool) -> bool:
    """Whether a host in lower case is a full name; `private` allows those of a local network."""
    local = host.rstrip(".").endswith(LOCAL_NAMES)
    return _NAME.fullmatch(host) is not None and (private or not local)


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address a host is written as; None for a name, and with a zone, which names this machine's link."""
    try:
        return None if "%" in host else ip_address(host)
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
