"""Stand-ins: configured models whose price applies to models without one. Pure.

Written as `pattern=model, pattern=model`: a pattern is a name, or a beginning before `*`. Case is ignored, as
for prices. A whole name counts first, then the longest beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from gateway.core.billing.price_book import EXACT_NAME, MODEL_CHARS_MAX, folded

STAND_INS_MAX: Final = 200
WANTED: Final = (
    f"at most {STAND_INS_MAX} of <model or beginning*>=<model that has a price>, with commas between"
)


class StandIns:
    """The stand-ins by name and by prefix."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, pairs: dict[str, str]) -> None:
        self._exact = {name: other for name, other in pairs.items() if not name.endswith("*")}
        prefixes = ((name[:-1], other) for name, other in pairs.items() if name.endswith("*"))
        self._prefixes = sorted(prefixes, key=lambda pair: -len(pair[0]))

    def of(self, model: str) -> str:
        """Return the model whose price stands in for that of `model`; empty if none is configured."""
        if not self._exact and not self._prefixes:
            return ""
        name = folded(model)
        stand_in = self._exact.get(name)
        if stand_in is not None:
            return stand_in
        return next((other for prefix, other in self._prefixes if name.startswith(prefix)), "")


NO_STAND_INS: Final = StandIns({})


def read_stand_ins(text: str) -> StandIns:
    """Return the models whose prices stand in for others, from `<model or prefix*>=<model>` pairs.

    Raise ValueError, with the fault, if the text is wrong.
    """
    pairs: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        name, equals, other = (side.strip() for side in part.partition("="))
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


def find_unpriced(
    names: Iterable[str],
    prices: Collection[tuple[str, str]],
    models: Collection[tuple[str, Iterable[Mapping[str, Any]]]],
    stand_ins: StandIns,
) -> list[str]:
    """Return the names of models that have no price at all: at no provider, at no time, and none that stands in.

    `prices` are their folded names, each with its match. A stored model, of `models` by name with its targets, has the
    prices of its targets too. A model of a gateway's file is unknown here.
    """
    exact = {name for name, match in prices if match == EXACT_NAME}
    prefixes = tuple([name for name, match in prices if match != EXACT_NAME])
    stored = [(folded(name.removesuffix("*")), name.endswith("*"), targets) for name, targets in models]

    def has_price(name: str) -> bool:
        return folded(name) in exact or folded(name).startswith(prefixes)

    def names_of(name: str) -> Iterable[str]:
        yield name
        for beginning, is_prefix, targets in stored:
            if folded(name).startswith(beginning) if is_prefix else folded(name) == beginning:
                for target in targets:
                    yield (target.get("model") or name).replace("*", name[len(beginning) :])

    return [
        name
        for name in dict.fromkeys(names)
        if not any(has_price(one) or has_price(stand_ins.of(one) or one) for one in names_of(name))
    ]
