"""Characters that nobody sees, or that turn the text around them: refused in names, shown escaped elsewhere.

A name with one reads as another name. What callers once called their users may hold any: it is kept as it is,
and escaped where people read it. Sources: Unicode's Default_Ignorable_Code_Point and Bidi_Control; controls
but tab and line breaks.
"""

from __future__ import annotations

import json
import re

HIDDEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u2800\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)

_HIDDEN = re.compile(rf"[{HIDDEN}]|\r(?!\n)")


def hidden_in(text: str) -> str:
    """Name the first hidden character, such as `U+202E`; empty where there is none."""
    found = _HIDDEN.search(text)
    return f"U+{ord(found[0]):04X}" if found else ""


def visible(text: str) -> str:
    r"""The text with each hidden character escaped, such as `\u202e`."""
    return _HIDDEN.sub(_escaped, text)


def visible_json(text: str) -> str:
    """JSON text with each hidden character escaped, which means the same."""
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
