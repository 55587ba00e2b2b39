"""The time for which a call has contents stored that their upstream bills by the hour. Pure.

An upstream bills their tokens from when they are made to when they expire. So a call that makes or extends
them is charged for all of that time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gateway.core.billing.vector import CACHE_HOUR
from gateway.errors import InvalidRequest

# The time of contents whose call states none, and the longest time that a call may state.
STORAGE_S: Final = 3_600
STORAGE_S_MAX: Final = 366 * 86_400
# The most tokens of contents with a file that a call only names: the context of models that store any.
STORAGE_TOKENS_MAX: Final = 1_048_576
# What upstreams bill for stored objects, most of it later, by unit, in words: see `ObjectRules.collections`.
STORED_UNITS: Final = {
    CACHE_HOUR: "an hour of stored contents (cache_hour)",
    "gigabyte_day": "a gigabyte in a vector store for a day (gigabyte_day)",
    "file_search": "a search of a vector store (file_search)",
    "container": "a session of a container (container)",
    "fine_tuning_job": "the training of a model (fine_tuning_job)",
    "eval_run": "a run of an eval (eval_run)",
    "indexed_file": "a file that a store of files indexes (indexed_file)",
}  # fmt: skip
_HOUR_S: Final = 3_600
_DURATION = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?s")  # a Duration in JSON
_TIMESTAMP = re.compile(  # RFC 3339
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9}|)([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_NAMES: Final = ("ttl", "expireTime", "expire_time")


@dataclass(frozen=True, slots=True)
class StorageTime:
    """The end of contents, `until_s` (Unix time), and the `seconds` before it that no earlier call has paid.

    `tokens` is their size, 0 if only the call's answer says it.
    """

    until_s: int
    seconds: int
    tokens: int = 0

    def token_hours(self, read: int) -> int:
        """Return the tokens times the hours, rounded up; `read` are tokens if the size is not known."""
        return max(1, -(-(self.tokens or read) * self.seconds // _HOUR_S))


def storage_of(document: Mapping[str, Any], words: Mapping[str, str], usual_s: int = 0) -> StorageTime | None:
    """Return the storage that a body asks for; None if an earlier call has paid for all of it.

    `words` have the present time (`now`), and the words of the `CachePayment` if there is one. A body that
    states no time asks for `usual_s`. Raise `InvalidRequest` for a time that is unreadable, not in the future or
    longer than `STORAGE_S_MAX`.
    """
    if "now" not in words:
        raise InvalidRequest("Contents are stored by a call of their own.", param="ttl")
    now_s, paid_s = int(words["now"]), int(words.get("paid_until", words["now"]))
    until_s = _end(document, now_s)
    until_s = now_s + usual_s if until_s is None else until_s
    if until_s <= paid_s:
        return None
    return StorageTime(until_s, until_s - paid_s, int(words.get("paid_tokens", 0)))


def _end(document: Mapping[str, Any], now_s: int) -> int | None:
    """Return the Unix time that a body states, rounded up to a second; None if it states none."""
    stated = [name for name in _NAMES if document.get(name) is not None]
    if not stated:
        return None
    name, *others = stated
    if others:
        raise InvalidRequest(f"{name} and {others[0]} say the same: state one.", param=others[0])
    until_s = _after(document[name], now_s) if name == "ttl" else _read_timestamp(document[name])
    if until_s is None:
        form = '"3600s"' if name == "ttl" else '"2027-01-01T00:00:00Z"'
        raise InvalidRequest(f"{name} must be a text such as {form}.", param=name)
    if not now_s < until_s <= now_s + STORAGE_S_MAX:
        raise InvalidRequest(f"{name} must be in the future, and within {STORAGE_S_MAX} s.", param=name)
    return until_s


def _after(value: object, now_s: int) -> int | None:
    if not isinstance(value, str) or _DURATION.fullmatch(value) is None:
        return None
    whole, _, fraction = value[:-1].partition(".")
    return now_s + int(whole) + (fraction.strip("0") != "")


def _read_timestamp(value: object) -> int | None:
    """Return a time stamp as Unix seconds, rounded up; None if it is none."""
    match = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    try:
        whole = datetime.fromisoformat(match[1] + match[3].upper()).timestamp()
    except (ValueError, OverflowError):
        return None
    return int(whole) + (match[2].strip(".0") != "")
