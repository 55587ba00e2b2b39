"""Which letters the fonts of documents lack, as far as they were asked before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice

# Texts with unusual letters whose missing letters are cached.
KNOWN_MAX = 16_384


class FontCoverage:
    """A cache of the letters of texts that no font can show; `missing` computes them and may be slow."""

    def __init__(self, missing: Callable[[str], str], *, known_max: int = KNOWN_MAX) -> None:
        self._missing = missing
        self._known_max = known_max
        self.known: dict[str, str] = {}

    async def look(self, texts: Iterable[str]) -> None:
        new = dict.fromkeys(texts)
        missing = await asyncio.to_thread(self._missing, " ".join(new))
        gaps = {text: "".join(dict.fromkeys(letter for letter in text if letter in missing)) for text in new}
        for oldest in list(islice(self.known, max(0, len(self.known) + len(gaps) - self._known_max))):
            del self.known[oldest]
        self.known.update(gaps)
