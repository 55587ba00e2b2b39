"""Failed attempts with credentials: by site, delayed after some, and reported."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from gateway.core.issuers import FAILURES

REASONS = ("missing", "malformed", "unknown", "revoked", *FAILURES)
FREE_MAX = 5  # failures of a site within the window that are answered at once
WINDOW_S = 60.0
DELAY_S_FIRST = 0.1
DELAY_S_MAX = 1.0
DELAYED_MAX = 256  # answers that wait at once; further ones are not delayed, to save memory
SITES_MAX = 10_000
TOLD_MAX = 10  # sites named in one report
IPV6_SITE_BITS = 64


@dataclass(slots=True)
class FailureReport:
    """Failures of a site since the last report. `site` is empty for all sites beyond the maximum."""

    site: str
    attempts: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Failures:
    """Failed authentications at a port. `clock` is monotonic.

    `counts` are by reason, `delayed` is the number of answers that wait now. The first `free_max` failures of
    a site within a window are answered at once.
    """

    def __init__(self, clock: Callable[[], float], free_max: int = FREE_MAX) -> None:
        self.free_max = free_max
        # Counters exist from the start, so that the metric shows the first failure too.
        self.counts = dict.fromkeys(REASONS, 0)
        self.delayed = 0
        self._clock = clock
        # By site: the failures in its current window, and the begin of the window.
        self._sites: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._untold: dict[str, FailureReport] = {}

    def count(self, address: str, reason: str) -> float:
        """Count a failed authentication, and return the seconds by which to delay its answer."""
        site = site_of(address)
        self.counts[reason] += 1
        self._note(site, reason)
        now = self._clock()
        failed, since = self._sites.pop(site, (0, now))
        if now - since > WINDOW_S:
            failed, since = 0, now
        self._sites[site] = failed + 1, since
        if len(self._sites) > SITES_MAX:
            self._sites.popitem(last=False)
        if failed < self.free_max or self.delayed >= DELAYED_MAX:
            return 0.0
        return min(DELAY_S_MAX, DELAY_S_FIRST * 2.0 ** min(failed - self.free_max, 16))

    def take_reports(self) -> list[FailureReport]:
        """Return the reports of failures since the last call of this method, those of most attempts first."""
        untold, self._untold = self._untold, {}
        return sorted(untold.values(), key=lambda report: (not report.site, -report.attempts))

    def rows(self, port: str) -> list[tuple[str, str, int]]:
        """Return the counts of failed authentications as (port, reason, count), for a metric."""
        return [(port, reason, count) for reason, count in self.counts.items()]

    def _note(self, site: str, reason: str) -> None:
        known = site in self._untold or len(self._untold) < TOLD_MAX
        report = self._untold.setdefault(site if known else "", FailureReport(site if known else ""))
        report.attempts += 1
        report.reasons[reason] = report.reasons.get(reason, 0) + 1


def site_of(address: str) -> str:
    """Return the network that an address belongs to: an IPv4 address, or an IPv6 site."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> IPV6_SITE_BITS << IPV6_SITE_BITS))
    return str(parsed)
