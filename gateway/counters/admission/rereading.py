"""What is known of callers is read again after a while, though nothing was told: many at once, behind calls.

What is there as it was holds on. What is another counts as changed, so whoever calls next looks it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Final

from gateway.core.in_use import InUse
from gateway.core.wait import run_in_task
from gateway.counters.admission.changes import Changes
from gateway.counters.admission.known import Heard, Known
from gateway.counters.admission.terms import Terms
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable

# From when on what was read is read again.
AGAIN_S: Final = 30.0
# So many callers at once, so often; and while so many wait, another one is noted later.
AT_ONCE_MAX: Final = 128
EACH_S: Final = 0.05
WAITING_MAX: Final = 16_384


class Rereading:
    """Of one worker: callers who are `due`, by their digests, and the one `task` that reads them.

    `changed` is told the name of each key that holds something else than is known.
    """

    def __init__(
        self,
        changes: Changes,
        changed: Callable[[bytes], None],
        known: InUse[str, Known],
        terms: InUse[int, Terms],
        clock: Callable[[], float],
    ) -> None:
        self.due: dict[str, None] = {}
        self.task: asyncio.Task[None] | None = None
        self._changes, self._changed, self._clock = changes, changed, clock
        self._known, self._terms = known, terms

    def note(self, digest: str) -> None:
        """A caller is to be read again, with others who come to be due within a moment."""
        if digest in self.due or len(self.due) >= WAITING_MAX:
            return
        self.due[digest] = None
        if self.task is None or self.task.done():
            self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while self.due:
            await asyncio.sleep(EACH_S)
            some = list(islice(self.due, AT_ONCE_MAX))
            for digest in some:
                del self.due[digest]
            await run_in_task(self._compare(some))

    async def _compare(self, digests: list[str]) -> None:
        """Ask for what is known of these, and for their terms, where that was read long ago."""
        asked_at = self._clock()
        asked: dict[bytes, Heard] = {}
        for digest in digests:
            known = self._known.find(digest)
            if known is None:
                continue
            if known.read_at + AGAIN_S < asked_at:
                asked[keys.identity(digest).encode()] = known
            organization_id = known.caller.organization_id
            terms = self._terms.find(organization_id)
            if terms is not None and terms.read_at + AGAIN_S < asked_at:
                asked[keys.organization_terms(organization_id).encode()] = terms
        readings = self._changes.read_together(list(asked))
        for (name, kept), reading in zip(asked.items(), readings, strict=True):
            try:
                reply, since = await reading.answer()
            except CountersUnavailable:
                continue  # it holds for no longer than it did
            if kept.raw == (reply or b""):
                kept.read_at, kept.since = asked_at, since
            else:
                self._changed(name)
