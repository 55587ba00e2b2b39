"""Tags of calls: the members of a call's metadata by which its organization selects, groups and limits. Pure.

An organization declares their names. An API key may fix a value; a caller's metadata has the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

# Most names that an organization declares; characters of a name, and of a value.
TAGS_MAX: Final = 8
CHARACTERS_MAX: Final = 64
NAME: Final = rf"[A-Za-z0-9_.-]{{1,{CHARACTERS_MAX}}}"
# Names that FOCUS' `Tags` has for facts of every charge: no tag has these.
RESERVED: Final = frozenset({"model", "project", "user"})
# How reports, and budgets that give each value an amount, name a tag.
TAG: Final = "tag:"
# The header field with a call's metadata.
METADATA_FIELD: Final = "x-tollkeeper-metadata"
GROUP: Final = re.compile(TAG + NAME, re.ASCII)
_NAME: Final = re.compile(NAME, re.ASCII)
# Control characters, and those of Unicode that end a line or change its direction (Bidi_Control); halves of
# characters, which mypyc takes in no literal.
_UNFIT: Final = re.compile(
    f"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069{chr(0xD800)}-{chr(0xDFFF)}]"
)

# Names with values.
Tags = tuple[tuple[str, str], ...]


def read_value(value: object) -> str:
    """Return a member of metadata as the value of a tag, "" if it is none.

    Numbers and booleans are as JSON; a whole number has no fraction and no exponent, so each has one spelling. A number
    with a fraction or an exponent is the shortest one that its double stands for: 1e30 is 1 and thirty zeros.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(Decimal(repr(value)))
    if isinstance(value, int) and abs(value) >= 10**CHARACTERS_MAX:
        return ""  # it is too long, and costs time to write
    if isinstance(value, (bool, int, float)):
        value = json.dumps(value)
    if not isinstance(value, str) or len(value) > CHARACTERS_MAX or _UNFIT.search(value):
        return ""
    return value


def read_values(members: Mapping[str, object]) -> Tags:
    """Return the members of a call's metadata that can be tags, with their values."""
    return tuple([
        (name, text)
        for name, value in members.items()
        if _NAME.fullmatch(name) and (text := read_value(value))
    ])  # fmt: skip


def tags_of(names: Iterable[str], fixed: Tags, stated: Tags) -> Tags:
    """Return the tags of a call with these `names`: a key's `fixed` values go before those `stated`."""
    values = dict((*stated, *fixed))
    return tuple([(name, values[name]) for name in sorted(names) if name in values])


def tag_in(group: str) -> str:
    """Return the name in `tag:NAME`; empty if the text is of another kind."""
    return group[len(TAG) :] if group.startswith(TAG) else ""
