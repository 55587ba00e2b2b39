"""What is served, and what it costs, as the keeper wrote it for everybody: catalogue, weights and prices.

All are read whenever others are told of, and seldom besides; twice a second where nothing is told, or while
not all is verified. What is older than what is known counts only once it stands in a Redis that was verified:
a server that was replaced may lack the latest for a while. What cannot be read, or was written by a newer
keeper, is told once, and what was read before stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from gateway.core.model import PARTITIONS, Service
from gateway.core.wait import in_task
from gateway.counters.admission.changes import Changes
from gateway.counters.admission.prices import Prices
from gateway.counters.admission.stored import UNREADABLE, decode_catalogue, version_of
from gateway.counters.admission.weighing import Weighing
from gateway.counters.redis import keys
from gateway.counters.redis.verified import ask_word, says_verified
from gateway.counters.redis.wire import encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersRefused, CountersUnavailable

CATALOGUE_S, TOLD_CATALOGUE_S = 0.5, 20.0
FIRST_CATALOGUE_S = 0.02
_NAME = keys.CATALOGUE.encode()


class Catalogue:
    """Services, weights and prices of one worker. `version` is the catalogue's, 0 before the first read."""

    def __init__(
        self, wires: Wires, changes: Changes, clock: Callable[[], float], log: Callable[..., None]
    ) -> None:
        self.version = 0
        self.prices = Prices(wires, log)
        self.weighing = Weighing()
        # The partitions whose very Redis no keeper has compared with PostgreSQL, as of the last look.
        self.unverified = frozenset(range(PARTITIONS))
        self._wires, self._changes, self._clock, self._log = wires, changes, clock, log
        self._raw = b""
        # Why the last one that was looked at cannot be read, empty where it can.
        self._told = ""
        self._services: dict[str, Service] = {}

    @property
    def verified(self) -> bool:
        """Whether a keeper has compared all there is of this very Redis."""
        return not self.unverified

    @property
    def unread(self) -> list[tuple[str, int]]:
        """Of the catalogue and of prices, whether those that are there cannot be read: 1 or 0."""
        return [("catalogue", int(self._told != "")), ("prices", int(self.prices.unread))]

    def service(self, key: str) -> Service | None:
        """The service of a key, None if there is none; CountersUnavailable before the first catalogue."""
        return self.catalogue().get(key)

    def catalogue(self) -> Mapping[str, Service]:
        """Every service by its key; CountersUnavailable before the first catalogue."""
        if not self.version:
            raise CountersUnavailable
        return self._services

    async def refresh(self) -> None:
        """Read the catalogue again; one that is older than what is known waits for the next look.

        One that cannot be read leaves what was read before.
        """
        raw = await self._wires.of_key(_NAME).send(encode(b"GET", _NAME))
        if not isinstance(raw, bytes):
            raise CountersUnavailable
        try:
            if not self._is_older(raw):
                self._load(raw)
        except UNREADABLE as error:
            self._tell(str(error))

    async def first_catalogue(self, within_s: float) -> bool:
        """Wait, bounded, until there is a catalogue; called before anything is served."""
        give_up = self._clock() + within_s
        while not self.version and self._clock() < give_up:
            await self._read_catalogue()
            await asyncio.sleep(FIRST_CATALOGUE_S)
        return self.version > 0

    async def keep_fresh(self) -> None:
        """Read catalogue and prices whenever others are told of, and now and then; else they stay."""
        while True:
            is_read = await self._read_catalogue()
            told = is_read and self.verified and self._changes.hears
            await self._changes.others(TOLD_CATALOGUE_S if told else CATALOGUE_S)

    async def _read_catalogue(self) -> bool:
        """Whether there was one, and prices could be asked for."""
        words, is_read = [(wire, ask_word(wire)) for wire in self._wires.wires], False
        with suppress(CountersUnavailable):
            try:
                raw = await in_task(self._wires.of_key(_NAME).send(encode(b"GET", _NAME), upkeep=True))
                if isinstance(raw, bytes) and (not self._is_older(raw) or await self._may_be_older()):
                    self._load(raw)
                    is_read = True
            except (CountersRefused, *UNREADABLE) as error:
                self._tell(str(error))
        verified = [wire for wire, word in words if await says_verified(wire, word)]
        self.unverified = frozenset(range(PARTITIONS)).difference(*(one.partitions for one in verified))
        try:
            await self.prices.refresh()
        except CountersUnavailable:
            return False
        return is_read

    def _is_older(self, raw: bytes) -> bool:
        return raw != self._raw and version_of(raw) < self.version

    async def _may_be_older(self) -> bool:
        wire = self._wires.of_key(_NAME)
        return await says_verified(wire, ask_word(wire))

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            self._log("catalogue cannot be read", error=why, in_force=self.version, level="error")

    def _load(self, raw: bytes) -> None:
        if raw == self._raw:
            self._told = ""
            return
        found = decode_catalogue(raw)
        self._services = found.services
        self.weighing.load(found.weights)
        self.version = found.version
        self._raw, self._told = raw, ""
