"""How many budgets one call may match at once, whatever its attributes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

from gateway.core.accounts.budgets import BUDGET_ACCOUNTS_MAX, WINDOWS_MAX, is_of
from gateway.core.accounts.tags import Tags

# Most budgets of one organization: gateways hold them all in memory.
BUDGETS_MAX: Final = 1_000
# Most comparisons of selectors, a tenth of a second. A search that needs more is refused.
LOOKS_MAX: Final = 20_000
# By kind of member, and of claims: the sets of groups that single members are in, or that a claim names.
GroupSets = Mapping[str, Collection[frozenset[int]]]
NO_GROUP_SETS: GroupSets = {}
CLAIM: Final = "claim"
# Sets of groups that a check looks at; beyond it, all groups count as those of one call.
SETS_MAX: Final = 200
# Most budgets named in an error.
NAMES_MAX: Final = 20
# Fields by which a budget selects calls, beside tags. A call has one value of all but the last.
SELECTING: Final = (
    "tenant_id", "user", "api_key_id", "project_id", "model", "service_id", "tool", "server", "group_id",
)  # fmt: skip
_SINGLE: Final = SELECTING[:-1]
_MODEL: Final = _SINGLE.index("model")
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
    group_id: int | None
    each: str | None


def selector_of(values: Mapping[str, Any]) -> Selector:
    said = {name: values.get(name) for name in Selector._fields}
    said["tags"] = tuple(sorted((said["tags"] or {}).items()))
    return Selector(**{**said, **{name: value.lower() for name in _FOLDED if (value := said[name])}})


def too_many(
    others: Mapping[str, Selector], new: Selector, fixed: Iterable[Tags] = (),
    groups: GroupSets = NO_GROUP_SETS,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield (field, reason) if an organization may not have a budget with the selector `new` too.

    `others` are the selectors of the organization's existing budgets by name, `fixed` the tags of its API
    keys, and `groups` the sets of groups that its members are in.
    """
    if len(others) >= BUDGETS_MAX:
        yield "organization_id", f"it has {BUDGETS_MAX} budgets: there cannot be more"
    elif sum(other == new for other in others.values()) >= WINDOWS_MAX:
        yield "name", f"there are {WINDOWS_MAX} budgets of just these calls: there cannot be more"
    else:
        together = sets_of_groups(groups)
        for mine in _selectors_by_tags([*others.values(), new], fixed):
            if new in mine and (met := may_meet_more(mine, new, together=together)):
                yield "organization_id", _names_met(others, met)
                return


def too_many_by_tags(
    selectors: Mapping[str, Selector], key: Selector, groups: GroupSets = NO_GROUP_SETS
) -> Iterator[tuple[str, str]]:
    """Yield (field, reason) if a call of one API key could meet too many budgets by the tags that it fixes.

    `key` has what all calls of the key have: its tenant, its id, its user, and `tags`.
    """
    mine = {
        name: other
        for name, other in selectors.items()
        if set(other.tags) <= set(key.tags) and _meet(other, key)
    }
    together = sets_of_groups(groups)
    for new in {other for other in mine.values() if other.tags}:
        if met := may_meet_more(mine.values(), new, together=together):
            yield "tags", _names_met(mine, met)
            return


def too_many_of_groups(budgets: Mapping[str, Selector], groups: GroupSets, fixed: Iterable[Tags] = ()) -> str:
    """Return why members may not be in these sets of groups; empty if they may.

    `budgets` are selectors by name, and `fixed` the tags of the organization's API keys.
    """
    together = sets_of_groups(groups)
    for mine in _selectors_by_tags(budgets.values(), fixed):
        if met := _most_met(mine, together, BUDGET_ACCOUNTS_MAX, LOOKS_MAX):
            return _names_met(budgets, met)
    return ""


def _names_met(selectors: Mapping[str, Selector], met: Collection[Selector]) -> str:
    names = ", ".join([name for name, other in selectors.items() if other in met][:NAMES_MAX])
    most = BUDGET_ACCOUNTS_MAX
    return f"a call could then meet budgets of more than {most} different selectors, with: {names}"


def _selectors_by_tags(selectors: Collection[Selector], fixed: Iterable[Tags]) -> Iterator[list[Selector]]:
    """Yield the selectors that calls without tags may match, and those for the tags of each API key.

    Tags that callers say are no reason to refuse a budget: their calls are refused.
    """
    named = frozenset(tag for selector in selectors for tag in selector.tags)
    for tags in {named & frozenset(of_key) for of_key in ((), *fixed)}:
        yield [selector for selector in selectors if tags.issuperset(selector.tags)]


def may_meet_more(
    others: Collection[Selector], new: Selector, most: int = BUDGET_ACCOUNTS_MAX, looks_max: int = LOOKS_MAX,
    together: Iterable[frozenset[int]] = (),
) -> frozenset[Selector]:  # fmt: skip
    """Return the selectors that one call could match at once if they need more than `most` accounts.

    They include `new`; the result is empty if no call can match so many. A call has one tenant, one user
    and so on, is in one set of groups of `together`, and is assumed to name one model and to have all tags.
    `looks_max` bounds the comparisons.
    """
    met = {new, *(other for other in others if _meet(other, new))}
    sets = [groups for groups in together if new.group_id in {None, *groups}]
    if new.group_id is not None:  # it may have no members yet
        sets.append(frozenset({new.group_id}))
    return _most_met(met, sets, most, looks_max)


def _most_met(
    selectors: Iterable[Selector], together: Iterable[frozenset[int]], most: int, looks_max: int
) -> frozenset[Selector]:
    """Return the selectors that a call in one of these sets of groups could match, if more than `most`."""
    anybodys, left = [selector for selector in set(selectors) if selector.group_id is None], [looks_max]
    of_groups = [selector for selector in set(selectors) if selector.group_id is not None]
    for groups in [*together] or [frozenset[int]()]:
        met = [*anybodys, *(selector for selector in of_groups if selector.group_id in groups)]
        if len(_shapes(met, 0)) > most and (beyond := _exceeding(met, 0, most, left)):
            return frozenset(beyond)
    return frozenset()


def _exceeding(selectors: Sequence[Selector], at: int, most: int, left: list[int]) -> Sequence[Selector]:
    """Return selectors that one call may match and that need more than `most` accounts; empty if none do.

    The groups, and the fields of `_SINGLE` before position `at`, are decided already. `left` holds the number of
    remaining comparisons: once it is used up, all `selectors` are returned.
    """
    if at == len(_SINGLE):
        return selectors if len(selectors) > most else ()
    left[0] -= len(selectors)
    if left[0] < 0:
        return selectors
    name, following = _SINGLE[at], at + 1
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
        if exceeding := _exceeding([*anybodys, *own], following, most, left):
            return exceeding
    return ()


def _shapes(selectors: Iterable[Selector], at: int) -> set[object]:
    """Return the distinct shapes of selectors; a call matches at most one selector of each shape.

    A shape has the values of the fields before position `at`, and tells which later fields are set. For a
    model with `*` it includes the length of the prefix: a call matches at most one prefix of each length.
    It includes the tags and the group, because a call may match selectors of several.
    """
    return {
        (
            selector[:at],
            *(part is not None for part in selector[at : len(_SINGLE)]),
            _length(selector.model) if at <= _MODEL else 0,
            selector.tags,
            selector.group_id,
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
        for name, a, b in zip(_SINGLE, one, other, strict=False)
    )


def _takes(name: str, wanted: Any, value: Any) -> bool:
    """Return whether the selector's value `wanted` of the field `name` covers `value`; None covers all.

    A model may be a prefix with `*`.
    """
    if wanted is None or wanted == value:
        return True
    return name == "model" and is_of(value.removesuffix("*"), wanted)


def sets_of_groups(groups: GroupSets) -> list[frozenset[int]]:
    """Return the largest sets of groups that one call may be in.

    A call has one member of each kind, or none. A claim is alone: only a call says which others its caller has.
    """
    kinds = [_largest(sets) for kind, sets in groups.items() if kind != CLAIM]
    count = 1
    for sets in kinds:
        count *= len(sets)
    claimed = groups.get(CLAIM, ())
    if count > SETS_MAX:
        return [frozenset[int]().union(*(ids for sets in kinds for ids in sets)), *claimed]
    return [*(frozenset[int]().union(*some) for some in product(*kinds)), *claimed]


def _largest(sets: Collection[frozenset[int]]) -> list[frozenset[int]]:
    """Return those of the sets that are in no other one; at least an empty one."""
    largest: list[frozenset[int]] = []
    for groups in sorted(set(sets), key=len, reverse=True):
        if not any(groups <= larger for larger in largest):
            largest.append(groups)
    return largest or [frozenset()]
