"""Which budgets a call takes from: found once, told again at the next boundary, never left out."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from typing import Any

import pytest

from gateway.core.accounts.budgets import (
    BUDGET_ACCOUNTS_MAX,
    DEFINED_WINDOW,
    MONEY,
    TOKENS,
    Budget,
    CallAttributes,
    PersonalOverride,
    PersonalRaise,
    account_of,
    owner_in,
    owner_of,
)
from gateway.core.accounts.call_budgets import (
    ACCOUNT_BYTES,
    ENTRY_BYTES,
    BudgetCache,
    CallBudgets,
    OrganizationBudgets,
)
from gateway.core.accounts.groups import Groups, GroupTerms, row_of
from gateway.core.calls.call import Body, CallRequest, CallSpec, McpMessage
from gateway.core.model import GENERIC, Attribution, BudgetWindow, Caller
from gateway.counters.layouts.packing import replaced
from gateway.errors import CountersUnavailable, TooManyBudgets

NOW = round(datetime.fromisoformat("2026-05-05T05:05:05Z").timestamp() * 1000)
MONTH = Budget(1, "all, a month", MONEY, 5_000, "month")
HOUR = Budget(2, "all, an hour", TOKENS, 100, "hour", enforce=False)
MINE = Budget(3, "mine", "requests", 10, "day", user="ada")
EACH = Budget(4, "everybody", MONEY, 10, "day", each="user")
OPUS = Budget(5, "opus", MONEY, 10, "day", model="claude-opus-*")
SESSION = Budget(6, "runs", MONEY, 10, "total", each="session")
NAMES: dict[str, Any] = {
    "tenant_id": 3, "user": "ada", "api_key_id": 40, "project_id": 9, "model": "gpt*", "service_id": 2,
    "tool": "search", "server": "github",
}  # fmt: skip
CALL = CallAttributes(3, 40, 2, "ada", 9, ("gpt-5",), "s-1")


def of(*budgets: Budget, organization_id: int = 1) -> OrganizationBudgets:
    return OrganizationBudgets(organization_id, budgets, "EUR")


def test_a_call_takes_from_every_account_that_fits() -> None:
    found = of(MONTH, HOUR, MINE, EACH, OPUS).find(CALL, NOW)
    names = [account_of(1, MONTH), account_of(1, MINE), account_of(1, EACH, "ada")]
    assert [one.name for one in found.accounts] == names
    assert [one.enforced for one in found.accounts] == [True, True, True]
    assert len(found.accounts[0].defined) == 2 * DEFINED_WINDOW.size
    assert found.units == {MONEY, TOKENS, "requests"}
    assert found.enforced == {MONEY, "requests"}
    assert found.until_ms == NOW - NOW % 3_600_000 + 3_600_000
    assert found.by_id == {one.id: one for one in (MONTH, HOUR, MINE, EACH, OPUS)}


def test_what_is_kept_of_each_caller_is_its_accounts_alone() -> None:
    """Callers say who they are: what many of them have in common is there once."""
    budgets = of(MONTH, HOUR, MINE, EACH, OPUS)
    one, other = (budgets.find(CALL._replace(user=user), NOW) for user in ("eve", "mallory"))
    assert one.units is other.units
    assert one.enforced is other.enforced
    assert one.by_id is other.by_id


def test_an_account_is_enforced_where_one_of_its_windows_is() -> None:
    (account,) = of(HOUR).find(CALL, NOW).accounts
    assert not account.enforced
    (account,) = of(HOUR, MONTH).find(CALL, NOW).accounts
    assert account.enforced


@pytest.mark.parametrize("models", [("claude-opus-5",), ("x", "Claude-Opus-5"), ("x", "y", "claude-opus-")])
def test_every_model_that_may_answer_counts(models: tuple[str, ...]) -> None:
    assert of(OPUS).find(CALL._replace(models=models), NOW).accounts


def test_what_was_found_is_kept_until_a_window_ends() -> None:
    known, budgets = BudgetCache(), of(MONTH, HOUR, EACH)
    found = known.find(budgets, CALL, NOW)
    assert known.find(budgets, CALL, found.until_ms - 1) is found
    later = known.find(budgets, CALL, found.until_ms)
    assert later is not found
    assert later.until_ms == found.until_ms + 3_600_000
    assert later.accounts[0].defined != found.accounts[0].defined
    # What has not ended is the same object: nothing is made anew for it.
    assert later.accounts[1].defined is found.accounts[1].defined


def test_a_raise_ends_when_it_says() -> None:
    raised = replace(MONTH, raised_to=9_000, raised_until_ms=NOW + 5)
    known, budgets = BudgetCache(), of(raised)
    limits = [
        DEFINED_WINDOW.read(known.find(budgets, CALL, at).accounts[0].defined)["limit"]
        for at in (NOW, NOW + 4, NOW + 5)
    ]
    assert limits == [9_000, 9_000, 5_000]


def limits_of(found: CallBudgets) -> list[int]:
    return [DEFINED_WINDOW.read(one.defined)["limit"] for one in found.accounts]


def test_a_raise_of_one_is_that_owners_until_it_ends() -> None:
    """Everybody has 10, Ada 50 for five milliseconds; nobody else has another definition for it."""
    raised = replace(EACH, raises={owner_of("ada"): PersonalRaise(50, NOW + 5)})
    known, budgets = BudgetCache(), of(raised)
    eve = CALL._replace(user="eve")
    assert [limits_of(known.find(budgets, CALL, NOW + at)) for at in (0, 4, 5)] == [[50], [50], [10]]
    assert limits_of(known.find(budgets, eve, NOW)) == [10]
    assert known.find(budgets, eve, NOW).accounts[0].defined == of(EACH).find(eve, NOW).accounts[0].defined
    [(name, budget, _)] = budgets.of_caller(CALL)
    assert budget.limit_of(owner_in(name), NOW)[:2] == (50, "raise")


def test_a_raised_owner_without_a_place_has_the_limit_of_the_shared_account() -> None:
    raised = replace(EACH, raises={owner_of("ada"): PersonalRaise(50, NOW + 5)})
    month, ada = of(MONTH, raised).find(CALL, NOW).accounts
    [same, shared] = replaced((month, ada), 0b10)
    assert same is month
    assert shared.name == account_of(1, EACH).partition(":")[0] + ":other"
    assert DEFINED_WINDOW.read(shared.defined)["limit"] == 10


def test_override_limits_the_named_user_until_the_given_time() -> None:
    """Everybody has 10 a day, Ada 3 for five milliseconds; nobody else has another definition for it."""
    known, budgets = (
        BudgetCache(),
        of(replace(EACH, overrides={owner_of("ada"): PersonalOverride(3, NOW + 5)})),
    )
    eve = CALL._replace(user="eve")
    assert [limits_of(known.find(budgets, CALL, NOW + at)) for at in (0, 4, 5)] == [[3], [3], [10]]
    assert known.find(budgets, eve, NOW).accounts[0].defined == of(EACH).find(eve, NOW).accounts[0].defined
    [account] = known.find(budgets, CALL, NOW).accounts
    assert DEFINED_WINDOW.read(replaced((account,), 1)[0].defined)["limit"] == 10


def test_a_call_of_an_owner_without_a_limit_needs_no_price() -> None:
    """Of tokens it is limited as before: what is beside a limit of money stays."""
    tokens = replace(EACH, id=7, name="tokens", unit=TOKENS)
    budgets = of(replace(EACH, overrides={owner_of("ada"): PersonalOverride(None)}), tokens)
    found, eve = budgets.find(CALL, NOW), budgets.find(CALL._replace(user="eve"), NOW)
    assert (found.units, found.enforced, eve.enforced) == ({MONEY, TOKENS}, {TOKENS}, {MONEY, TOKENS})
    assert (found.refusing(MONEY), found.refusing(TOKENS), eve.refusing(MONEY)) == ("", "tokens", "everybody")
    alone = of(replace(EACH, overrides={owner_of("ada"): PersonalOverride(None)})).find(CALL, NOW)
    assert [one.enforced for one in alone.accounts] == [False]


def test_each_tenant_has_an_account_of_its_own() -> None:
    """Whatever else a call says."""
    teams = of(replace(EACH, each="tenant", overrides={owner_of("3"): PersonalOverride(30)}))
    key, call = Caller(1, 3, 40, 0), CallRequest("m", GENERIC, Body(), CallSpec(user="ada"))
    names = [
        BudgetCache().find_by_caller(teams, caller, 2, Attribution(user=user), call, NOW).names
        for caller, user in ((key, "ada"), (key, "bob"), (replace(key, key_id=41), ""))
    ]
    assert set(names) == {(account_of(1, replace(EACH, each="tenant"), "3"),)}
    other = teams.find(CALL._replace(tenant_id=4), NOW)
    assert (other.names[0], limits_of(other)) == (account_of(1, replace(EACH, each="tenant"), "4"), [10])
    assert limits_of(teams.find(CALL, NOW)) == [30]


def test_calls_that_are_kept_keep_no_raises_alive() -> None:
    """A caller who never comes again would keep those of thousands in memory."""
    own = {owner_of("ada"): PersonalRaise(50, NOW + 5)}, {owner_of("ada"): PersonalOverride(9)}
    raised = replace(EACH, raises=own[0], overrides=own[1])
    budgets = of(raised)
    found = BudgetCache().find(budgets, CALL, NOW)
    parts: list[Any] = [getattr(found, one.name) for one in fields(found)]
    assert budgets not in parts
    assert [(one.raises, one.overrides) for one in found.by_id.values()] == [({}, {})]


@pytest.mark.parametrize("kept", [True, False], ids=["by caller", "by what it says"])
def test_a_clock_that_was_ahead_leaves_no_window_of_later_behind(kept: bool) -> None:
    """Scripts take one of later for that which follows: it would keep the present one open until then."""
    known, raised = BudgetCache(), replace(HOUR, raised_to=900, raised_until_ms=NOW + 5)
    budgets, caller, call = (
        of(raised, EACH),
        Caller(1, 3, 40, 0),
        CallRequest("m", GENERIC, Body(), CallSpec(user="ada")),
    )

    def found(at_ms: int) -> CallBudgets:
        if kept:
            return known.find_by_caller(budgets, caller, 2, Attribution(), call, at_ms)
        return known.find(budgets, CALL, at_ms)

    for ahead_ms in (10, 3_600_000, 400 * 86_400_000):
        before = found(NOW)
        assert found(NOW + ahead_ms).accounts[0].defined != before.accounts[0].defined
        again = found(NOW)
        assert [one.defined for one in again.accounts] == [one.defined for one in before.accounts]
        assert again.until_ms == before.until_ms
        assert found(NOW + 1) is again


def test_budgets_that_changed_are_found_anew() -> None:
    known = BudgetCache()
    before = known.find(of(MONTH), CALL, NOW)
    after = known.find(of(replace(MONTH, amount=1)), CALL, NOW)
    assert before.accounts[0].name == after.accounts[0].name
    assert before.accounts[0].defined != after.accounts[0].defined
    assert len(known) == 1


def test_a_callers_last_budgets_are_found_until_something_of_it_is_another() -> None:
    known, budgets = BudgetCache(), of(HOUR, EACH)
    caller, other, call = (
        Caller(1, 3, 40, 0),
        Caller(1, 3, 41, 0),
        CallRequest("m", GENERIC, Body(), CallSpec(user="eve")),
    )

    def found(by: Caller = caller, service_id: int = 2, user: str = "", at_ms: int = NOW) -> CallBudgets:
        return known.find_by_caller(budgets, by, service_id, Attribution(user), call, at_ms)

    first = found()
    assert first.names[1] == account_of(1, EACH, "eve")
    assert found() is first is found(at_ms=first.until_ms - 1)
    assert found(user="ada").names[1] == account_of(1, EACH, "ada")
    assert found() is first is found(other) is found(service_id=9)
    later = found(at_ms=first.until_ms)
    assert later.accounts[0].defined != first.accounts[0].defined
    budgets = of(replace(HOUR, amount=1), EACH)
    assert found().version is budgets.version


@pytest.mark.parametrize(
    "budget", [OPUS, SESSION, replace(MONTH, tool="search"), replace(MONTH, project_id=9)]
)
def test_calls_are_told_apart_by_all_that_decides(budget: Budget) -> None:
    known, budgets, caller = BudgetCache(), of(budget, EACH), Caller(1, 3, 40, 0)
    says = Attribution("ada", session="s", project_id=9)
    asks = CallRequest("m", GENERIC, Body(), CallSpec("claude-opus-4", mcp=McpMessage(tool="search")))
    for said, call in ((Attribution("ada"), CallRequest("m", GENERIC, Body())), (says, asks)):
        found = known.find_by_caller(budgets, caller, 2, said, call, NOW)
        asked = CallAttributes(*budgets.attributes_of(caller, 2, said, call))
        assert found.names == budgets.find(asked, NOW).names
    assert account_of(1, budget, "s") in found.names


def test_what_no_budget_asks_for_tells_no_calls_apart() -> None:
    caller, said = Caller(1, 3, 40, 0), Attribution("ada", project_id=9, session="s")
    call = CallRequest(
        "m", GENERIC, Body(), CallSpec("gpt-5", mcp=McpMessage("github", "search")), models_beside=("x",)
    )
    alike = of(MONTH).attributes_of(caller, 2, said, call)
    assert alike == of(HOUR).attributes_of(
        Caller(1, 4, 41, 0), 3, Attribution(), CallRequest("m", GENERIC, Body())
    )
    every = of(*(replace(MONTH, **{name: value}) for name, value in NAMES.items()), EACH, SESSION)
    assert every.attributes_of(caller, 2, said, call) == CallAttributes(
        3, 40, 2, "ada", 9, ("gpt-5", "x"), "s", "search", "github"
    )
    for name, value in NAMES.items():
        place = CallAttributes._fields.index("models" if name == "model" else name)
        asked = of(replace(MONTH, **{name: value})).attributes_of(caller, 2, said, call)
        assert asked[place]
        assert not any(each for at, each in enumerate(asked) if at != place)


@pytest.mark.parametrize(
    ("each", "asked"),
    [
        ("user", CallAttributes(0, 0, 0, "ada")),
        ("key", CallAttributes(0, 40, 0)),
        ("project", CallAttributes(0, 0, 0, "", 9)),
        ("session", CallAttributes(0, 0, 0, session="s")),
    ],
)
def test_whose_account_of_each_it_is_is_asked_for(each: str, asked: CallAttributes) -> None:
    said = Attribution("ada", project_id=9, session="s")
    call = CallRequest("m", GENERIC, Body(), CallSpec("gpt-5"))
    assert of(replace(MONTH, each=each)).attributes_of(Caller(1, 3, 40, 0), 2, said, call) == asked


def test_what_is_kept_is_bounded_and_the_latest_stays() -> None:
    known, budgets = BudgetCache(3 * (ENTRY_BYTES + ACCOUNT_BYTES)), of(EACH)
    first = known.find(budgets, CALL, NOW)
    for number in range(5):
        known.find(budgets, CALL._replace(user=f"u{number}"), NOW)
        assert known.find(budgets, CALL, NOW) is first
    assert len(known) == 3


def test_nothing_goes_for_a_call_that_nobody_makes() -> None:
    known, budgets = BudgetCache(ENTRY_BYTES + ACCOUNT_BYTES), of(EACH)
    first = known.find(budgets, CALL, NOW)
    other = CALL._replace(user="grace")
    assert known.find(budgets, other, NOW, remember=False).accounts == budgets.find(other, NOW).accounts
    assert known.find(budgets, CALL, NOW) is first


def test_organizations_share_nothing() -> None:
    known = BudgetCache()
    one, other = (known.find(of(MONTH, organization_id=which), CALL, NOW) for which in (1, 2))
    assert one.accounts[0].name != other.accounts[0].name


def test_a_call_of_too_many_accounts_is_not_let_past_one() -> None:
    many = [
        replace(MONTH, id=10 * length + tenant, model=f"{'gpt-5-mini'[:length]}*", tenant_id=tenant)
        for length in range(1, 10)
        for tenant in (0, 3)
    ]
    fitting = CALL._replace(models=("gpt-5-mini",))
    assert len(of(*many[:BUDGET_ACCOUNTS_MAX]).find(fitting, NOW).accounts) == BUDGET_ACCOUNTS_MAX
    with pytest.raises(TooManyBudgets, match="18 budgets, of 16"):
        of(*many).find(fitting, NOW)


def test_a_zone_nobody_knows_refuses() -> None:
    with pytest.raises(CountersUnavailable):
        of(replace(MONTH, time_zone="Moon/Tranquility")).find(CALL, NOW)


def test_a_caller_is_told_of_budgets_whatever_it_may_ask_for() -> None:
    served = replace(OPUS, id=6, service_id=77, model="")
    told = of(MONTH, MINE, EACH, OPUS, served, replace(MINE, id=7, user="bob")).of_caller(CALL)
    assert [one.id for _, one, _ in told] == [1, 3, 4, 5, 6]
    assert {one.id: name for name, one, _ in told}[4] == account_of(1, EACH, "ada")


def test_the_user_of_a_call_is_its_keys_own_first() -> None:
    caller, budgets = Caller(1, 3, 40, 0, user="eve"), of(EACH)
    call = CallRequest("m", GENERIC, Body(), CallSpec("gpt-5", user="dan"))
    assert budgets.attributes_of(caller, 2, Attribution("bob"), call)[3] == "eve"
    assert budgets.attributes_of(replace(caller, user=""), 2, Attribution("bob"), call)[3] == "bob"
    assert budgets.attributes_of(replace(caller, user=""), 2, Attribution(), call)[3] == "dan"


def test_a_window_is_named() -> None:
    found = of(MONTH).find(CALL, NOW)
    known, unknown = BudgetWindow(1, 5, 1, 0, 1), BudgetWindow(99, 5, 1, 0, 1)
    found.name_in(known)
    found.name_in(unknown)
    assert known == BudgetWindow(1, 5, 1, 0, 1, "all, a month", "EUR", "month")
    assert unknown.name == "99"


# --- tags -------------------------------------------------------------------------------------

SEARCH = Budget(7, "search", TOKENS, 10, "day", tags=(("feature", "search"), ("team", "red")))
FEATURES = Budget(8, "each feature", TOKENS, 10, "day", each="tag:feature")


def tagged(caller_tags: dict[str, str], said: dict[str, str], *budgets: Budget) -> list[str]:
    caller = Caller(1, 3, 40, 0, tags=tuple(caller_tags.items()))
    call, attribution = CallRequest("chat", GENERIC, Body()), Attribution(tags=tuple(said.items()))
    found = BudgetCache().find_by_caller(of(*budgets), caller, 2, attribution, call, NOW)
    return list(found.names)


def test_budget_of_tags_applies_to_calls_that_have_all() -> None:
    both = {"feature": "search", "team": "red", "more": "x"}
    assert tagged({}, both, SEARCH) == [account_of(1, SEARCH)]
    assert tagged({}, {"feature": "search"}, SEARCH) == []
    assert tagged({}, both | {"team": "Red"}, SEARCH) == []


def test_tags_of_key_go_before_tags_of_call() -> None:
    said = {"feature": "search", "team": "blue"}
    assert tagged({"team": "red"}, said, SEARCH) == [account_of(1, SEARCH)]
    assert tagged({"feature": "chat"}, said | {"team": "red"}, SEARCH) == []


def test_each_value_of_tag_has_account_and_calls_without_share_an_account() -> None:
    found = [tagged({}, {"feature": name} if name else {}, FEATURES) for name in ("a", "b", "a", "")]
    assert found == [[account_of(1, FEATURES, name)] for name in ("a", "b", "a", "")]
    assert len({names[0] for names in found}) == 3


def test_budget_of_tags_has_account_of_its_own() -> None:
    """An account without tags is called as before: it is counted on in Redis."""
    plain = replace(SEARCH, tags=())
    assert account_of(1, plain) == account_of(1, Budget(9, "other", TOKENS, 1, "day"))
    assert len({account_of(1, one) for one in (plain, SEARCH, replace(SEARCH, tags=SEARCH.tags[:1]))}) == 3


def test_tags_that_meet_too_many_budgets_are_named() -> None:
    many = [
        replace(
            SEARCH,
            id=n,
            tags=(("feature", "search"),),
            project_id=None,
            service_id=2 if n % 2 else 0,
            each=each,
        )
        for n, each in enumerate(
            ("", "", "user", "user", "key", "key", "project", "project", "session", "session"), 20
        )
    ]
    more = [replace(one, id=one.id + 20, tags=(("team", "red"),)) for one in many]
    assert len(tagged({}, {"feature": "search"}, *many, *more)) == 10
    with pytest.raises(
        TooManyBudgets, match=r"\(search, .*\): name fewer of the tags feature, team"
    ) as refused:
        tagged({}, {"feature": "search", "team": "red"}, *many, *more)
    assert refused.value.param == "x-tollkeeper-metadata"


def grouped(*budgets: Budget, members: list[tuple[str, str, int]], claimed: int = 9) -> OrganizationBudgets:
    """Budgets of an organization with these members of groups, and with a group by the claim `platform`."""
    kinds = tuple(sorted({kind for kind, _, _ in members}))
    table = b"".join(sorted(row_of(*member) for member in members))
    return OrganizationBudgets(1, budgets, "USD", Groups(GroupTerms(kinds, table, {"platform": (claimed,)})))


def test_budget_of_a_group_applies_to_calls_of_members_and_has_an_account_of_its_own() -> None:
    pool, each = replace(MONTH, group_id=5), replace(EACH, group_id=5)
    budgets = grouped(MONTH, pool, each, members=[("user", "ada", 5), ("user", "bob", 5)])
    known, caller, call = BudgetCache(), Caller(1, 3, 40, 0), CallRequest("m", GENERIC, Body())
    names = {
        user: known.find_by_caller(budgets, caller, 2, Attribution(user), call, NOW).names
        for user in ("ada", "bob", "eve")
    }
    shared = account_of(1, MONTH), account_of(1, pool)
    assert len({*shared, account_of(1, replace(MONTH, group_id=6))}) == 3
    assert names["ada"] == (*shared, account_of(1, each, "ada"))
    assert names["bob"] == (*shared, account_of(1, each, "bob"))
    assert names["eve"] == (account_of(1, MONTH),)
    assert budgets.by_caller


def test_budget_of_a_group_of_projects_applies_by_the_project_of_each_call() -> None:
    budgets = grouped(replace(MONTH, group_id=5), members=[("project", "7", 5)])
    known, caller, call = BudgetCache(), Caller(1, 3, 40, 0), CallRequest("m", GENERIC, Body())
    found = [
        len(known.find_by_caller(budgets, caller, 2, Attribution(project_id=project), call, NOW).accounts)
        for project in (7, 8, None, 7)
    ]
    assert found == [1, 0, 0, 1]


def test_call_with_a_claim_of_a_seventeenth_budget_is_refused_with_its_groups() -> None:
    groups = range(1, BUDGET_ACCOUNTS_MAX + 1)
    budgets = grouped(
        *(replace(MONTH, id=group, group_id=group) for group in (*groups, 99)),
        members=[("user", "ada", group) for group in groups], claimed=99,
    )  # fmt: skip
    call, plain = CallRequest("m", GENERIC, Body()), Caller(1, 3, 40, 0)
    asked = budgets.attributes_of(plain, 2, Attribution("ada"), call)
    assert len(budgets.find(CallAttributes(*asked), NOW).accounts) == BUDGET_ACCOUNTS_MAX
    asked = budgets.attributes_of(replace(plain, claims=("platform",)), 2, Attribution("ada"), call)
    with pytest.raises(TooManyBudgets, match=r"\(all, a month, .*\): .* groups 1, 2, .*, 16, 99") as caught:
        budgets.find(CallAttributes(*asked), NOW)
    assert (caught.value.status, caught.value.reason) == (400, "too_many_budgets")


def test_override_of_a_group_limits_calls_of_members_until_its_end() -> None:
    """Each has 10: Ada, a member by hand, has 3 for five milliseconds; a caller with the claim has no limit."""
    groups = {"group:5": PersonalOverride(3, NOW + 5), "group:9": PersonalOverride(None)}
    budgets = grouped(replace(EACH, overrides=groups), members=[("user", "ada", 5)])
    known, call = BudgetCache(), CallRequest("m", GENERIC, Body())
    plain, claiming = Caller(1, 3, 40, 0), Caller(1, 3, 40, 0, claims=("platform",))

    def find(caller: Caller, user: str, at_ms: int = NOW) -> CallBudgets:
        return known.find_by_caller(budgets, caller, 2, Attribution(user), call, at_ms)

    assert [limits_of(find(plain, "ada", NOW + at)) for at in (0, 4, 5)] == [[3], [3], [10]]
    assert limits_of(find(plain, "eve")) == [10]
    assert [account.enforced for user in ("eve", "ada") for account in find(claiming, user).accounts] == [
        False,
        True,
    ]
    assert limits_of(find(claiming, "ada")) == [3]
    [(name, budget, ids)] = budgets.of_caller(CALL._replace(user="ada", groups=(5, 9)))
    assert budget.limit_of(owner_in(name), NOW, ids)[:2] == (3, "group")


def test_definitions_of_accounts_have_the_limits_of_owners_now() -> None:
    """Each has 10: Ada has 3, her group 2, and the shared account neither; the account of a deleted budget has none."""
    overrides = {"group:5": PersonalOverride(2), "group:6": PersonalOverride(4)}
    each = replace(EACH, overrides=overrides | {owner_of("ada"): PersonalOverride(3)})
    names = [account_of(1, one, user) for one, user in ((each, "ada"), (each, "bob"), (HOUR, ""), (MINE, ""))]
    names.append(f"{names[0].partition(':')[0]}:other")
    *known, deleted, shared = of(each, HOUR).definitions(names, (5,), NOW)
    assert [DEFINED_WINDOW.read(one)["limit"] for one in (*known, shared)] == [3, 2, 100, 10]
    assert deleted == b""
