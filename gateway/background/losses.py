"""Counts what Redis forgot: says each loss once, with who it hit and what was brought back of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Protocol

from gateway.core.losses import Loss, Movement


class Losses(Protocol):
    """PostgreSQL."""

    async def count(self, known: Sequence[Movement]) -> list[Loss]:
        """Count what came to rest; `known` is what this keeper did itself, evidence too where it is asked."""

    async def total(self) -> int:
        """Movements lost so far, of all accounts."""


class LossCounter:
    """`evidence` is what this keeper had acknowledged of late."""

    def __init__(
        self, losses: Losses, evidence: Iterable[Iterable[Movement]], log: Callable[..., None]
    ) -> None:
        self._losses = losses
        self._evidence = tuple(evidence)
        self._log = log

    async def look(self) -> Mapping[str, object]:
        """Count once; the total for a metrics snapshot."""
        for loss in await self._losses.count([one for known in self._evidence for one in known]):
            level = "error" if loss.lost else "info"
            self._log("redis forgot what it had acknowledged", **asdict(loss), level=level)
        return {"lost_events": await self._losses.total()}
