"""Names as lists have them: exact, or a pattern in which `*` stands for any characters."""

from __future__ import annotations

from collections.abc import Iterable


def on_list(name: str, patterns: Iterable[str]) -> bool:
    """Whether a list holds this name, letter by letter or by a pattern such as `gpt-4o*`.

    No pattern holds a name with a comma: some upstreams take that for several names.
    """
    return "," not in name and any("*" in pattern and _fits(name, pattern.split("*")) for pattern in patterns)


class Patterns:
    """The patterns of a list, taken apart once for many names."""

    __slots__ = ("_parts",)

    def __init__(self, listed: Iterable[str]) -> None:
        self._parts = [one.split("*") for one in listed if "*" in one]

    def hold(self, name: str) -> bool:
        """Whether `on_list` says so of this name."""
        return "," not in name and any(_fits(name, parts) for parts in self._parts)


def _fits(name: str, parts: list[str]) -> bool:
    first, *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
