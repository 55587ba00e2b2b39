"""How many tokens a request asks with, by a model's own tokenizer. Used where nobody reports it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

PROMPT_BYTES_MAX = 1 << 20  # longer ones are counted by what was learned: a tokenizer would hold up others
MESSAGE_TOKENS = 4  # around each message: its role, its beginning and its end
ANSWER_TOKENS = 3  # what an answer is begun with
_SPOKEN = frozenset(
    {"content", "text", "input", "prompt", "instructions", "refusal", "name", "arguments", "description"}
)

# Tokens of a text; and the tokenizer of a model, None where it is not known.
CountTokens = Callable[[str], int]
Tokenizer = Callable[[str], CountTokens | None]


def prompt_tokens(body: bytes, tokens_of: CountTokens) -> int | None:
    """Count a request of one of OpenAI's APIs; None where it is too long or not what it should be."""
    if len(body) > PROMPT_BYTES_MAX:
        return None
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(asked, dict):
        return None
    texts: list[str] = []
    tokens = _gather(asked, texts, spoken=False)
    messages = asked.get("messages")
    if isinstance(messages, list):
        tokens += MESSAGE_TOKENS * len(messages) + ANSWER_TOKENS
    return tokens + sum(map(tokens_of, texts))


def _gather(value: object, texts: list[str], *, spoken: bool) -> int:
    """Collect what is said to the model, and count what is given as tokens already."""
    if isinstance(value, str):
        if spoken:
            texts.append(value)
    elif isinstance(value, list):
        return sum(_gather(item, texts, spoken=spoken) for item in value)
    elif isinstance(value, dict):
        return sum(_gather(item, texts, spoken=name in _SPOKEN) for name, item in value.items())
    elif spoken and isinstance(value, int) and not isinstance(value, bool):
        return 1
    return 0
