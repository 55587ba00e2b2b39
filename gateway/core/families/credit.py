"""Answers by which an upstream says that its account is out of money or quota. Pure.

An upstream may repeat texts of a caller. So only the error object of an error status counts, and a message only by
its beginning and without an address before a reason. Each family lists its signs in its record; 402 is one of each
that has signs. Where a caller chooses path and body, its 402 is about the call alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

import msgspec

PAYMENT_REQUIRED: Final = 402
# The statuses whose bodies are read, of all families.
CREDIT_STATUSES: Final = frozenset({400, PAYMENT_REQUIRED, 403, 429})
# A longer answer is no such error; a longer 402 is one.
ERROR_BYTES_MAX: Final = 16 * 1024

# Whether an answer is about the account, or about the size of one call.
ACCOUNT, CALL = "account", "call"


class CreditSign(NamedTuple):
    """A status, the path of a text in the error, and the pattern of the whole text; an empty path is the error.

    The `subject` is the account, or the call alone.
    """

    status: int
    path: str
    pattern: re.Pattern[str]
    subject: str = ACCOUNT


def begins(status: int, path: str, *texts: str) -> CreditSign:
    """Return the sign of a text that begins with one of `texts`, which are patterns, and has no ": " behind it.

    Vendors' validation says "member: reason", and a caller names the member.
    """
    return CreditSign(status, path, re.compile(rf"(?:{'|'.join(texts)})(?:(?!:\s).)*", re.DOTALL))


def equals(status: int, paths: str, *words: str) -> tuple[CreditSign, ...]:
    """Return the signs of a text at one of these paths, separated by spaces, that is one of `words`."""
    return tuple(CreditSign(status, path, re.compile("|".join(words))) for path in paths.split())


OF_ALL: Final = equals(429, "code type", "insufficient_quota")
# Recorded at the Gemini API, also on its OpenAI paths: discuss.ai.google.dev/t/170539, 2026-06-09.
PREPAID: Final = begins(429, "message", "Your prepayment credits are depleted")
# z.ai: on OpenAI's paths zai-org/GLM-5#148, 2026-09-11; on those of Claude zai-org/feedback#789, 2026-09-22. It has no
# package for the model of the call; with the same key free models answered (anomalyco/opencode#12671, 2026-02-13).
RECHARGE: Final = tuple(sign._replace(subject=CALL) for sign in equals(429, "code type", "1113"))

# OpenRouter, which checks the maximum of a call against its balance: beginnings of messages recorded from 2025-03-21 to
# 2026-08-24, and words of openrouter.ai/docs, errors and limits, 2026-11-30. Smaller calls may still be paid.
_CALL_MESSAGES: Final = (
    "This request requires more credits, or fewer max_tokens", "More credits are required to run this request",
    "Prompt tokens limit exceeded",
)  # fmt: skip
_CALL_WORDS: Final = frozenset(
    {"in_flight_budget_exhausted", "openrouter_in_flight_budget", "weight_exceeds_budget"}
)
_decode = msgspec.json.Decoder().decode


def may_show_credit(signs: Iterable[CreditSign], status: int) -> bool:
    """Return whether an answer with this status may be one of `signs`."""
    return status == PAYMENT_REQUIRED or any(sign.status == status for sign in signs)


def read_credit(signs: Collection[CreditSign], status: int, body: bytes) -> str:
    """Return whether an error answer is about its `ACCOUNT` or only about its `CALL`; "" for another error.

    `signs` are those of its family. `body` is the whole body, or empty if that is not readable.
    """
    error = _read_error(body)
    if status == PAYMENT_REQUIRED:
        return ACCOUNT if signs and not _is_of_call(error) else CALL
    return next((sign.subject for sign in signs if sign.status == status and _has(error, sign)), "")


def _read_error(body: bytes) -> object:
    """Return the member `error` of a JSON object, or of the only object in a list; None without it."""
    try:
        document = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    return document.get("error") if isinstance(document, dict) else None


def _has(error: object, sign: CreditSign) -> bool:
    value, path = error, sign.path.split(".") if sign.path else ()
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return isinstance(value, str) and sign.pattern.fullmatch(value) is not None


def _is_of_call(error: object) -> bool:
    """Return whether an error is about one call that is too large, and not about the account."""
    if not isinstance(error, dict):
        return False
    message, metadata = error.get("message"), error.get("metadata")
    values = [*error.values(), *(metadata.values() if isinstance(metadata, dict) else ())]
    is_large = isinstance(message, str) and message.startswith(_CALL_MESSAGES)
    return is_large or any(isinstance(value, str) and value in _CALL_WORDS for value in values)
