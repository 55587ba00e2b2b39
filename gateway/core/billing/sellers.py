"""Sellers of models: the price list by which an upstream bills, a factor, and the order of prices. Pure.

A name tells the maker of a model, and not who answers: a model has another price at each seller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from gateway.core.billing.vector import SAME, Factor, ModelPrice

# Makers whose models are known by name alone, in the order of preference.
MAKERS: Final = (
    "anthropic", "cohere", "deepseek", "google", "meta", "minimax", "mistral", "moonshotai", "openai",
    "perplexity", "voyageai", "x-ai", "zai", "zhipuai",
)  # fmt: skip
_MAKER_ORDER: Final = {maker: order for order, maker in enumerate(("", *MAKERS))}
# Sellers by the end of their hosts.
_HOSTS: Final = {
    "anthropic.com": "anthropic", "openai.com": "openai", "generativelanguage.googleapis.com": "google",
    "aiplatform.googleapis.com": "google-vertex", "aiplatform.us.rep.googleapis.com": "google-vertex",
    "aiplatform.eu.rep.googleapis.com": "google-vertex", "azure.com": "azure", "amazonaws.com": "aws",
    "openrouter.ai": "openrouter", "groq.com": "groq", "together.xyz": "together", "together.ai": "together",
    "fireworks.ai": "fireworks", "mistral.ai": "mistral", "deepseek.com": "deepseek", "x.ai": "x-ai",
    "cohere.com": "cohere", "cohere.ai": "cohere", "perplexity.ai": "perplexity",
    "moonshot.ai": "moonshotai", "moonshot.cn": "moonshotai", "z.ai": "zai", "bigmodel.cn": "zhipuai",
    "minimax.io": "minimax", "voyageai.com": "voyageai", "cerebras.ai": "cerebras", "novita.ai": "novita",
    "databricks.com": "databricks", "cloudflare.com": "cloudflare",
}  # fmt: skip
_FAMILIES: Final = {"bedrock": "aws"}
# Hosts that serve one region, where newer models cost a tenth more.
_IN_PLACE: Final = re.compile(
    r"[a-z]{2}\.api\.openai\.com|[a-z0-9-]+-aiplatform\.googleapis\.com|aiplatform\.[a-z]+\.rep\.googleapis\.com"
)
_TENTH_MORE: Final = (11, 10)
# First version with a surcharge, by prefix of names, longest first; OpenAI: models since 5 March 2026.
# developers.openai.com/api/docs/guides/data-residency,
# docs.claude.com/en/docs/build-with-claude/claude-on-vertex-ai,
# cloud.google.com/gemini-enterprise-agent-platform/generative-ai/pricing
_DEARER_SINCE: Final = {"gpt-realtime-": (2, 1), "gpt-": (5, 4), "claude-": (4, 5), "gemini-": (3, 1)}
_VERSION: Final = re.compile(r"(\d)(?:[-.](\d{1,2})(?!\d))?")


class Seller(NamedTuple):
    """The seller whose price list an upstream uses (empty: none), and a factor on its prices.

    `in_place`: its host serves one region, so newer models have a higher bundled price.
    """

    name: str
    factor: Factor = SAME
    in_place: bool = False


def seller_of(prices: str, factor: str, family: str, base_url: str) -> Seller | None:
    """Return who sells the models of an upstream: `prices` if stated, else by API family or host, or None.

    The seller selects the price list. A stated `factor` replaces the surcharge of a regional host.
    """
    host = (urlsplit(base_url).hostname or "").lower()
    name = prices or _FAMILIES.get(family, "") or _seller_of_host(host)
    times = Fraction(Decimal(factor)).as_integer_ratio() if factor else SAME
    in_place = not factor and _IN_PLACE.fullmatch(host) is not None
    return Seller(name, times, in_place) if name or times != SAME else None


def place_factor(seller: Seller, model: str) -> Factor:
    """Return the factor on a model's bundled price at a seller's host: more than 1 for a regional host."""
    if seller.in_place:
        for begins, since in _DEARER_SINCE.items():
            if model.startswith(begins):
                return _TENTH_MORE if _version_of(model) >= since else SAME
    return SAME


def _version_of(model: str) -> tuple[int, int]:
    match = _VERSION.search(model)
    return (int(match[1]), int(match[2] or 0)) if match else (0, 0)


def _seller_of_host(host: str) -> str:
    fitting = (name for end, name in _HOSTS.items() if host == end or host.endswith((f".{end}", f"-{end}")))
    return next(fitting, "")


def is_known_by_name(price: ModelPrice) -> bool:
    """Return whether a price may be used for a call whose provider is not known.

    A bundled price may only if its provider makes the models.
    """
    return not price.is_bundled or price.provider in _MAKER_ORDER


def order_prices(ranked: Sequence[ModelPrice], provider: str) -> list[ModelPrice]:
    """Return a model's prices, which are sorted by `rank`, with those of `provider` before all others.

    Without a price of the provider, two makers in the bundled list may use the same name: the higher
    price then comes first.
    """
    first = {"", provider} if provider else set()
    own = [price for price in ranked if price.provider in first]
    rest = [price for price in ranked if price.provider not in first and is_known_by_name(price)]
    dearest: dict[str, int] = {}
    for price in rest:
        if price.is_bundled:
            dearest.setdefault(price.provider, max(price.vector.prices))
    if len(dearest) > 1:
        rest.sort(key=lambda price: (price.is_bundled, -dearest[price.provider] if price.is_bundled else 0))
    return own + rest


def rank(price: ModelPrice) -> tuple[object, ...]:
    """Return the sort key for the prices that match one model: the price with the lowest key is preferred.

    An operator's price comes before a bundled one, an exact name before a prefix, a newer one before an
    older.
    """
    return (
        price.is_bundled,
        price.is_prefix,
        -len(price.model),
        _MAKER_ORDER.get(price.provider, len(_MAKER_ORDER)),
        price.provider,
        -price.effective_ms,
    )
