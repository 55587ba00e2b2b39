"""Letters of documents that no font shows: looked for in a thread, while no transaction waits for it.

What is found is remembered, so the transaction that asked finds it when it is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

# Texts with unusual letters that are kept with what is missing of them.
KNOWN_MAX = 16_384


class Glyphs:
    """What is known of texts; `missing` answers letters of a text that no font shows, and may take long."""

    def __init__(self, missing: Callable[[str], str], *, known_max: int = KNOWN_MAX) -> None:
        self._missing = missing
        self._known_max = known_max
        self.known: dict[str, str] = {}

    async def look(self, texts: Iterable[str]) -> None:
        """Look for the letters of some texts, all at once."""
        new = dict.fromkeys(texts)
        missing = await asyncio.to_thread(self._missing, " ".join(new))
        found = {text: "".join(dict.fromkeys(each for each in text if each in missing)) for text in new}
        for oldest in list(islice(self.known, max(0, len(self.known) + len(found) - self._known_max))):
            del self.known[oldest]
        self.known.update(found)
