"""How many answers the admin port gave, and how long they took: kept by part, so that there are few."""

from __future__ import annotations

from gateway.core.histogram import Histogram

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
        self._seconds = {part: Histogram() for part in (API, CONSOLE, OPERATIONS)}

    def note(self, path: str, status: int, seconds: float) -> None:
        """Count one answer."""
        part = part_of(path)
        self.counts[part, status] = self.counts.get((part, status), 0) + 1
        self._seconds[part].observe(seconds)

    def snapshot(self) -> dict[str, object]:
        """What metrics say of them."""
        return {
            "admin_requests": [(*series, count) for series, count in self.counts.items()],
            "admin_request_seconds": {part: each.snapshot() for part, each in self._seconds.items()},
        }
