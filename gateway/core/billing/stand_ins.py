"""Models that have the price of another one, where they have none: as people configure it. Pure.

Written as `pattern=model, pattern=model`: a pattern is a name, or the beginning of one before a `*`. Names
are compared without regard to case, as prices are; a whole name counts first, then the longest beginning.
"""

from __future__ import annotations

from typing import Final

from gateway.core.billing.price_book import MODEL_CHARS_MAX, folded

STAND_INS_MAX: Final = 200
WANTED: Final = (
    f"at most {STAND_INS_MAX} of <model or beginning*>=<model that has a price>, with commas between"
)


class StandIns:
    """The models whose prices others have that have none."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, pairs: dict[str, str]) -> None:
        self._exact = {name: other for name, other in pairs.items() if not name.endswith("*")}
        prefixes = ((name[:-1], other) for name, other in pairs.items() if name.endswith("*"))
        self._prefixes = sorted(prefixes, key=lambda pair: -len(pair[0]))

    def of(self, model: str) -> str:
        """Return the model that stands in for one; empty where none does."""
        if not self._exact and not self._prefixes:
            return ""
        name = folded(model)
        found = self._exact.get(name)
        if found is not None:
            return found
        return next((other for prefix, other in self._prefixes if name.startswith(prefix)), "")


NO_STAND_INS: Final = StandIns({})


def read_stand_ins(text: str) -> StandIns:
    """Read what is configured; ValueError says what is wrong with it."""
    pairs: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, other = (each.strip() for each in part.partition("="))
        if not (name and equals and other) or "*" in name[:-1] or "*" in other:
            raise ValueError(f"{part.strip()!r} is no <model or beginning*>=<model>")
        if max(len(name), len(other)) > MODEL_CHARS_MAX or not (name + other).isprintable():
            raise ValueError(f"names of models have at most {MODEL_CHARS_MAX} visible characters")
        if folded(name) in pairs:
            raise ValueError(f"{name!r} is there twice")
        pairs[folded(name)] = other
    if len(pairs) > STAND_INS_MAX:
        raise ValueError(f"there are {len(pairs)}, and {STAND_INS_MAX} at most")
    return StandIns(pairs)
