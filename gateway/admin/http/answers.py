"""Counts the answers of the admin port by part."""

from __future__ import annotations

from gateway.core.histograms import Histogram

API, CONSOLE, OPERATIONS = "api", "console", "operations"

_OPERATIONS = frozenset({"/livez", "/readyz", "/metrics"})


def part_of(path: str) -> str:
    if path.startswith("/admin/"):
        return API
    return OPERATIONS if path in _OPERATIONS else CONSOLE


class Answers:
    """Counts of answers by part and status, and their seconds by part."""

    def __init__(self) -> None:
        # Zero from the start, so that the rate includes the first failure.
        self.counts: dict[tuple[str, int], int] = {(part, 500): 0 for part in (API, CONSOLE, OPERATIONS)}
        self._seconds = {part: Histogram() for part in (API, CONSOLE, OPERATIONS)}

    def note(self, path: str, status: int, seconds: float) -> None:
        part = part_of(path)
        self.counts[part, status] = self.counts.get((part, status), 0) + 1
        self._seconds[part].observe(seconds)

    def snapshot(self) -> dict[str, object]:
        return {
            "admin_requests": [(*series, count) for series, count in self.counts.items()],
            "admin_request_seconds": {part: second.snapshot() for part, second in self._seconds.items()},
        }
