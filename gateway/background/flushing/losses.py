"""Counts what Redis forgot: says each loss once, with who it hit and what was brought back of it.

Of several keepers the one that counts a loss says it, so what they say may be added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Protocol

from gateway.core.accounts.losses import Loss, Movement


class Losses(Protocol):
    """PostgreSQL."""

    async def count(self, known: Sequence[Movement]) -> list[Loss]:
        """Count what came to rest; `known` is what this keeper did itself, evidence too where it is asked."""


class LossCounter:
    """`evidence` is what this keeper had acknowledged of late; `lost` is what it counted since it started."""

    def __init__(
        self, losses: Losses, evidence: Iterable[Iterable[Movement]], log: Callable[..., None]
    ) -> None:
        self._losses = losses
        self._evidence = tuple(evidence)
        self._log = log
        self.lost = 0

    async def count(self) -> Mapping[str, object]:
        """Count once. What evidence that comes late takes back stays counted here; its row is right."""
        for loss in await self._losses.count([one for known in self._evidence for one in known]):
            level = "error" if loss.lost else "info"
            self.lost += max(0, loss.more)
            self._log("redis forgot what it had acknowledged", **asdict(loss), level=level)
        return {}
