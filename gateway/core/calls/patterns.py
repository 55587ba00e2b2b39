"""Names as lists have them: exact, or a pattern in which `*` stands for any characters."""

from __future__ import annotations

from collections.abc import Iterable


def on_list(name: str, patterns: Iterable[str]) -> bool:
    """Whether a list holds this name, letter by letter or by a pattern such as `gpt-4o*`.

    No pattern holds a name with a comma: some upstreams take that for several names.
    """
    return "," not in name and any("*" in pattern and _fits(name, pattern.split("*")) for pattern in patterns)


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
