"""Which of the models that a call names has answered it: by that one's price the call goes. Pure.

Providers answer under longer names than they are asked by, such as `gpt-5.4-2026-03-05`: what begins with a
name and a separator is that model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.billing.cost import cost_nano
from gateway.core.billing.vector import Vector

SEPARATORS: Final = frozenset("-@:")


@dataclass(slots=True)
class Priced:
    """A model's price, None where nobody says one; `stands_in` where it is another model's, as configured."""

    model: str
    vector: Vector | None
    stands_in: bool = False


def is_model(answered: str, named: str) -> bool:
    """Whether a model that is named so may answer under this name; case says nothing."""
    size = len(named)
    if answered[:size].lower() != named.lower():
        return False
    return len(answered) == size or answered[size] in SEPARATORS


def answering(
    named: Sequence[Priced], answered: str, counts: Sequence[int], tools: Mapping[str, int], tier: str
) -> Priced:
    """The one of all a call names that answered, the longest name first.

    Where that cannot be told, the asked one if there is no other, else the dearest by what was used: no
    upstream makes a call cheaper by keeping its model to itself.
    """
    asked, *others = named
    if not others:
        return asked
    fitting = [one for one in named if is_model(answered, one.model)]
    if fitting:
        return max(fitting, key=lambda one: len(one.model))
    currency, found, most = "", asked, -1
    for one in named:
        if one.vector is not None and currency in {"", one.vector.currency}:
            currency, cost = one.vector.currency, cost_nano(one.vector, counts, tools, tier)
            if cost > most:
                found, most = one, cost
    return found
