"""Contents that a provider keeps for money by time: for how long, and what of that is paid. Pure.

A provider bills them by tokens and hours, from when they are made to when they expire. So a call that makes
or extends them is charged for all of that time. `KeptContents` is stored with the object's owner, so that a
longer time costs what it adds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from gateway.errors import InvalidRequest

# What providers keep contents for if a call states no time, and the longest time that a call may state.
KEPT_S: Final = 3_600
KEPT_S_MAX: Final = 366 * 86_400
_HOUR_S: Final = 3_600
_DURATION = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?s")  # a Duration in JSON
_TIMESTAMP = re.compile(  # RFC 3339
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9}|)([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


class KeptContents(msgspec.Struct):
    """Contents as they are stored: their model, their tokens, and the Unix time until which they are paid."""

    organization_id: int
    model: str
    tokens: int
    until_s: int


@dataclass(slots=True)
class Keeping:
    """What a call asks of contents: to be kept until `until_s` (Unix time), for `seconds` not paid before.

    `tokens` is their size, 0 if only the call's answer says it.
    """

    until_s: int
    seconds: int
    tokens: int = 0

    def token_hours(self, read: int) -> int:
        """Return the tokens times the hours, rounded up; `read` are tokens if the size is not known."""
        return max(1, -(-(self.tokens or read) * self.seconds // _HOUR_S))


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(KeptContents).decode


def write_kept(kept: KeptContents) -> bytes:
    return _encode(kept)


def read_kept(raw: bytes | None) -> KeptContents | None:
    """Return decoded contents; None without `raw`, or if these bytes are none."""
    if raw is None:
        return None
    try:
        return _decode(raw)
    except msgspec.MsgspecError:
        return None


def words_of(now_s: int, kept: KeptContents | None) -> dict[str, str]:
    """Return what the reader of a call needs to know: the time, and contents that it extends, if known."""
    words = {"now": str(now_s)}
    if kept is not None:
        words |= {"kept_model": kept.model, "kept_tokens": str(kept.tokens), "kept_until": str(kept.until_s)}
    return words


def kept_until(document: Mapping[str, Any], now: str | None) -> int | None:
    """Return the Unix time until which a body wants contents to be kept, rounded up; None if it states none.

    Raise `InvalidRequest` for a time that is unreadable, not in the future or longer than `KEPT_S_MAX`.
    """
    stated = {
        name: document[name] for name in ("ttl", "expireTime", "expire_time")
        if document.get(name) is not None
    }  # fmt: skip
    if now is None:
        raise InvalidRequest("Contents are kept by a call of their own.", param="ttl")
    if not stated:
        return None
    (name, value), *others = stated.items()
    if others:
        raise InvalidRequest(f"{name} and {others[0][0]} are the same: state one.", param=others[0][0])
    now_s = int(now)
    until_s = _after(value, now_s) if name == "ttl" else _at(value)
    if until_s is None:
        form = '"3600s"' if name == "ttl" else '"2026-01-01T00:00:00Z"'
        raise InvalidRequest(f"{name} must be a text such as {form}.", param=name)
    if not now_s < until_s <= now_s + KEPT_S_MAX:
        raise InvalidRequest(f"{name} must be in the future, and within {KEPT_S_MAX} s.", param=name)
    return until_s


def _after(value: object, now_s: int) -> int | None:
    if not isinstance(value, str) or _DURATION.fullmatch(value) is None:
        return None
    whole, _, fraction = value[:-1].partition(".")
    return now_s + int(whole) + (fraction.strip("0") != "")


def _at(value: object) -> int | None:
    found = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    try:
        whole = datetime.fromisoformat(found[1] + found[3].upper()).timestamp()
    except (ValueError, OverflowError):
        return None
    return int(whole) + (found[2].strip(".0") != "")
