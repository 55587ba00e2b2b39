"""Asking a proxy to let us through: `CONNECT` and the head of its answer (RFC 9110, 9.3.6).

Pure. Of what it answers the number of its status counts alone: nothing else of it is read, or shown.
"""

from __future__ import annotations

import re

from gateway.core.upstreams.proxies import Proxy, authority

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
    """What it is asked with, all of it; UnicodeError for a name that cannot be written in ASCII."""
    to = authority(host if host.isascii() else host.encode("idna").decode(), port)
    fields = f"proxy-authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    return f"CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n{fields}\r\n".encode("ascii")


def is_let_through(proxy: Proxy, answer: bytes) -> bool:
    """Whether it lets us through by what it has answered so far: False while more is to come.

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
    """A failure of this proxy."""
    return ProxyFailed(f"the proxy {proxy}: {why}")
