"""The gateway's numbers as they move: samples of the last minutes, and rates between them.

Samples are taken while somebody looks, and sparsely otherwise, so that a chart has a past.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from gateway.core.quantile import quantile_of

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
FACTS = ("holds", "outbox_entries", "outbox_oldest_seconds", "drift_tokens", "drift_credits")

_log = logging.getLogger("tollkeeper.console")


@dataclass(frozen=True, slots=True)
class Sample:
    """Sums since the start, at a moment; `facts` are the numbers of that moment."""

    at: float
    requests: int
    tokens: int
    reasons: Mapping[str, int]
    request_buckets: Sequence[int]
    overhead_buckets: Sequence[int]
    bounds: Sequence[float]
    facts: Mapping[str, float]

    @property
    def refused(self) -> int:
        """Requests that were refused."""
        return sum(self.reasons.values())


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
            await self._sample()
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
            await self._sample()

    async def _sample(self) -> None:
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
        return next((each for each in reversed(self._samples) if each.at <= edge), self._samples[0])


def sample_of(snapshot: Snapshot, at: float) -> Sample:
    """Add up a snapshot of all workers."""
    reasons = Counter[str]()
    for _, _, reason, count in snapshot.get("requests", ()):
        reasons[reason] += count
    requests = reasons.total()
    del reasons[""]
    return Sample(
        at,
        requests,
        sum(count for _, kind, count in snapshot.get("tokens", ()) if kind == "total"),
        reasons,
        snapshot.get("request_seconds", {}).get("buckets", ()),
        snapshot.get("overhead_seconds", {}).get("buckets", ()),
        snapshot.get("bounds", ()),
        {name: snapshot[name] for name in FACTS if name in snapshot},
    )


def rates(before: Sample, after: Sample) -> dict[str, float]:
    """What happened a second between two samples; zeros where they are one."""
    seconds = after.at - before.at
    more = {
        "requests_s": after.requests - before.requests,
        "refused_s": after.refused - before.refused,
        "tokens_s": after.tokens - before.tokens,
    }
    return {name: round(max(0, n) / seconds, 3) if seconds > 0 else 0.0 for name, n in more.items()}


def latencies(before: Sample, after: Sample) -> dict[str, float | None]:
    """Quantiles of the requests between two samples, in seconds; None where there were none."""
    found: dict[str, float | None] = {}
    for prefix, new, old in (
        ("", after.request_buckets, before.request_buckets),
        ("overhead_", after.overhead_buckets, before.overhead_buckets),
    ):
        counts = [max(0, n - earlier) for n, earlier in zip_longest(new, old[: len(new)], fillvalue=0)]
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            found[prefix + label] = quantile_of(counts, after.bounds, share)
    return found


def _reasons(before: Sample, after: Sample) -> list[tuple[str, int, int]]:
    """Refusals by reason: in the last minute and since the start, most often first."""
    found = [(name, count - before.reasons.get(name, 0), count) for name, count in after.reasons.items()]
    return sorted(found, key=lambda each: (-each[1], -each[2], each[0]))[:REASONS_MAX]


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
