"""Origins of pages that may call the data plane: the value of one setting."""

from __future__ import annotations

import re

ORIGINS_MAX = 200
ORIGINS_WANTED = f"* or at most {ORIGINS_MAX} origins such as https://app.example.com, with commas between"
# Scheme, host and optionally a port, as browsers send them: RFC 6454, 6.2.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_USUAL = {"http": ":80", "https": ":443"}


def origins_of(text: str) -> frozenset[bytes]:
    """Return the origins in a comma-separated list. Raise `ValueError`, which names the first invalid one."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if words == ["*"]:
        return frozenset({b"*"})
    if len(words) > ORIGINS_MAX:
        raise ValueError(f"there are {len(words)}")
    for word in words:
        if not _ORIGIN.fullmatch(word):
            raise ValueError(f"{word!r} is no origin")
        scheme = word.partition(":")[0]
        if word.endswith(_USUAL.get(scheme, "/")):
            raise ValueError(f"{word!r} has the port that browsers leave out")
    return frozenset(word.encode() for word in words)
