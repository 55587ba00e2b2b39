"""Members of a body that a provider sealed for itself, by who opens them besides the account that made them. Pure.

Each family lists its own in its record, with a source where another account may open them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

# Who opens a sealed member besides its account.
NOBODY, CLAUDE = "nobody", "claude"


def can_open(seals: Mapping[str, str], body: bytes, models: tuple[str, str]) -> bool:
    """Return whether another account can take a body that its first account may have sealed parts of.

    `seals` are those of its family. `models` are the names of the model at the first account, and at the other.
    """
    if not seals:
        return True
    openers = {seals[(match[1] or match[2]).decode()] for match in _pattern(tuple(seals)).finditer(body)}
    return not openers or (openers == {CLAUDE} and all(CLAUDE in model.lower() for model in models))


@lru_cache(16)
def _pattern(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return the pattern of members with a text and one of these names, and of types with one of them.

    A quote inside of a text has a backslash before it, so no text of a body matches.
    """
    either = b"|".join([re.escape(name.encode()) for name in names])
    return re.compile(rb'(?<!\\)"(?:(' + either + rb')"\s*+:\s*+"[^"]|type"\s*+:\s*+"(' + either + rb')")')
