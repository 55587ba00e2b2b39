"""JSON that somebody else has written: read whole, or refused by `ValueError` in one line."""

from __future__ import annotations

import json
import sys
from typing import Any


def read_json(text: str | bytes) -> Any:
    """What a document says; `ValueError` where it is none, or nests or counts further than is read."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _whole(digits: str) -> int:
    most = sys.get_int_max_str_digits()
    if len(digits) > most > 0:
        raise ValueError(f"it has a number of more than {most} digits")
    return int(digits)
