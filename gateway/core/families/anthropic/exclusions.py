"""Which dear prices a call of Anthropic's messages cannot have.

A cache is written where `cache_control` or `caching` says so. Sound is neither read nor made.
"""

from __future__ import annotations

from typing import Final

from gateway.core.families.controlled import Document
from gateway.core.families.exclusions import Exclusions, only_own_tools, only_text
from gateway.core.names import Names

FAST: Final = "fast"  # a speed with prices of its own, as a tier has
US: Final = "us"  # a place of inference that has them too: its workspace says it where a call does not


def _no_media(document: Document, names: Names) -> bool:
    return (
        only_own_tools(document)
        and "mcp_servers" not in document
        and "container" not in document
        and only_text(document.get("messages"))
        and only_text(document.get("system"))
    )


def _no_tier(document: Document, tier: str) -> bool:
    if tier == FAST:
        speed = document.get("speed")
        return speed is None or speed == "standard"
    if tier == US:
        return document.get("inference_geo") == "global"
    return document.get("service_tier") == "standard_only"


EXCLUSIONS = Exclusions(
    cache=lambda document, names: not names.caches,
    media=_no_media,
    sound=lambda document, names: True,
    tier=_no_tier,
)
