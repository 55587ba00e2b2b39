"""Which addresses the product may call on somebody's behalf: public ones, unless private ones are allowed.

Pure. A name is checked when it is resolved, by the addresses it stands for; what is written as an
address is checked here and then. Other spellings of an address (`127.1`, `0x7f.1`, `2130706433`) are
neither: programs differ in what they read there. Sources: IANA's special-purpose address registries;
RFC 6052 and 3056 for IPv4 addresses carried in IPv6 ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
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
    """Return whether an address is somebody's on the Internet, whichever way it is written."""
    inner = _carried(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in UNICAST:
        return False
    special = any(address in network for network in SPECIAL)
    return address.is_global and not address.is_multicast and not special


def address_refusal(url: str, *, private: bool) -> str | None:
    """Return why a URL may not be called, as far as its text shows; None if it may.

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
    """Return whether a host in lower case is a full name; `private` allows those of a local network."""
    local = host.rstrip(".").endswith(LOCAL_NAMES)
    return _NAME.fullmatch(host) is not None and (private or not local)


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is written as; None for a name, and for a zone of this machine."""
    try:
        return None if "%" in host else ip_address(host)
    except ValueError:
        return None


def _carried(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address inside an IPv6 one."""
    if isinstance(address, IPv4Address):
        return None
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


# How a URL is shown, in an error, a log line or a note: whatever might be a secret is cut out.
#
# Also of one that is written wrongly. Every message about a configured or typed URL says it by this.

# Parameters whose values are no secrets; one nobody knows may be `password` misspelt.
_SHOWN = (
    "ssl(?:mode|rootcert|cert|key|crl)|application_name|connect_timeout|target_session_attrs|options|user|username"
    "|host|hostaddr|port|dbname|db|region|scheme|endpoint_override|allow_bucket_(?:creation|deletion)"
)

# Behind a name and a colon, where no host follows: a password whose `@` was forgotten.
_NO_PORT = re.compile(r"(?<=://)([^/@:?#\[\]]*):(?![^@]*@)(?!(?<!//:)[0-9]{1,5}(?:[/?#,]|\Z)).*", re.DOTALL)


def without_password(url: str) -> str:
    """Make a URL fit for a log line: hide everything between the user's name and the last `@`, and every
    parameter that is not known to be harmless.
    """
    shown = re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    shown = _NO_PORT.sub(r"\1:***", shown)
    return re.sub(rf"(?<=[?&])(?!(?:{_SHOWN})=)([^=&#]+)=[^&#]*", r"\1=***", shown)


# Proxies that calls to others go through, and who is reached without one.
#
# Pure. `exempt` is what NO_PROXY says, as curl and Python's urllib read it: a name stands for itself and all
# below it, with or without a dot before it; an address, or a network, for hosts that are written as
# addresses; `host:port` for that port alone; `*` for everybody. No name is looked up for it.

EXEMPT_MAX = 1_000
PORT_MAX = 65_535
_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"(\*?\.)?[a-z0-9_]([a-z0-9_.-]{0,252}[a-z0-9_])?\.?", re.ASCII)
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
        """Return the proxy's host and port, fit for a log line."""
        return authority(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Proxies:
    """Which proxy is for URLs of a scheme, if any is."""

    http: Proxy | None = None
    https: Proxy | None = None
    exempt: tuple[str, ...] = ()
    ca_file: str = ""

    def to(self, url: str) -> Proxy | None:
        """Return the proxy on the way to a URL; None where it is reached directly."""
        parts = urlsplit(url)
        found = self.https if parts.scheme == "https" else self.http
        if found is None or not parts.hostname:
            return None
        port = parts.port or _PORTS.get(parts.scheme, 0)
        if any(_is_for(entry, parts.hostname, port) for entry in self.exempt):
            return None
        return replace(found, ca_file=self.ca_file)

    def with_authority(self, ca_file: str) -> Proxies:
        """Return the same, their certificates verified with this file."""
        return replace(self, ca_file=ca_file)


DIRECT = Proxies()


def authority(host: str, port: int) -> str:
    """Join host and port as URLs have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_exempt(text: str) -> tuple[str, ...]:
    """Return the entries of NO_PROXY; ValueError says which one nobody could go by."""
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
    return _HOST_NAME.fullmatch(host) is not None and not host.rpartition(".")[2].isdigit()


def _is_for(entry: str, host: str, port: int) -> bool:
    """Return whether an entry stands for a host, in lower case as URLs are read, and its port."""
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
    """Split an entry into host and port; a bare IPv6 address has colons and no port."""
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


# Asking a proxy to let us through: `CONNECT` and the head of its answer (RFC 9110, 9.3.6).
#
# Pure. Of what it answers the number of its status counts alone: nothing else of it is read, or shown.

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
    """A proxy that lets nobody through; the message says which, and why."""


def request(proxy: Proxy, host: str, port: int) -> bytes:
    """Return the whole CONNECT request to a proxy; UnicodeError for a name that ASCII cannot write."""
    to = authority(host if host.isascii() else host.encode("idna").decode(), port)
    fields = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    return f"CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n{fields}\r\n".encode("ascii")


def is_let_through(proxy: Proxy, answer: bytes) -> bool:
    """Return whether it lets us through by what it has answered so far: False while more is to come.

    ProxyFailed where it does not. Behind the head there is nothing yet: in a tunnel nobody speaks before us.
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
    """Return a failure of this proxy."""
    return ProxyFailed(f"the proxy {proxy}: {why}")
