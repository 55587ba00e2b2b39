"""Addresses that may be called on a user's behalf: public ones, unless private ones are allowed.

Pure. Names are checked when they are resolved, by their addresses. Literal addresses are checked here and
then. Other spellings of an address (`127.1`, `0x7f.1`, `2130706433`) are refused, because programs read them
differently. Sources: IANA's special-purpose address registries; RFC 6052 and 3056 for IPv4 addresses within
IPv6 ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

URL_CHARS_MAX = 2_000
NAT64 = IPv6Network("64:ff9b::/96")
UNICAST = IPv6Network("2000::/3")  # all assigned global addresses of IPv6
# Special networks that some versions of Python lack.
SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))
LOCAL_NAMES = (".localhost", ".local", ".internal", ".localdomain")

# A full name; the last label of one begins with a letter.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}\Z)({_LABEL}\.)+(?![0-9]){_LABEL}\.?", re.ASCII)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is public on the Internet; for IPv4 within IPv6, the inner one counts."""
    inner = _carried(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    special = any(address in network for network in SPECIAL)
    return address.is_global and not address.is_multicast and not special


def address_refusal(url: str, *, private: bool) -> str | None:
    """Return why a URL may not be called, by its text alone; None if it may.

    `private` allows private addresses, and plain HTTP.
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
    """Return whether a lower-case host is a full domain name, such as `api.example.com`.

    `private` allows names of a local network.
    """
    local = host.rstrip(".").endswith(LOCAL_NAMES)
    return _NAME.fullmatch(host) is not None and (private or not local)


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that the text `host` is; None for a name, and for an address with a zone."""
    try:
        return None if "%" in host else ip_address(host)
    except ValueError:
        return None


def _carried(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that is embedded in an IPv6 address, or None."""
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


# URLs in errors, log lines and notes: all that may be a secret is hidden.
#
# This also works for malformed URLs. Every message about a configured or typed URL uses it.

# Parameters whose values are no secrets; an unknown one may be a misspelt `password`.
_SHOWN = (
    "ssl(?:mode|rootcert|cert|key|crl)|application_name|connect_timeout|target_session_attrs|options|user|username"
    "|host|hostaddr|port|dbname|db|region|scheme|endpoint_override|allow_bucket_(?:creation|deletion)"
)

# Text after a name and a colon that is no port: a password with a forgotten `@`.
_NO_PORT = re.compile(r"(?<=://)([^/@:?#\[\]]*):(?![^@]*@)(?!(?<!//:)[0-9]{1,5}(?:[/?#,]|\Z)).*", re.DOTALL)


def without_password(url: str) -> str:
    """Return a URL for a log line, without secrets.

    All between the user's name and the last `@` is hidden, and the value of every parameter that is not
    known to be harmless.
    """
    shown = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    shown = _NO_PORT.sub(r"\1:***", shown)
    return re.sub(rf"(?<=[?&])(?!(?:{_SHOWN})=)([^=&#]+)=[^&#]*", r"\1=***", shown)


# Proxies for outgoing calls, and hosts that are reached without one.
#
# Pure. `exempt` is NO_PROXY as curl and Python's urllib read it: a name matches itself and all names below
# it, with or without a leading dot; an address or network matches hosts written as addresses; `host:port`
# matches only that port; `*` matches all. No name is resolved for it.

EXEMPT_MAX = 1_000
PORT_MAX = 65_535
_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"(\*?\.)?[a-z0-9_]([a-z0-9_.-]{0,252}[a-z0-9_])?\.?", re.ASCII)
_WITH_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Proxy:
    """One proxy. `secured` means TLS to it; `authorization` is its Proxy-Authorization, empty for none."""

    host: str
    port: int
    secured: bool = False
    authorization: str = field(default="", repr=False)
    ca_file: str = ""

    def __str__(self) -> str:
        """Return the proxy's host and port, for a log line."""
        return authority(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies for URLs by scheme, and the hosts that are reached without one (`exempt`)."""

    http: Proxy | None = None
    https: Proxy | None = None
    exempt: tuple[str, ...] = ()
    ca_file: str = ""

    def to(self, url: str) -> Proxy | None:
        """Return the proxy for a URL, or None if it is reached directly."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        if proxy is None or not parts.hostname:
            return None
        port = parts.port or _PORTS.get(parts.scheme, 0)
        if any(_is_for(entry, parts.hostname, port) for entry in self.exempt):
            return None
        return replace(proxy, ca_file=self.ca_file)

    def with_authority(self, ca_file: str) -> Proxies:
        """Return proxies like these, whose TLS certificates are verified by the authorities in `ca_file`."""
        return replace(self, ca_file=ca_file)


DIRECT = Proxies()


def authority(host: str, port: int) -> str:
    """Join host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_exempt(text: str) -> tuple[str, ...]:
    """Return the entries of NO_PROXY. Raise ValueError with the first invalid entry."""
    entries = tuple(dict.fromkeys(filter(None, re.split(r"[,\s]+", text.lower()))))
    if len(entries) > EXEMPT_MAX:
        raise ValueError(f"it has more than {EXEMPT_MAX} entries")
    for entry in entries:
        if not _is_readable(entry):
            raise ValueError(
                f"{entry[:100]!r} is neither a name, an address, a network such as 10.0.0.0/8, nor *"
            )
    return entries


def _is_readable(entry: str) -> bool:
    """Return whether an entry of NO_PROXY is an address, a network, a name or `*`."""
    host, port = _split(entry)
    if port is not None and not 0 < port <= PORT_MAX:
        return False
    if "/" in host:
        return port is None and _network(host) is not None
    if host == "*" or _address(host) is not None:
        return True
    # A malformed address would be read as a name that never matches.
    return _HOST_NAME.fullmatch(host) is not None and not host.rpartition(".")[2].isdigit()


def _is_for(entry: str, host: str, port: int) -> bool:
    """Return whether an entry of NO_PROXY matches a lower-case host and a port."""
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
    """Split an entry into host and port. A bare IPv6 address has colons and no port."""
    match = _WITH_PORT.fullmatch(entry)
    return (match[1], int(match[2])) if match else (entry, None)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


# Opening a tunnel through a proxy: `CONNECT` and the head of its answer (RFC 9110, 9.3.6).
#
# Pure. Only the number of the answer's status counts: nothing else of it is read or shown.

HEAD_BYTES_MAX = 16 * 1024
_HEAD_END = b"\r\n\r\n"
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_ANSWERS = {
    403: "it does not allow that",
    407: "it wants other credentials",
    502: "it cannot reach the upstream",
    503: "it cannot reach the upstream",
    504: "the upstream does not answer it in time",
}


class ProxyFailed(OSError):
    """Raised if a proxy gives no tunnel; the message names it and the reason."""


def request(proxy: Proxy, host: str, port: int) -> bytes:
    """Return the whole CONNECT request to a proxy. Raise UnicodeError for a name that IDNA cannot encode."""
    to = authority(host if host.isascii() else host.encode("idna").decode(), port)
    fields = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    return f"CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n{fields}\r\n".encode("ascii")


def is_let_through(proxy: Proxy, answer: bytes) -> bool:
    """Return whether the proxy has opened the tunnel; False while its answer is incomplete.

    Raise ProxyFailed if it refuses, or sends more than a head: in a tunnel the gateway speaks first.
    """
    at = answer.find(_HEAD_END)
    if at < 0 and len(answer) <= HEAD_BYTES_MAX and answer.count(b"\n") == answer.count(b"\r\n"):
        return False
    if at < 0 or at + len(_HEAD_END) > HEAD_BYTES_MAX:
        raise failed(proxy, f"no head of an answer within {HEAD_BYTES_MAX} bytes")
    line = _STATUS_LINE.match(answer)
    if line is None:
        raise failed(proxy, "what it answers is not HTTP")
    status = int(line[1])
    if not 200 <= status < 300:
        why = f": {_ANSWERS[status]}" if status in _ANSWERS else ""
        raise failed(proxy, f"it answers {status} to CONNECT{why}")
    if len(answer) > at + len(_HEAD_END):
        raise failed(proxy, "it sends more than the head of an answer")
    return True


def failed(proxy: Proxy, why: str) -> ProxyFailed:
    """Return the error for this proxy."""
    return ProxyFailed(f"the proxy {proxy}: {why}")
