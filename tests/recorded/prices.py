"""What the models of the recorded answers cost, written down from the providers' price lists.

Dollars a million tokens, a thousand uses of a tool; `over` is what calls that read more cost, `tiers` are
factors. `library` says by which provider and name `genai-prices` knows the model, or why it does not.
Nothing of the product is used here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

NANO = 10**9
# In the order in which the table of expected counts has them.
KINDS = (
    "input", "cache_read", "cache_write", "cache_write_1h", "output",
    "reasoning", "audio_input", "audio_output", "image_input", "image_output",
)  # fmt: skip
INSTEAD = {
    "cache_read": "input", "cache_write": "input", "cache_write_1h": "cache_write", "audio_input": "input",
    "image_input": "input", "reasoning": "output", "audio_output": "output", "image_output": "output",
}  # fmt: skip


@dataclass(frozen=True)
class ListPrice:
    """One model's."""

    library: tuple[str, str] | str
    million: dict[str, str]
    over: tuple[int, dict[str, str]] | None = None
    tools: dict[str, str] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)

    def nano(self, counts: dict[str, int], tools: dict[str, int], tier: str) -> Fraction:
        """What a call costs, exactly, in nano-dollars."""
        read = counts["input"] + counts["cache_read"] + counts["cache_write"] + counts["cache_write_1h"]
        prices = self.million
        if self.over is not None and read > self.over[0]:
            prices = self.million | self.over[1]
        apart = counts | {
            "input": counts["input"] - counts["audio_input"] - counts["image_input"],
            "output": counts["output"]
            - counts["reasoning"] - counts["audio_output"] - counts["image_output"],
        }  # fmt: skip
        tokens = sum((apart[kind] * price_of(prices, kind) for kind in KINDS), Fraction(0)) / 10**6
        if "cache_audio" in prices:  # cached tokens that are sound
            dearer = Fraction(prices["cache_audio"]) - price_of(prices, "cache_read")
            tokens += tools.get("cache_audio", 0) * dearer / 10**6
        used = sum((Fraction(self.tools.get(name, "0")) * uses for name, uses in tools.items()), Fraction(0))
        return (tokens * Fraction(self.tiers.get(tier, "1")) + used / 1000) * NANO


def price_of(prices: dict[str, str], kind: str) -> Fraction:
    """A kind's own price, or that of what it is counted as without one."""
    while kind not in prices:
        kind = INSTEAD[kind]
    return Fraction(prices[kind])


def _plain(library: tuple[str, str] | str, read: str, cached: str, written: str) -> ListPrice:
    million = {"input": read, "output": written}
    return ListPrice(library, million | ({"cache_read": cached} if cached else {}))


_SEARCHES = {"web_search": "10", "file_search": "2.5"}
_SEARCH = {"web_search": "10"}
_HALF = {"batch": "0.5"}


def _openai(model: str, read: str, cached: str, written: str, **tiers: str) -> ListPrice:
    million = {"input": read, "cache_read": cached, "output": written}
    return ListPrice(("openai", model), million, tools=_SEARCHES, tiers=tiers)


def _claude(model: str, *prices: str, **over: tuple[int, tuple[str, ...]]) -> ListPrice:
    """Read, from a cache, into one for 5 minutes, for an hour, produced."""
    names = ("input", "cache_read", "cache_write", "cache_write_1h", "output")
    above = over.get("over")
    return ListPrice(
        ("anthropic", model), dict(zip(names, prices, strict=True)),
        None if above is None else (above[0], dict(zip(names, above[1], strict=True))),
        _SEARCH, _HALF | {"fast": "2"},
    )  # fmt: skip


_GPT_6 = ListPrice(
    ("openai", "gpt-6-sol"),
    {"input": "2", "cache_read": "0.2", "cache_write": "2.5", "output": "10"},
    (272_000, {"input": "4", "cache_read": "0.4", "cache_write": "5", "output": "15"}),
    _SEARCHES, {"flex": "0.5", "priority": "2"},
)  # fmt: skip
_UNLISTED = "a model of the house"

PRICES: dict[str, ListPrice] = {
    # OpenAI
    "gpt-4o-2024-08-06": _openai("gpt-4o-2024-08-06", "2.5", "1.25", "10", priority="1.7"),
    "gpt-4o-mini-2024-07-18": _openai("gpt-4o-mini-2024-07-18", "0.15", "0.075", "0.6"),
    "gpt-4.1-2025-04-14": _openai("gpt-4.1-2025-04-14", "2", "0.5", "8", priority="1.75"),
    "gpt-5-2025-08-07": _openai("gpt-5-2025-08-07", "1.25", "0.125", "10", flex="0.5", priority="2"),
    "gpt-5-mini-2025-08-07": _openai("gpt-5-mini-2025-08-07", "0.25", "0.025", "2", flex="0.5"),
    "o3-2025-04-16": _openai("o3-2025-04-16", "2", "0.5", "8", flex="0.5", priority="1.75"),
    "o4-mini-2025-04-16": _openai("o4-mini-2025-04-16", "1.1", "0.275", "4.4"),
    "gpt-6-sol": _GPT_6,
    "gpt-audio": ListPrice(
        ("openai", "gpt-audio"),
        {"input": "2.5", "output": "10", "audio_input": "32", "audio_output": "64"},
    ),
    "gpt-3.5-turbo-instruct:20230824-v2": _plain(("openai", "gpt-3.5-turbo-instruct"), "1.5", "", "2"),
    "text-embedding-3-small": _plain(("openai", "text-embedding-3-small"), "0.02", "", "0"),
    "text-embedding-3-large": _plain(("openai", "text-embedding-3-large"), "0.13", "", "0"),
    # Anthropic
    "claude-opus-4-5-20251101": _claude("claude-opus-4-5-20251101", "5", "0.5", "6.25", "10", "25"),
    "claude-sonnet-4-5-20250929": _claude(
        "claude-sonnet-4-5-20250929", "3", "0.3", "3.75", "6", "15",
        over=(200_000, ("6", "0.6", "7.5", "12", "22.5")),
    ),
    "claude-haiku-4-5-20251001": _claude("claude-haiku-4-5-20251001", "1", "0.1", "1.25", "2", "5"),
    "claude-opus-5": _claude("claude-opus-5", "5", "0.5", "6.25", "10", "25"),
    "claude-opus-5-5": _claude("claude-opus-5-5", "4", "0.2", "5", "8", "20"),
    "claude-haiku-5-5": _claude(
        "claude-haiku-5-5", "0.1", "0.01", "0.125", "0.2", "0.5",
        over=(100_000, ("0.5", "0.05", "0.625", "1", "2.5")),
    ),
    # Google
    "gemini-2.5-flash": ListPrice(
        ("google", "gemini-2.5-flash"),
        {"input": "0.3", "cache_read": "0.03", "cache_audio": "0.1", "output": "2.5", "audio_input": "1"},
        tools={"web_search": "35"},
    ),
    "gemini-2.5-flash-lite": ListPrice(
        ("google", "gemini-2.5-flash-lite"),
        {"input": "0.1", "cache_read": "0.01", "output": "0.4", "audio_input": "0.3"},
    ),
    "gemini-2.5-pro": ListPrice(
        ("google", "gemini-2.5-pro"),
        {"input": "1.25", "cache_read": "0.125", "output": "10"},
        (200_000, {"input": "2.5", "cache_read": "0.25", "output": "15"}),
    ),
    "gemini-2.5-flash-image": ListPrice(
        ("google", "gemini-2.5-flash-image"), {"input": "0.3", "output": "2.5", "image_output": "30"}
    ),
    "gemini-3-pro-image-preview": ListPrice(
        ("google", "gemini-3-pro-image-preview"), {"input": "2", "output": "12", "image_output": "120"}
    ),
    "gemini-3.1-pro-preview": ListPrice(
        ("google", "gemini-3.1-pro-preview"), {"input": "2", "cache_read": "0.2", "output": "12"}
    ),
    "gemini-3.5-flash": ListPrice(
        ("google", "gemini-3.5-flash"), {"input": "1.5", "cache_read": "0.15", "output": "9"},
        tools={"web_search": "14"},
    ),
    "gemini-3.8-flash": ListPrice(
        ("google", "gemini-3.8-flash"), {"input": "0.75", "cache_read": "0.075", "output": "3.75"},
        tiers={"priority": "1.8"},
    ),
    "gemini-embedding-001": _plain(("google", "gemini-embedding-001"), "0.15", "", "0"),
    # DeepSeek, xAI, Mistral
    "deepseek-v4-flash": _plain(("deepseek", "deepseek-v4-flash"), "0.15", "0.003", "0.6"),
    "deepseek-v3.1-terminus": _plain(("deepseek", "deepseek-v3.1-terminus"), "0.27", "0.13", "0.95"),
    "deepseek-v3.2-exp": _plain(("deepseek", "deepseek-v3.2-exp"), "0.27", "", "0.41"),
    "grok-3-mini": _plain(("x-ai", "grok-3-mini"), "0.3", "0.075", "0.5"),
    "grok-4-0709": _plain(("x-ai", "grok-4-0709"), "3", "0.75", "15"),
    "grok-4.3": ListPrice(
        ("x-ai", "grok-4.3"), {"input": "1.25", "cache_read": "0.2", "output": "2.5"},
        (199_999, {"input": "2.5", "cache_read": "0.4", "output": "5"}),
        {"web_search": "5", "x_search": "5"},
    ),
    "grok-4.5": ListPrice(
        ("x-ai", "grok-4.5"), {"input": "2", "cache_read": "0.3", "output": "6"},
        (199_999, {"input": "4", "cache_read": "0.6", "output": "12"}),
    ),
    "grok-4.7": ListPrice(
        ("x-ai", "grok-4.7"), {"input": "2", "cache_read": "0.5", "output": "6"},
        (199_999, {"input": "4", "cache_read": "1", "output": "12"}),
    ),
    "mistral-large-2512": _plain(("mistral", "mistral-large-2512"), "0.5", "0.05", "1.5"),
    "mistral-medium-3-5": _plain(("mistral", "mistral-medium-3-5"), "1.5", "0.15", "7.5"),
    "mistral-small-2603": _plain(("mistral", "mistral-small-2603"), "0.15", "0.015", "0.6"),
    "magistral-medium-latest": _plain(("mistral", "magistral-medium-latest"), "2", "", "5"),
    "codestral-2508": _plain(("mistral", "codestral-2508"), "0.3", "0.03", "0.9"),
    # Hosts of others' models
    "llama-3.3-70b-versatile": _plain(("groq", "llama-3.3-70b-versatile"), "0.59", "", "0.79"),
    "llama-3.1-8b-instant": _plain(("groq", "llama-3.1-8b-instant"), "0.05", "", "0.08"),
    "openai/gpt-oss-120b": _plain(("groq", "openai/gpt-oss-120b"), "0.15", "0.075", "0.6"),
    "openai/gpt-oss-20b": _plain(("groq", "openai/gpt-oss-20b"), "0.075", "0.0375", "0.3"),
    "moonshotai/kimi-k2-instruct": _plain(("groq", "moonshotai/kimi-k2-instruct"), "1", "0.5", "3"),
    "qwen/qwen3-32b": _plain(("groq", "qwen/qwen3-32b"), "0.29", "", "0.59"),
    "kimi-k2-0905-preview": _plain(("moonshotai", "kimi-k2-0905-preview"), "0.6", "0.15", "2.5"),
    "kimi-k2-thinking": _plain(("moonshotai", "kimi-k2-thinking"), "0.6", "0.15", "2.5"),
    "kimi-k2.5": _plain(("moonshotai", "kimi-k2.5"), "0.6", "0.1", "3"),
    "openai/gpt-4o-mini": _plain(("openrouter", "openai/gpt-4o-mini"), "0.15", "0.075", "0.6"),
    "openai/gpt-5": _plain(("openrouter", "openai/gpt-5"), "1.25", "0.125", "10"),
    "x-ai/grok-4.5": _plain(("openrouter", "x-ai/grok-4.5"), "2", "0.3", "6"),
    "anthropic/claude-sonnet-4.5": ListPrice(
        ("openrouter", "anthropic/claude-sonnet-4.5"),
        {"input": "3", "cache_read": "0.3", "cache_write": "3.75", "output": "15"},
    ),
    "google/gemini-2.5-flash": ListPrice(
        ("openrouter", "google/gemini-2.5-flash"), {"input": "0.3", "cache_read": "0.03", "output": "2.5"},
        tools={"web_search": "4"},
    ),
    "command-a-03-2025": _plain(("cohere", "command-a-03-2025"), "2.5", "", "10"),
    "command-r-plus": _plain(("cohere", "command-r-plus"), "2.5", "", "10"),
    "command-r7b-12-2024": _plain(("cohere", "command-r7b-12-2024"), "0.0375", "", "0.15"),
    "meta-llama/Llama-3.3-70B-Instruct-Turbo": _plain(
        ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"), "0.88", "", "0.88"
    ),
    "accounts/fireworks/models/kimi-k2p5": _plain(
        ("fireworks", "accounts/fireworks/models/kimi-k2p5"), "0.6", "0.1", "3"
    ),
    "house-llama-70b": _plain(_UNLISTED, "0.4", "0.1", "0.7"),
}  # fmt: skip
