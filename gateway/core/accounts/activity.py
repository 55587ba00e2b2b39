"""Who is busy now: what calls of tenants used and were refused lately. To be looked at, never billed.

A *kind* is `requests`, `tokens`, or the reason of a refusal. Tenant 0 stands for callers nobody
knows, and for tenants too many to be counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest

REQUESTS, TOKENS = "requests", "tokens"
NOBODY = 0

Counts = Mapping[tuple[int, str], int]


@dataclass(slots=True)
class Busy:
    """One tenant's calls within a window."""

    tenant_id: int
    requests: int = 0
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Calls that were settled or refused."""
        return self.requests + sum(self.refused.values())

    def add(self, kind: str, count: int) -> None:
        """Add what was counted of a kind."""
        if kind == REQUESTS:
            self.requests += count
        elif kind == TOKENS:
            self.tokens += count
        else:
            self.refused[kind] = self.refused.get(kind, 0) + count


def busiest(counts: Iterable[tuple[tuple[int, str], int]], most: int) -> tuple[Busy, list[Busy]]:
    """Everybody together, and the tenants with most calls, at most `most` of them, most first."""
    everybody, tenants = Busy(NOBODY), dict[int, Busy]()
    for (tenant_id, kind), count in counts:
        everybody.add(kind, count)
        tenants.setdefault(tenant_id, Busy(tenant_id)).add(kind, count)
    ranked = sorted(tenants.values(), key=lambda busy: (-busy.calls, -busy.tokens, busy.tenant_id))
    return everybody, [busy for busy in ranked if busy.tenant_id != NOBODY][:most]


def bounded(counts: Counts, most: int) -> dict[tuple[int, str], int]:
    """The same counts with at most `most` tenants told apart; those with fewest calls become nobody."""
    calls: dict[int, int] = {}
    for (tenant_id, kind), count in counts.items():
        calls[tenant_id] = calls.get(tenant_id, 0) + (count if kind != TOKENS else 0)
    if len(calls) <= most:
        return dict(counts)
    calls.pop(NOBODY, None)
    kept = set(nlargest(most, calls, key=calls.__getitem__))
    found: dict[tuple[int, str], int] = {}
    others: dict[str, int] = {}
    for key, count in counts.items():
        tenant_id, kind = key
        if tenant_id in kept:
            found[key] = count
        else:
            others[kind] = others.get(kind, 0) + count
    return found | {(NOBODY, kind): count for kind, count in others.items()}
