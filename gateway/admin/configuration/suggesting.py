"""What was meant by a name that is not there. A few names are compared with some, so it is bounded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

# So many names are looked for, among so many, as long as this. Longer ones are compared with nothing.
SUGGESTED_MAX = 5
CANDIDATES_MAX = 200
CHARS_MAX = 64


def suggestion(name: object, known: Iterable[object]) -> str | None:
    """The nearest of the first names that are known."""
    said = str(name)
    if len(said) > CHARS_MAX:
        return None
    some = (str(each) for each in islice(known, CANDIDATES_MAX) if each)
    near = difflib.get_close_matches(said, [each for each in some if len(each) <= CHARS_MAX], 1)
    return near[0] if near else None
