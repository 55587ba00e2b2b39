"""The running programs of stores in tests: all know every capability."""

from __future__ import annotations


async def known_everywhere(capability: str) -> str:
    """Say that nothing keeps a capability waiting."""
    return ""
