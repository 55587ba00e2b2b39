"""Whether a keeper runs, and under which peppers it keeps credentials: one key, which each keeper renews.

Nothing depends on it. People are told by it, and so is whoever looks for a wrong pepper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import msgspec

from gateway.core.wait import in_task
from gateway.counters.redis import keys
from gateway.counters.redis.wire import encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersRefused, CountersUnavailable

SAID_EACH_S = 10.0
KEPT_S = 60
_KEEPERS = keys.KEEPERS.encode()


@dataclass(frozen=True, slots=True)
class Keeping:
    """What the keeper that spoke last is: its version, and the ids of its peppers, the current one first; and
    how many accounts it found that it cannot read.
    """

    version: str
    peppers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    unreadable: int = 0


class Presence:
    """Says that this keeper is there, and how many accounts it cannot read."""

    def __init__(
        self, wires: Wires, version: str, peppers: tuple[str, ...], unreadable: Callable[[], int] = int
    ) -> None:
        self._wires, self._version, self._peppers = wires, version, peppers
        self._unreadable = unreadable

    async def keep_saying(self) -> None:
        """Say it again and again, until cancelled."""
        while True:
            with suppress(CountersUnavailable, CountersRefused):  # a full server takes nothing
                wire = self._wires.of_key(_KEEPERS)
                raw = msgspec.json.encode(Keeping(self._version, self._peppers, self._unreadable()))
                await in_task(wire.send(encode(b"SET", _KEEPERS, raw, b"EX", b"%d" % KEPT_S)))
            await asyncio.sleep(SAID_EACH_S)


async def heard(wires: Wires) -> Keeping | None:
    """What the keeper that spoke last has said, if one did lately; `CountersRefused` for no right.

    None too for what no keeper of this version says.
    """
    raw = await in_task(wires.of_key(_KEEPERS).send(encode(b"GET", _KEEPERS)))
    try:
        return msgspec.json.decode(raw, type=Keeping) if isinstance(raw, bytes) else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
