"""Counts losses of Redis: says each loss once, with its accounts and the part brought back.

Of several keepers the one that counts a loss says it, so what they say may be added up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from gateway.core.accounts.holds import MovementRange

if TYPE_CHECKING:
    from persistence.keeper.sweeps import Losses


class LossCounter:
    """`evidence` is what this keeper had acknowledged of late; `lost` is what it counted since it started.

    `at_rest` answers the partitions whose logs everybody has sent again.
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
        """Count once. What evidence that comes late takes back stays counted here; its row is right."""
        if not await self._losses.any_open():
            return {}
        # Who is at rest has brought all its evidence: asked before any of that is looked at.
        at_rest = await self._at_rest()
        for loss in await self._losses.count([one for known in self._evidence for one in known], at_rest):
            level = "error" if loss.lost else "info"
            self.lost += max(0, loss.more)
            self._log("redis forgot what it had acknowledged", **asdict(loss), level=level)
        return {}
