"""Reports wrong credentials: a line in the log a site and interval, and for people's port a stored row.

Both are bounded by what `Failures` tells at a time, so that nobody fills a log or a table by guessing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from gateway.background.loops import Loop, call
from gateway.core.failures import Failures, Told

INTERVAL_S = 10.0


class FailureTeller:
    """Reports what failed at one port; `keep` stores it, where there is a store."""

    def __init__(
        self,
        port: str,
        failures: Failures,
        log: Callable[..., None],
        keep: Callable[[Sequence[Told]], Awaitable[None]] | None = None,
    ) -> None:
        self._port = port
        self._failures = failures
        self._log = log
        self._keep = keep

    def loop(self) -> Loop:
        """What tells every interval."""
        return Loop("failures", INTERVAL_S, (call(self.tell),))

    async def tell(self) -> None:
        """Tell of what failed since the last time."""
        told = self._failures.take_told()
        for one in told:
            self._log(
                "wrong credentials",
                port=self._port,
                address=one.site or "others",
                attempts=one.attempts,
                reasons=one.reasons,
                level="warning",
            )
        if told and self._keep is not None:
            await self._keep(told)
