"""How often somebody may try to sign in: a few failures a minute from one address."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

FAILURES_MAX = 5
WINDOW_S = 60.0
ADDRESSES_MAX = 10_000
IPV6_SITE_BITS = 64  # one customer's line has all of these to itself


class Attempts:
    """Failures by address in the running window; the longest unseen address is forgotten first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """How long the address has to wait; 0 where it may try now."""
        recent = self._recent(_site(address))
        return max(0.0, recent[0] + WINDOW_S - self._clock()) if len(recent) >= FAILURES_MAX else 0.0

    def count(self, address: str) -> None:
        """Count an attempt as a failure until it is known to be none: many at once are many."""
        site = _site(address)
        self._failures[site] = [*self._recent(site), self._clock()][-FAILURES_MAX:]
        self._failures.move_to_end(site)
        while len(self._failures) > ADDRESSES_MAX:
            self._failures.popitem(last=False)

    def forgive(self, address: str) -> None:
        """Take back the attempt that was counted last."""
        site = _site(address)
        kept = self._failures.pop(site, [])[:-1]
        if kept:
            self._failures[site] = kept

    def _recent(self, site: str) -> list[float]:
        since = self._clock() - WINDOW_S
        return [at for at in self._failures.get(site, ()) if at > since]


def _site(address: str) -> str:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> IPV6_SITE_BITS << IPV6_SITE_BITS))
    return str(parsed)
