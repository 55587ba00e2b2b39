"""How many budgets one call may meet at once, whatever it says of itself. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gateway.core.accounts.budgets import BUDGET_ACCOUNTS_MAX, WINDOWS_MAX, is_of

# So many budgets an organization may have: gateways hold them all.
BUDGETS_MAX: Final = 1_000
# So many looks at a selector find what a call may match, in a tenth of a second; else it is taken as too much
LOOKS_MAX: Final = 20_000
# Of budgets that meet so many are named.
NAMES_MAX: Final = 20
# What a budget may say of the calls it is about.
SELECTING: Final = ("tenant_id", "user", "api_key_id", "project_id", "model", "service_id")
_MODEL: Final = SELECTING.index("model")


class Selector(NamedTuple):
    """What calls an account is of; None says nothing. `each` tells accounts of the same calls apart."""

    tenant_id: int | None
    user: str | None
    api_key_id: int | None
    project_id: int | None
    model: str | None
    service_id: int | None
    each: str | None


def selector_of(values: Mapping[str, Any]) -> Selector:
    """The selector of a budget as it is said or stored."""
    said = {name: values.get(name) for name in Selector._fields}
    return Selector(**{**said, "model": said["model"] and said["model"].lower()})


def too_many(others: Mapping[str, Selector], new: Selector) -> Iterator[tuple[str, str]]:
    """Why an organization with budgets of these names and selectors has no place for a new one."""
    if len(others) >= BUDGETS_MAX:
        yield "organization_id", f"it has {BUDGETS_MAX} budgets: there cannot be more"
    elif sum(one == new for one in others.values()) >= WINDOWS_MAX:
        yield "name", f"there are {WINDOWS_MAX} budgets of just these calls: there cannot be more"
    elif met := may_meet_more(others.values(), new):
        most = BUDGET_ACCOUNTS_MAX
        names = ", ".join([name for name, one in others.items() if one in met][:NAMES_MAX])
        yield (
            "organization_id",
            f"a call could then meet budgets of more than {most} different selectors, with: {names}",
        )


def may_meet_more(
    others: Collection[Selector], new: Selector, most: int = BUDGET_ACCOUNTS_MAX, looks_max: int = LOOKS_MAX
) -> frozenset[Selector]:
    """More accounts than `most` that one call may match, the new one among them; none where there are not.

    A call has one tenant, one user and so on, and is taken to name one model.
    """
    met = {new, *(one for one in others if _meet(one, new))}
    return frozenset(_exceeding(list(met), 0, most, [looks_max]) if len(_shapes(met, 0)) > most else ())


def _exceeding(selectors: Sequence[Selector], at: int, most: int, left: list[int]) -> Sequence[Selector]:
    """More of these than `most` that have a call in common, if there are; fields before `at` are decided.

    `left` is how many looks there may still be.
    """
    if at == len(SELECTING):
        return selectors if len(selectors) > most else ()
    left[0] -= len(selectors)
    if left[0] < 0:
        return selectors
    name, following = SELECTING[at], at + 1
    by_value: dict[Any, list[Selector]] = {}
    for one in selectors:
        by_value.setdefault(one[at], []).append(one)
    anybodys = by_value.pop(None, [])
    shapes = _shapes(anybodys, following)
    for value in by_value or (None,):
        alike = by_value if name == "model" else (value,)
        own = [one for like in alike if _takes(name, like, value) for one in by_value.get(like, ())]
        if len(shapes) + len(_shapes(own, following)) <= most:
            continue
        if found := _exceeding([*anybodys, *own], following, most, left):
            return found
    return ()


def _shapes(selectors: Iterable[Selector], at: int) -> set[object]:
    """What they have that one call matches at most one of, but for fields before `at`, which are decided.

    Of two models with a `*` behind as many letters, a call names one at most.
    """
    return {
        (
            one[:at],
            *(part is not None for part in one[at:-1]),
            _length(one.model) if at <= _MODEL else 0,
            one.each,
        )
        for one in selectors
    }


def _length(model: str | None) -> int:
    return len(model) if model and model.endswith("*") else 0


def _meet(one: Selector, other: Selector) -> bool:
    """Whether a call may match both."""
    return all(
        a is None or b is None or _takes(name, a, b) or _takes(name, b, a)
        for name, a, b in zip(SELECTING, one, other, strict=False)
    )


def _takes(name: str, wanted: Any, value: Any) -> bool:
    """Whether a part of a selector takes calls of a value; a model's may itself be what names begin with."""
    if wanted is None or wanted == value:
        return True
    return name == "model" and is_of(value.removesuffix("*"), wanted)
