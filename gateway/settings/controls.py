"""Control characters in settings: refused, wherever the value comes from.

A line break at the end of a value is invisible: the value equals no choice, no header can carry it, and a
pepper with one is another pepper. So it is refused. `read_secret` alone drops those at the end of a file, which
editors write. No value is shown: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gateway.errors import SettingError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_RIGHT = "write it with `printf %s` in place of `echo`, and in YAML behind |- in place of |"


def refuse_controls(place: str, value: object, *, lines: bool = False) -> None:
    """Raise `SettingError`, which names `place`, if a text has a control character.

    With `lines` it may have tabs and line breaks.
    """
    if not isinstance(value, str):
        return
    control = (_CONTROL_IN_LINES if lines else _CONTROL).search(value)
    if control is None:
        return
    if not value[control.start() :].strip("\r\n"):
        raise SettingError(f"{place} ends with a line break: {_RIGHT}")
    raise SettingError(f"{place} has a control character, U+{ord(control[0]):04X}: expected none")


def texts_of(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Return (place, text) of each text in a document, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts_of(key, place)
            yield from texts_of(item, f"{place}: {key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from texts_of(item, f"{place}[{index}]")
    elif isinstance(value, str):
        yield place, value
