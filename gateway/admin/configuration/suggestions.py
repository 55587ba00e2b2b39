"""Suggestions for unknown names of configuration files. The number of comparisons is bounded."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice


def near(name: str, known: Collection[str]) -> str:
    """Return a hint with the most similar known word, or with all known words if none is similar."""
    close_matches = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close_matches[0]}?" if close_matches else f"known are {', '.join(known)}"


# Maxima of suggestions: of unknown names, of candidates, and of a name's length.
SUGGESTED_MAX = 5
CANDIDATES_MAX = 200
CHARS_MAX = 64


def suggestion(name: object, known: Iterable[object]) -> str | None:
    """Return the most similar of the first `CANDIDATES_MAX` known names; None if none is similar."""
    text = str(name)
    if len(text) > CHARS_MAX:
        return None
    some = (str(candidate) for candidate in islice(known, CANDIDATES_MAX) if candidate)
    near = difflib.get_close_matches(
        text, [candidate for candidate in some if len(candidate) <= CHARS_MAX], 1
    )
    return near[0] if near else None
