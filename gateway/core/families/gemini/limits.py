"""When to try again, as Gemini says it in the body of a 429: google.rpc.RetryInfo (AIP-193)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

REFUSED = 429
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")  # a Duration in JSON


class _Detail(msgspec.Struct, rename={"retry_delay": "retryDelay"}):
    retry_delay: Any = None


class _Error(msgspec.Struct):
    details: list[_Detail] | None = None


class _Refusal(msgspec.Struct):
    error: _Error


_refusals = msgspec.json.Decoder(_Refusal | list[_Refusal]).decode  # a stream of no events is a list


def retry_told(document: bytes) -> float:
    """Seconds after which to try again; 0 where a refusal says nothing of it."""
    try:
        read = _refusals(document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0.0
    for one in read if isinstance(read, list) else [read]:
        for detail in one.error.details or ():
            told = _SECONDS.fullmatch(detail.retry_delay) if isinstance(detail.retry_delay, str) else None
            if told is not None:
                return float(told[1])
    return 0.0
