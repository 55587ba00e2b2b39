"""How many answers the admin port gave, and how long they took: kept by part, so that there are few."""

from __future__ import annotations

from bisect import bisect_left

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
           10.0, 30.0, 60.0, 120.0, 300.0)  # fmt: skip
API, CONSOLE, OPERATIONS = "api", "console", "operations"
_OPERATIONS = frozenset({"/livez", "/readyz", "/metrics"})


def part_of(path: str) -> str:
    """Which part of the port an address is of."""
    if path.startswith("/admin/"):
        return API
    return OPERATIONS if path in _OPERATIONS else CONSOLE


class Answers:
    """Counts by part and status, seconds by part."""

    def __init__(self) -> None:
        # From the start, so that whoever watches a count sees its first failure too.
        self.counts: dict[tuple[str, int], int] = {(part, 500): 0 for part in (API, CONSOLE, OPERATIONS)}
        self._buckets = {part: [0] * (len(SECONDS) + 1) for part in (API, CONSOLE, OPERATIONS)}
        self._sums = dict.fromkeys(self._buckets, 0.0)

    def note(self, path: str, status: int, seconds: float) -> None:
        """Count one answer."""
        part = part_of(path)
        self.counts[part, status] = self.counts.get((part, status), 0) + 1
        self._buckets[part][bisect_left(SECONDS, seconds)] += 1
        self._sums[part] += seconds

    def snapshot(self) -> dict[str, object]:
        """What metrics say of them."""
        return {
            "admin_requests": [(*series, count) for series, count in self.counts.items()],
            "admin_request_seconds": {
                part: {"buckets": list(counts), "sum": self._sums[part]}
                for part, counts in self._buckets.items()
            },
        }
