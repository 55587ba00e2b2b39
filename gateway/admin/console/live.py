"""The gateway's numbers as they move: samples of the last minutes, and rates between them.

Samples are taken while somebody looks, and sparsely otherwise, so that a chart has a past.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Snapshot = Mapping[str, Any]

WATCHED_INTERVAL_S = 1.0
IDLE_INTERVAL_S = 15.0
WATCHED_S = 30.0
SAMPLES_MAX = 600
FRESH_S = 0.5
RATE_S = 10.0
SMOOTHED_S = 4.0
MINUTE_S = 60.0
REASONS_MAX = 12

_log = logging.getLogger("tollkeeper.console")


@dataclass(frozen=True, slots=True)
class Sample:
    """Sums since the start, at a moment; `facts` are the numbers of that moment."""

    at: float
    requests: int
    refused: int
    failed: int
    tokens: int
    credits: int
    reasons: Mapping[str, int]
    request_buckets: Sequence[int]
    overhead_buckets: Sequence[int]
    bounds: Sequence[float]
    facts: Mapping[str, float]


class Live:
    """Takes samples and answers what they say."""

    def __init__(self, snapshot: Callable[[], Awaitable[Snapshot]], clock: Callable[[], float]) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._watched_at = -WATCHED_S
        self._taking = asyncio.Lock()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Take samples for ever."""
        while True:
            await self._take()
            self._woken.clear()
            watched = self._clock() - self._watched_at < WATCHED_S
            if watched:
                await asyncio.sleep(WATCHED_INTERVAL_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), IDLE_INTERVAL_S)

    async def now(self) -> dict[str, Any]:
        """The numbers of this moment, and rates over the last seconds."""
        await self._fresh()
        if not self._samples:
            return {"is_known": False, "is_of_all": False, "sees_gateways": False, "facts": {}, "reasons": []}
        last = self._samples[-1]
        return {
            "is_known": True,
            "is_of_all": False,
            "sees_gateways": bool(last.bounds) and bool(last.request_buckets),
            "requests": last.requests,
            "facts": last.facts,
            **rates(self._since(RATE_S), last),
            **latencies(self._since(MINUTE_S), last),
            "reasons": _reasons(self._since(MINUTE_S), last),
        }

    async def history(self) -> list[list[float | None]]:
        """Columns for a chart: time, requests/s, refused/s, tokens/s, p50 and p99 in milliseconds."""
        await self._fresh()
        columns: list[list[float | None]] = [[] for _ in range(6)]
        samples = list(self._samples)
        before = 0
        for after in range(1, len(samples)):
            # Gateways tell their numbers once a second, which would make a comb of shorter steps.
            while before + 1 < after and samples[after].at - samples[before + 1].at >= SMOOTHED_S:
                before += 1
            rate, late = rates(samples[before], samples[after]), latencies(samples[before], samples[after])
            values = (
                round(samples[after].at, 3), rate["requests_s"], rate["refused_s"], rate["tokens_s"],
                _milli(late["p50"]), _milli(late["p99"]),
            )  # fmt: skip
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return columns

    async def _fresh(self) -> None:
        self._watched_at = self._clock()
        self._woken.set()
        if not self._samples or self._clock() - self._samples[-1].at >= FRESH_S:
            await self._take()

    async def _take(self) -> None:
        async with self._taking:
            now = self._clock()
            if self._samples and now - self._samples[-1].at < FRESH_S:
                return
            try:
                sample = sample_of(await self._snapshot(), now)
            except Exception:  # noqa: BLE001  # a page without numbers is better than no page
                _log.warning("no sample", exc_info=True)
                return
            if self._samples and sample.requests < self._samples[-1].requests:
                self._samples.clear()  # counted again: what was before says nothing of it
            self._samples.append(sample)

    def _since(self, seconds: float) -> Sample:
        """The last sample that is at least so old, else the oldest."""
        edge = self._samples[-1].at - seconds
        found = self._samples[0]
        for sample in self._samples:
            if sample.at > edge:
                break
            found = sample
        return found


def sample_of(snapshot: Snapshot, at: float) -> Sample:
    """Add up a snapshot of all workers."""
    reasons: dict[str, int] = {}
    requests = failed = 0
    for _, status, reason, count in snapshot.get("requests", ()):
        requests += count
        if reason:
            reasons[reason] = reasons.get(reason, 0) + count
        failed += count if int(status) >= 500 else 0
    facts = {
        name: snapshot[name]
        for name in ("holds", "outbox_entries", "outbox_oldest_seconds", "drift_tokens", "drift_credits",
                     "spool_entries", "reclaimed_holds")
        if name in snapshot
    }  # fmt: skip
    return Sample(
        at,
        requests,
        sum(reasons.values()),
        failed,
        sum(count for _, kind, count in snapshot.get("tokens", ()) if kind == "total"),
        sum(count for _, count in snapshot.get("credits", ())),
        reasons,
        snapshot.get("request_seconds", {}).get("buckets", ()),
        snapshot.get("overhead_seconds", {}).get("buckets", ()),
        snapshot.get("bounds", ()),
        facts,
    )


def rates(before: Sample, after: Sample) -> dict[str, float]:
    """What happened a second between two samples; zeros where they are one."""
    seconds = after.at - before.at

    def a_second(name: str) -> float:
        difference = max(0, getattr(after, name) - getattr(before, name))
        return round(difference / seconds, 3) if seconds > 0 else 0.0

    return {f"{name}_s": a_second(name) for name in ("requests", "refused", "failed", "tokens", "credits")}


def latencies(before: Sample, after: Sample) -> dict[str, float | None]:
    """Quantiles of the requests between two samples, in seconds; None where there were none."""
    found: dict[str, float | None] = {}
    for prefix, name in (("", "request_buckets"), ("overhead_", "overhead_buckets")):
        new, old = list(getattr(after, name)), list(getattr(before, name))
        counts = [max(0, n - (old[i] if i < len(old) else 0)) for i, n in enumerate(new)]
        for quantile, label in ((0.5, "p50"), (0.99, "p99")):
            found[prefix + label] = quantile_of(counts, after.bounds, quantile)
    return found


def quantile_of(counts: Sequence[int], bounds: Sequence[float], quantile: float) -> float | None:
    """A quantile of a histogram, evenly spread within a bucket; the last bucket is its lower bound."""
    total = sum(counts)
    if not total or not bounds:
        return None
    rank, seen = quantile * total, 0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            low = bounds[index - 1] if index else 0.0
            if index >= len(bounds):
                return low
            return low + (bounds[index] - low) * (rank - seen) / count
        seen += count
    return bounds[-1]


def _reasons(before: Sample, after: Sample) -> list[tuple[str, int, int]]:
    """Refusals by reason: in the last minute and since the start, most often first."""
    found = [(name, count - before.reasons.get(name, 0), count) for name, count in after.reasons.items()]
    return sorted(found, key=lambda each: (-each[1], -each[2], each[0]))[:REASONS_MAX]


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
