"""How many budgets one call may match at once, whatever its attributes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from gateway.core.accounts.budgets import BUDGET_ACCOUNTS_MAX, WINDOWS_MAX, is_of
from gateway.core.accounts.tags import Tags

# Most budgets of one organization: gateways hold them all in memory.
BUDGETS_MAX: Final = 1_000
# Most comparisons of selectors, a tenth of a second. A search that needs more is refused.
LOOKS_MAX: Final = 20_000
# Most budgets named in an error.
NAMES_MAX: Final = 20
# Fields by which a budget selects calls.
SELECTING: Final = (
    "tenant_id", "user", "api_key_id", "project_id", "model", "service_id", "tool", "server",
)  # fmt: skip
_MODEL: Final = SELECTING.index("model")
_FOLDED: Final = ("model", "tool", "server")  # compared without case


class Selector(NamedTuple):
    """The fields by which a budget selects calls; None matches any call.

    Budgets with another `each` have separate accounts. `tags` are sorted.
    """

    tenant_id: int | None
    user: str | None
    api_key_id: int | None
    project_id: int | None
    model: str | None
    service_id: int | None
    tool: str | None
    server: str | None
    tags: Tags
    each: str | None


def selector_of(values: Mapping[str, Any]) -> Selector:
    said = {name: values.get(name) for name in Selector._fields}
    said["tags"] = tuple(sorted((said["tags"] or {}).items()))
    return Selector(**{**said, **{name: value.lower() for name in _FOLDED if (value := said[name])}})


def too_many(
    others: Mapping[str, Selector], new: Selector, fixed: Iterable[Tags] = ()
) -> Iterator[tuple[str, str]]:
    """Yield (field, reason) if an organization may not have a budget with the selector `new` too.

    `others` are the selectors of the organization's existing budgets by name, `fixed` the tags of its API
    keys.
    """
    if len(others) >= BUDGETS_MAX:
        yield "organization_id", f"it has {BUDGETS_MAX} budgets: there cannot be more"
    elif sum(other == new for other in others.values()) >= WINDOWS_MAX:
        yield "name", f"there are {WINDOWS_MAX} budgets of just these calls: there cannot be more"
    elif met := _met_by_tags(others.values(), new, fixed):
        yield "organization_id", _names_met(others, met)


def too_many_by_tags(selectors: Mapping[str, Selector], key: Selector) -> Iterator[tuple[str, str]]:
    """Yield (field, reason) if a call of one API key could meet too many budgets by the tags that it fixes.

    `key` has what all calls of the key have: its tenant, its id, its user, and `tags`.
    """
    mine = {
        name: other
        for name, other in selectors.items()
        if set(other.tags) <= set(key.tags) and _meet(other, key)
    }
    for new in {other for other in mine.values() if other.tags}:
        if met := may_meet_more(mine.values(), new):
            yield "tags", _names_met(mine, met)
            return


def _names_met(selectors: Mapping[str, Selector], met: Collection[Selector]) -> str:
    names = ", ".join([name for name, other in selectors.items() if other in met][:NAMES_MAX])
    most = BUDGET_ACCOUNTS_MAX
    return f"a call could then meet budgets of more than {most} different selectors, with: {names}"


def _met_by_tags(others: Collection[Selector], new: Selector, fixed: Iterable[Tags]) -> frozenset[Selector]:
    """Return the result of `may_meet_more` for calls without tags, or with those that some API key fixes.

    Tags that callers say are no reason to refuse a budget: their calls are refused.
    """
    named = frozenset(tag for other in (*others, new) for tag in other.tags)
    of_calls = {named & frozenset(tags) for tags in ((), *fixed)}
    for tags in filter(frozenset(new.tags).issubset, of_calls):
        if met := may_meet_more([other for other in others if tags.issuperset(other.tags)], new):
            return met
    return frozenset()


def may_meet_more(
    others: Collection[Selector], new: Selector, most: int = BUDGET_ACCOUNTS_MAX, looks_max: int = LOOKS_MAX
) -> frozenset[Selector]:
    """Return the selectors that one call could match at once if they need more than `most` accounts.

    They include `new`; the result is empty if no call can match so many. A call has one tenant, one user
    and so on, and is assumed to name one model and to have all tags. `looks_max` bounds the comparisons.
    """
    met = {new, *(other for other in others if _meet(other, new))}
    return frozenset(_exceeding(list(met), 0, most, [looks_max]) if len(_shapes(met, 0)) > most else ())


def _exceeding(selectors: Sequence[Selector], at: int, most: int, left: list[int]) -> Sequence[Selector]:
    """Return selectors that one call may match and that need more than `most` accounts; empty if none do.

    The fields of `SELECTING` before position `at` are decided already. `left` holds the number of
    remaining comparisons: once it is used up, all `selectors` are returned.
    """
    if at == len(SELECTING):
        return selectors if len(selectors) > most else ()
    left[0] -= len(selectors)
    if left[0] < 0:
        return selectors
    name, following = SELECTING[at], at + 1
    by_value: dict[Any, list[Selector]] = {}
    for selector in selectors:
        by_value.setdefault(selector[at], []).append(selector)
    anybodys = by_value.pop(None, [])
    shapes = _shapes(anybodys, following)
    for value in by_value or (None,):
        alike = by_value if name == "model" else (value,)
        own = [selector for like in alike if _takes(name, like, value) for selector in by_value.get(like, ())]
        if len(shapes) + len(_shapes(own, following)) <= most:
            continue
        if found := _exceeding([*anybodys, *own], following, most, left):
            return found
    return ()


def _shapes(selectors: Iterable[Selector], at: int) -> set[object]:
    """Return the distinct shapes of selectors; a call matches at most one selector of each shape.

    A shape has the values of the fields before position `at`, and tells which later fields are set. For a
    model with `*` it includes the length of the prefix: a call matches at most one prefix of each length.
    It includes the tags, because a call may match selectors of several.
    """
    return {
        (
            selector[:at],
            *(part is not None for part in selector[at : len(SELECTING)]),
            _length(selector.model) if at <= _MODEL else 0,
            selector.tags,
            selector.each,
        )
        for selector in selectors
    }


def _length(model: str | None) -> int:
    return len(model) if model and model.endswith("*") else 0


def _meet(one: Selector, other: Selector) -> bool:
    """Return whether one call may match both selectors."""
    return all(
        a is None or b is None or _takes(name, a, b) or _takes(name, b, a)
        for name, a, b in zip(SELECTING, one, other, strict=False)
    )


def _takes(name: str, wanted: Any, value: Any) -> bool:
    """Return whether the selector's value `wanted` of the field `name` covers `value`; None covers all.

    A model may be a prefix with `*`.
    """
    if wanted is None or wanted == value:
        return True
    return name == "model" and is_of(value.removesuffix("*"), wanted)
