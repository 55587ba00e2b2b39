"""The groups that a call is in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.groups import (
    CALLERS_MAX,
    KINDS,
    MEMBERS_MAX,
    Groups,
    GroupTerms,
    row_of,
)
from gateway.core.model import Caller

CALLER = Caller(1, 3, 40, 0)


def terms_of(members: list[tuple[str, str, int]], **claims: tuple[int, ...]) -> GroupTerms:
    """The groups of these members, each with its kind and the group's id."""
    kinds = tuple(sorted({kind for kind, _, _ in members}))
    return GroupTerms(kinds, b"".join(sorted(row_of(*member) for member in members)), claims)


def test_groups_of_call_are_of_its_user_tenant_key_and_project() -> None:
    groups = Groups(terms_of([
        ("user", "ada", 9), ("user", "ada", 2), ("user", "bob", 4), ("tenant", "3", 5), ("tenant", "4", 6),
        ("api_key", "40", 7), ("api_key", "3", 8), ("project", "0", 11), ("project", "40", 12),
    ]))  # fmt: skip
    assert groups.of(CALLER, "ada", 0) == (2, 5, 7, 9, 11)
    assert groups.of(CALLER, "bob", None) == (4, 5, 7)
    assert groups.of(CALLER, "", 40) == (5, 7, 12)
    assert groups.of(Caller(1, 4, 41, 0), "Ada", 3) == (6,)


def test_groups_of_call_are_named_by_claims_of_its_caller() -> None:
    groups = Groups(terms_of([("user", "ada", 1)], platform=(3, 2), research=(4,)))
    claiming = Caller(1, 3, 40, 0, claims=("platform", "nobody's"))
    assert groups.of(claiming, "ada", None) == (1, 2, 3)
    assert groups.of(CALLER, "ada", None) == (1,)
    assert groups.of(CALLER, "platform", None) == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS), st.sampled_from(["1", "2", "3", "ada", "é", "🎈"]), st.integers(1, 9)
        ),
        max_size=30,
    )
)
def test_groups_of_call_agree_with_looking_at_every_member(members: list[tuple[str, str, int]]) -> None:
    groups = Groups(terms_of(members))
    for user, project in (("ada", 1), ("🎈", None), ("2", 3), ("", 2)):
        call = {
            "user": user, "tenant": "3", "api_key": "40", "project": "" if project is None else str(project)
        }  # fmt: skip
        wanted = {group for kind, member, group in members if call[kind] == member}
        assert groups.of(CALLER, user, project) == tuple(sorted(wanted))


def test_groups_find_each_of_ten_thousand_members() -> None:
    groups = Groups(terms_of([("user", f"user {n}", 5) for n in range(MEMBERS_MAX)]))
    assert all(groups.of(CALLER, f"user {n}", None) == (5,) for n in range(MEMBERS_MAX))
    assert groups.of(CALLER, f"user {MEMBERS_MAX}", None) == ()
    assert len(groups) == CALLERS_MAX
