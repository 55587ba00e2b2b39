"""Counts movements that Redis acknowledged and then lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from gateway.core.accounts.holds import MovementRange

if TYPE_CHECKING:
    from persistence.keeper.sweeps import Losses


class LossCounter:
    """Counts movements that Redis acknowledged and then lost; `lost` is their number since the start.

    `evidence` are the movements acknowledged lately, and `at_rest` returns the partitions whose workers have
    sent their logs again.
    """

    def __init__(
        self,
        losses: Losses,
        evidence: Iterable[Iterable[MovementRange]],
        log: Callable[..., None],
        *,
        at_rest: Callable[[], Awaitable[Collection[int]]],
    ) -> None:
        self._losses, self._at_rest = losses, at_rest
        self._evidence = tuple(evidence)
        self._log = log
        self.lost = 0

    async def count(self) -> Mapping[str, object]:
        """Count and log movements that Redis acknowledged and then lost; return {}.

        Late evidence lowers a loss in its row, but not the number counted here.
        """
        if not await self._losses.any_open():
            return {}
        # Asked first: workers of partitions at rest have by now brought all their evidence.
        at_rest = await self._at_rest()
        for loss in await self._losses.count(
            [movement for known in self._evidence for movement in known], at_rest
        ):
            level = "error" if loss.lost else "info"
            self.lost += max(0, loss.more)
            self._log("redis forgot what it had acknowledged", **asdict(loss), level=level)
        return {}
