"""What a scrape shows and no loop knows by itself: looked up now and then, kept until the next look.

A scrape never waits for it. Figures that cannot be looked up are left out until they can be again:
an old number would look like a good one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from gateway.background.loops import Loop, call

LOOK_INTERVAL_S = 15.0
LOOK_MAX_S = 10.0

Look = Callable[[], Awaitable[Mapping[str, Any]]]


class Gauges:
    """`latest` is what the last look at everything found, by the names of a metrics snapshot."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.latest: Mapping[str, Any] = {}
        self._looks = looks

    def loop(self) -> Loop:
        """What looks."""
        return Loop("watcher", LOOK_INTERVAL_S, (call(self.refresh),))

    async def refresh(self) -> None:
        """Look at everything once, at all of it together."""
        found: dict[str, Any] = {}
        for one in await asyncio.gather(*(_seen(look) for look in self._looks)):
            for name, value in one.items():
                # Rows about different things come from different looks.
                found[name] = [*found[name], *value] if isinstance(value, list) and name in found else value
        self.latest = found


async def _seen(look: Look) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(LOOK_MAX_S):
            return await look()
    except Exception:  # noqa: BLE001  # whatever it meets, there is nothing to show
        return {}
