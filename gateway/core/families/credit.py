"""The answers by which an upstream says that its credential is out of money or quota, and what it sealed.

Pure. An upstream may repeat what a caller wrote. So only an error object of an error status counts, and of its
message only how it begins.

- `ACCOUNT_SIGNS` are the answers about an account, by the family of the call. 402 is one in every family.
- `CALL_SIGNS` are values of a 402 that is about the size of one call: an account with less left than that call
  may cost still pays for others.
- `SEALS` are members of a body that a provider sealed for itself, by who opens them besides the account that made
  them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from gateway.core.families.registry import ALL

CREDIT_STATUS: Final = 402
# A longer answer is no such error; of a 402 nothing is read then.
ERROR_BYTES_MAX: Final = 16 * 1024

ACCOUNT, CALL = "account", "call"


class _Sign(NamedTuple):
    """A status, and the texts that a member of its error object is or, of a `message`, begins with."""

    status: int
    member: str
    texts: tuple[str, ...]


# The sentence in which a team's name stands is the first one.
_XAI_TEAM: Final = re.compile(
    r"Your team\b[^.]*\b(?:used all available credits|reached its monthly spending limit)"
)
_XAI: Final = "Your newly created team doesn't have any credits"
_TEXT: Final = ""  # the error is a text itself

_ANY: Final = tuple(_Sign(429, member, ("insufficient_quota",)) for member in ("code", "type"))
# Recorded in the Gemini API, also behind its OpenAI paths: discuss.ai.google.dev/t/170539, 2026-06-09.
_GEMINI: Final = (_Sign(429, "message", ("Your prepayment credits are depleted",)),)
# z.ai, on its OpenAI paths (zai-org/GLM-5#148, 2026-09-11) and Anthropic's (zai-org/feedback#789, 2026-09-22).
_ZAI: Final = tuple(_Sign(429, member, ("1113",)) for member in ("code", "type"))
ACCOUNT_SIGNS: Final[Mapping[str, tuple[_Sign, ...]]] = {
    "openai": (
        *_ANY, *_GEMINI, *_ZAI,
        # OpenAI: help.openai.com/en/articles/6614457, 2026-11-30; the last one recorded 2025-06-17.
        _Sign(429, "code", (
            "credit_balance_exhausted", "organization_usage_limit_exceeded", "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded", "billing_not_active",
        )),
        _Sign(400, "code", ("billing_hard_limit_reached",)),
        # Groq: console.groq.com/docs/spend-limits, 2026-11-30.
        _Sign(400, "code", ("blocked_api_access",)),
        # Moonshot: forum.moonshot.ai/t/111; recorded 2025-12-29.
        _Sign(429, "type", ("exceeded_current_quota_error",)),
        # xAI: recorded as 429 on 2026-02-23, as 403 on 2026-08-09.
        _Sign(403, _TEXT, (_XAI,)), _Sign(429, _TEXT, (_XAI,)),
    ),
    "anthropic": (
        *_ANY, *_ZAI,
        # platform.claude.com, errors and rate limits, 2026-11-30; the first one recorded 2026-04-10.
        _Sign(400, "message", (
            "Your credit balance is too low", "You have reached your specified API usage limits",
            "You have reached your specified workspace API usage limits",
        )),
        _Sign(429, "details.error_code", ("enforced_spend_limit_reached",)),
    ),
    "gemini": (*_ANY, *_GEMINI),
}  # fmt: skip
# Besides 402, the statuses whose bodies have to be read.
_STATUSES: Final[Mapping[str, frozenset[int]]] = {
    one.name: frozenset(sign.status for sign in ACCOUNT_SIGNS.get(one.name, _ANY)) | {CREDIT_STATUS}
    for one in ALL
}
CREDIT_STATUSES: Final = frozenset().union(*_STATUSES.values())

# OpenRouter: beginnings of messages recorded 2025-03-21 to 2026-08-24; the others of openrouter.ai/docs, errors and
# limits, 2026-11-30. It holds the whole maximum of a call against what is left.
CALL_SIGNS: Final = (
    "This request requires more credits, or fewer max_tokens", "More credits are required to run this request",
    "Prompt tokens limit exceeded",
)  # fmt: skip
_CALL_WORDS: Final = frozenset(
    {"in_flight_budget_exhausted", "openrouter_in_flight_budget", "weight_exceeds_budget"}
)
_decode = msgspec.json.Decoder().decode


def credit_statuses(family: str) -> frozenset[int]:
    """Return the statuses by which an upstream of a family may say that it is out of money or quota."""
    return _STATUSES[family]


def read_credit(family: str, status: int, body: bytes) -> str:
    """Return whether an error answer says that the upstream's `ACCOUNT` is out of money, or only for this `CALL`.

    It is "" if the answer is another error. `body` is the whole body, or empty if that is not readable.
    """
    error = _error_of(body)
    if status == CREDIT_STATUS:
        return CALL if _is_of_call(error) else ACCOUNT
    signs = ACCOUNT_SIGNS.get(family, _ANY)
    found = any(_shows(sign, error) for sign in signs if sign.status == status)
    return ACCOUNT if found or (family == "openai" and _is_of_team(status, error)) else ""


def _error_of(body: bytes) -> object:
    """Return the member `error` of a JSON object, or of the only one in a list; None without one."""
    try:
        document = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    return document.get("error") if isinstance(document, dict) else None


def _shows(sign: _Sign, error: object) -> bool:
    value = error
    for name in sign.member.split(".") if sign.member else ():
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        return False
    return value.startswith(sign.texts) if sign.member in {"message", _TEXT} else value in sign.texts


def _is_of_team(status: int, error: object) -> bool:
    return status in {403, 429} and isinstance(error, str) and _XAI_TEAM.match(error) is not None


def _is_of_call(error: object) -> bool:
    if not isinstance(error, dict):
        return False
    message, metadata = error.get("message"), error.get("metadata")
    values = [*error.values(), *(metadata.values() if isinstance(metadata, dict) else ())]
    of_size = isinstance(message, str) and message.startswith(CALL_SIGNS)
    return of_size or any(isinstance(value, str) and value in _CALL_WORDS for value in values)


# What a provider sealed: who opens it besides the account whose answer had it.
NOBODY, CLAUDE = "nobody", "claude"
SEALS: Final[Mapping[str, Mapping[str, str]]] = {
    # Sealed for an organization: openai 3.51.0 has it in reasoning and compaction items. Another account answers
    # 400 invalid_encrypted_content (Wei-Shaw/sub2api#2863 and #3038, 2026-06-04). The others are what OpenRouter
    # and Gemini put beside a message of a chat; nobody documents that another account opens them.
    "openai": dict.fromkeys(
        ("encrypted_content", "reasoning.encrypted", "signature", "thought_signature"), NOBODY
    ),
    # "`signature` values are compatible across platforms (the Claude API, Amazon Bedrock, and Google Cloud).
    # Values generated on one platform work on another": platform.claude.com/docs, extended thinking, 2026-11-30.
    # That is about Claude alone, and says nothing of the others (anthropic 2.10.0).
    "anthropic": {"signature": CLAUDE}
    | dict.fromkeys(
        ("redacted_thinking", "encrypted_content", "encrypted_index", "encrypted_stdout", "fallback_credit_token"),
        NOBODY,
    ),
    # Bound to the account that made it: Wei-Shaw/sub2api PR393, 2026-01-25. Google documents nothing of it.
    "gemini": dict.fromkeys(("thoughtSignature", "thought_signature", "signature"), NOBODY),
    # Converse and InvokeModel; botocore 1.44.5.
    "bedrock": {"signature": CLAUDE}
    | dict.fromkeys(("redactedContent", "redacted_thinking", "encrypted_content"), NOBODY),
}  # fmt: skip


def _seal_pattern(names: Mapping[str, str]) -> re.Pattern[bytes]:
    """Return a pattern of members with a text, and of texts that are a type.

    A quote inside of a text has a backslash before it, so no text of a body matches.
    """
    either = b"|".join(re.escape(name.encode()) for name in names)
    return re.compile(rb'(?<!\\)"(?:(' + either + rb')"\s*+:\s*+"[^"]|type"\s*+:\s*+"(' + either + rb')")')


_PATTERNS: Final = {family: _seal_pattern(names) for family, names in SEALS.items()}


def opens_seals(family: str, body: bytes, models: tuple[str, str]) -> bool:
    """Return whether another account can take a body that its first account may have sealed parts of.

    `models` are the names of the model at the first account, and at the other one.
    """
    pattern = _PATTERNS.get(family)
    if pattern is None:
        return True
    openers = {SEALS[family][(found[1] or found[2]).decode()] for found in pattern.finditer(body)}
    return not openers or (openers == {CLAUDE} and all(CLAUDE in model.lower() for model in models))
