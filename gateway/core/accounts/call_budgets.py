"""Which budgets a call uses: all of its organization's that match, found once and cached. Pure.

A call cannot escape a budget by leaving out a value or sending many: a call that would use more accounts than
the maximum is refused.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, cast

from gateway.core.accounts.budgets import (
    BUDGET_ACCOUNTS_MAX,
    DEFINED_WINDOW,
    FLAG_ENFORCE,
    KEY,
    LIKELY,
    MAXIMUM,
    OTHERS,
    PROJECT,
    SESSION,
    TENANT,
    USER,
    Budget,
    CallAttributes,
    account_of,
    accounts_of,
    define_windows,
    have_own,
    owner_in,
    windows_valid_until,
)
from gateway.core.accounts.groups import Groups
from gateway.core.accounts.runs import FIELD, Run
from gateway.core.accounts.steps import BudgetSteps, Step
from gateway.core.accounts.tags import METADATA_FIELD, Tags, tag_in, tags_of
from gateway.core.calls.call import CallRequest
from gateway.core.lru import LruCache, LruEntry
from gateway.core.model import Attribution, BudgetAccount, BudgetWindow, Caller
from gateway.core.times import UnknownZone
from gateway.errors import CountersUnavailable, TooManyBudgets

# Bytes of one worker's cache; bytes of an entry, and of each account in it (measured).
CALLS_BYTES_MAX: Final = 32 * 1024 * 1024
ENTRY_BYTES: Final = 1_024
ACCOUNT_BYTES: Final = 256
# Slots of a direct-mapped cache by caller, consulted before the cache by all attributes; a prime.
CALLERS_MAX: Final = 1_021


# The attributes that select the budgets of a call: the fields of `CallAttributes`.
Said = tuple[
    int, int, int, str, int | None, tuple[str, ...], str, str, str, Tags, tuple[int, ...]
]  # fmt: skip


class BudgetsVersion:
    """A version of an organization's budgets, equal to itself alone."""

    __slots__ = ()


@dataclass(slots=True)
class CallBudgets(LruEntry):
    """The accounts that calls with the same attributes use, from `since_ms` until `until_ms` (0: for ever).

    `names` are the names of `accounts`. Their windows count `units`, and refuse calls by those in `enforced`.
    `by_id` has all budgets of the organization, and `currency` is that of their money. `version` is that of
    the organization's budgets from which this was built. `hold` is how much of a call is held: `maximum` if a
    budget says so, else `likely` if one does, else empty: then the tenant's plan decides. `steps` are those of
    the budgets that can refuse calls.
    """

    accounts: tuple[BudgetAccount, ...]
    names: tuple[str, ...]
    since_ms: int
    until_ms: int
    units: frozenset[str]
    enforced: frozenset[str]
    by_id: Mapping[int, Budget]
    currency: str
    version: BudgetsVersion
    hold: str = ""
    steps: BudgetSteps = ()

    def holds_at(self, now_ms: int) -> bool:
        """Return whether these accounts are valid at `now_ms` (Unix ms).

        They are not before `since_ms` either, because a clock may have been set back.
        """
        return _holds_at(now_ms, self.since_ms, self.until_ms)

    def refusing(self, unit: str) -> str:
        """Return the name of an enforced budget in `unit`, which can refuse calls; empty if there is none."""
        for account in self.accounts:
            for window in DEFINED_WINDOW.struct.iter_unpack(account.defined):
                budget = self.by_id.get(int(window[0]))
                if budget is not None and window[-1] & FLAG_ENFORCE and budget.unit == unit:
                    return budget.name
        return ""

    def name_in(self, window: BudgetWindow) -> None:
        """Set the name, kind, reset interval and currency of a window."""
        budget = self.by_id.get(window.budget_id)
        window.name = self.name_of(window.budget_id)
        if budget is not None:
            window.kind, window.interval = budget.window, budget.interval
        window.currency = self.currency

    def name_of(self, budget_id: int) -> str:
        """Return the name of a budget, or its id if it is unknown."""
        budget = self.by_id.get(budget_id)
        return str(budget_id) if budget is None else budget.name


class _CallerEntry:
    """A cache entry: the budgets of a caller's last call, with its service and user."""

    __slots__ = ("budgets", "caller", "service_id", "user")

    def __init__(self, caller: Caller, service_id: int, user: str, budgets: CallBudgets) -> None:
        self.caller, self.service_id, self.user, self.budgets = caller, service_id, user, budgets


class CallerBudget(NamedTuple):
    """A budget of a caller: the name of its account there, and the ids of the caller's `groups`."""

    account: str
    budget: Budget
    groups: tuple[int, ...] = ()


class OrganizationBudgets:
    """The budgets of one organization, in groups that share an account; `callers` are the groups of its callers.

    Budgets of a call name the `version` of these, an object without contents: so cached calls keep no raises
    or overrides alive that a later version replaced.
    """

    __slots__ = (
        "_by_id", "_callers_groups", "_defined", "_groups", "_has_own", "_says", "_some", "_tags", "by_caller", "currency",
        "organization_id", "version",
    )  # fmt: skip

    def __init__(
        self, organization_id: int, budgets: Sequence[Budget], currency: str, callers: Groups | None = None
    ) -> None:
        self.organization_id, self.currency, self._callers_groups = organization_id, currency, callers
        self.version = BudgetsVersion()
        self._groups = accounts_of(budgets)
        # Whether a group has raises or overrides of single owners.
        self._has_own = [any(budget.has_own for budget in group) for group in self._groups]
        # The windows of each group: valid since, valid until, and packed.
        self._defined: list[tuple[int, int, bytes] | None] = [None] * len(self._groups)
        self._says = _says(budgets)
        self._tags = _tags_in(budgets)
        # Sets that many calls share are stored once.
        self._by_id = {
            budget.id: replace(budget, raises={}, overrides={}) if budget.has_own else budget
            for budget in budgets
        }
        self._some: dict[frozenset[str], frozenset[str]] = {}
        # Whether only tenant, key, service and user matter: the first four fields of `Said`, and groups by these.
        by_project = callers is not None and callers.by_project and self._says[-1]
        self.by_caller = not (any(self._says[4:-1]) or self._tags or by_project)

    def attributes_of(
        self, caller: Caller, service_id: int, attribution: Attribution, call: CallRequest
    ) -> Said:
        """Return the attributes by which a call selects its budgets, empty where no budget depends on them.

        They come from the API key of `caller`, from header fields (`attribution`) and from the body
        (`call`).
        """
        tenant, key, service, user, project, models, session, tool, server, group = self._says
        return (
            caller.tenant_id if tenant else 0,
            caller.key_id if key else 0,
            service_id if service else 0,
            caller.acts_for(attribution.user, call.spec.user) if user else "",
            attribution.project_id if project else None,
            (call.spec.model, *call.models_beside, *[target.model for target in call.aim.targets])
            if models
            else (),
            attribution.session if session else "",
            call.spec.mcp.tool if tool else "",
            call.spec.mcp.server if server else "",
            tags_of(self._tags, caller.tags, attribution.tags) if self._tags else (),
            self.groups_of(caller, attribution, call.spec.user) if group else (),
        )

    def groups_of(self, caller: Caller, attribution: Attribution, in_body: str = "") -> tuple[int, ...]:
        """Return the ids of the groups that a call of `caller`, attributed as `attribution`, is in."""
        if self._callers_groups is None:
            return ()
        return self._callers_groups.of(
            caller, caller.acts_for(attribution.user, in_body), attribution.project_id
        )

    def find(self, asked: CallAttributes, now_ms: int) -> CallBudgets:
        """Return the budgets that apply to a call with the attributes `asked` at `now_ms` (Unix ms).

        Raise `TooManyBudgets` if their accounts are more than a call may use. The checks in
        `budgets.py` prevent that for calls with one model.
        """
        accounts: list[BudgetAccount] = []
        units, enforced, holds = set[str](), set[str](), set[str]()
        since, ends, steps = 0, list[int](), list[tuple[int, tuple[Step, ...]]]()
        for place, group in enumerate(self._groups):
            first = group[0]
            if not first.matches(asked):
                continue
            begun, until, packed = self._definition(place, now_ms)
            name, usual = account_of(self.organization_id, first, first.value_of(asked)), b""
            enforcing = [budget for budget in group if budget.enforce]
            if self._has_own[place] and have_own(group, owner := owner_in(name), asked.groups):
                usual = packed
                begun, until, packed = _defined_at(group, now_ms, owner, asked.groups)
                enforcing = [
                    budget
                    for budget in enforcing
                    if budget.limit_of(owner, now_ms, asked.groups).amount is not None
                ]
            if first.each and any(budget.carry is not None for budget in group):
                usual = _defined_at(group, now_ms, OTHERS)[2]
            since = max(since, begun)
            accounts.append(BudgetAccount(name, packed, bool(enforcing), usual))
            units.update([budget.unit for budget in group])
            enforced.update([budget.unit for budget in enforcing])
            steps += [(budget.id, budget.steps) for budget in enforcing if budget.steps]
            holds.update([budget.hold for budget in group])
            ends += [until] if until else []
        if len(accounts) > BUDGET_ACCOUNTS_MAX:
            raise self._exceeding(asked, len(accounts))
        return CallBudgets(
            tuple(accounts),
            tuple([account.name for account in accounts]),
            since,
            min(ends, default=0),
            self._same(frozenset(units)),
            self._same(frozenset(enforced)),
            self._by_id,
            self.currency,
            self.version,
            MAXIMUM if MAXIMUM in holds else LIKELY if LIKELY in holds else "",
            tuple(steps),
        )

    def _exceeding(self, asked: CallAttributes, count: int) -> TooManyBudgets:
        """Return the error of a call that meets too many budgets; it names them, and tags or groups behind it."""
        most = BUDGET_ACCOUNTS_MAX
        met = [group[0] for group in self._groups if group[0].matches(asked)]
        by_tags = {name for first in met for name, _ in first.tags}
        if by_tags and sum(not first.tags for first in met) <= most:
            what, param = f"name fewer of the tags {', '.join(sorted(by_tags))}", METADATA_FIELD
        elif len(asked.models) > 1 or not asked.groups:
            what, param = "ask for fewer models", "model"
        else:
            ids = ", ".join(map(str, asked.groups))
            what, param = f"its caller is in the groups {ids}, leave some of these", "model"
        names = ", ".join([first.name for first in met[: most + 1]])
        return TooManyBudgets(
            f"This call would take from {count} budgets, of {most} at most ({names}): {what}.", param=param
        )

    def _same(self, units: frozenset[str]) -> frozenset[str]:
        return self._some.setdefault(units, units)

    def of_caller(self, asked: CallAttributes) -> list[CallerBudget]:
        """Return all budgets that a caller's calls may use, whatever they ask for."""
        caller_budgets = list[CallerBudget]()
        for group in self._groups:
            first = group[0]
            models = (first.model,) if first.model else ()
            mine = asked._replace(
                models=models, service_id=first.service_id, tool=first.tool, server=first.server
            )
            if first.matches(mine):
                name = account_of(self.organization_id, first, first.value_of(mine))
                caller_budgets += [CallerBudget(name, budget, asked.groups) for budget in group]
        return caller_budgets

    def definitions(self, names: Iterable[str], groups: tuple[int, ...], now_ms: int) -> tuple[bytes, ...]:
        """Return the windows of these accounts at `now_ms` (Unix ms), packed; empty for one of no budget here.

        Owners are in these `groups`.
        """
        places = {
            account_of(self.organization_id, group[0]).partition(":")[0]: place
            for place, group in enumerate(self._groups)
        }
        packed = list[bytes]()
        for name in names:
            place, owner = places.get(name.partition(":")[0]), owner_in(name)
            if place is None:
                packed.append(b"")
            elif owner == OTHERS or (self._has_own[place] and have_own(self._groups[place], owner, groups)):
                packed.append(_defined_at(self._groups[place], now_ms, owner, groups)[2])
            else:
                packed.append(self._definition(place, now_ms)[2])
        return tuple(packed)

    def _definition(self, place: int, now_ms: int) -> tuple[int, int, bytes]:
        known = self._defined[place]
        if known is None or not _holds_at(now_ms, known[0], known[1]):
            known = self._defined[place] = _defined_at(self._groups[place], now_ms)
        return known


def _defined_at(
    alike: Sequence[Budget], now_ms: int, owner: str = "", groups: Collection[int] = ()
) -> tuple[int, int, bytes]:
    """Return windows of budgets with equal selectors: valid since, valid until (Unix ms), and packed.

    They are those of an `owner` in these `groups`.
    """
    try:
        until_ms = windows_valid_until(alike, now_ms, owner, groups)
        return now_ms, until_ms, define_windows(alike, now_ms, owner, groups)
    except (UnknownZone, ValueError) as error:
        why = f"When a window of the budget {alike[0].name} begins is not known here."
        raise CountersUnavailable(why) from error


def _holds_at(now_ms: int, since_ms: int, until_ms: int) -> bool:
    return since_ms <= now_ms and not 0 < until_ms <= now_ms


def with_runs(budgets: CallBudgets, run: Run) -> CallBudgets:
    """Return the budgets of a call with its run and the run's parents added.

    Raise `TooManyBudgets` if their accounts are more than a call may use.
    """
    chain = (run, *run.parents)
    accounts = (*budgets.accounts, *[run.account for run in chain])
    if len(accounts) > BUDGET_ACCOUNTS_MAX:
        count, most = len(accounts), BUDGET_ACCOUNTS_MAX
        raise TooManyBudgets(
            f"This call would take from {count} budgets and runs, of {most} at most: open its run at a "
            "higher level.",
            param=FIELD,
        )
    windows = [window for run in chain for window in run.budgets]
    return replace(
        budgets,
        accounts=accounts,
        names=tuple([account.name for account in accounts]),
        units=budgets.units.union([window.unit for window in windows]),
        enforced=budgets.enforced.union([window.unit for window in windows if window.enforce]),
        by_id=ChainMap({window.id: window for window in windows}, cast("dict[int, Budget]", budgets.by_id)),
    )


class BudgetCache:
    """A worker's cache of the budgets found for recent calls, of all organizations."""

    __slots__ = ("_last", "known")

    def __init__(self, bytes_max: int = CALLS_BYTES_MAX) -> None:
        self.known: LruCache[tuple[int, Said, int], CallBudgets] = LruCache(bytes_max)
        self._last: list[_CallerEntry | None] = [None] * CALLERS_MAX

    def find_by_caller(  # noqa: PLR0917  # a call, its caller, and the time
        self, budgets: OrganizationBudgets, caller: Caller, service_id: int, attribution: Attribution,
        call: CallRequest, now_ms: int,
    ) -> CallBudgets:  # fmt: skip
        """Return the budgets of a call at `now_ms` (Unix ms), reusing the caller's last ones if valid.

        If `budgets.by_caller` is true, only caller, service and user select budgets: then the result
        for the caller's last call is reused while it is valid, if service and user are the same.
        `attribution` are the attributes in header fields. Raise `TooManyBudgets` if the accounts are more
        than a call may use.
        """
        user, place = caller.acts_for(attribution.user, call.spec.user), caller.key_id % CALLERS_MAX
        if not budgets.by_caller:
            return self.find(budgets, budgets.attributes_of(caller, service_id, attribution, call), now_ms)
        last = self._last[place]
        if (
            last is not None and last.caller is caller and last.budgets.version is budgets.version
            and last.service_id == service_id and last.user == user
            and last.budgets.holds_at(now_ms)
        ):  # fmt: skip
            return last.budgets
        accounts = self.find(budgets, budgets.attributes_of(caller, service_id, attribution, call), now_ms)
        self._last[place] = _CallerEntry(caller, service_id, user, accounts)
        return accounts

    def find(  # a call's attributes, and the time
        self,
        budgets: OrganizationBudgets,
        asked: Said,
        now_ms: int,
        remember: bool = True,
        run: Run | None = None,
    ) -> CallBudgets:
        """Return the budgets of a call, from the cache while its entry is valid at `now_ms` (Unix ms).

        `asked` are the call's attributes. The accounts of `run` are added. Without `remember` the
        result is not stored, so no entry is evicted for it.
        """
        key = budgets.organization_id, asked, 0 if run is None else run.budget_id
        accounts = self.known.find(key)
        if accounts is None or accounts.version is not budgets.version or not accounts.holds_at(now_ms):
            accounts = budgets.find(CallAttributes(*asked), now_ms)
            if run is not None:
                accounts = with_runs(accounts, run)
            if remember:
                self.known.put(key, accounts, ENTRY_BYTES + ACCOUNT_BYTES * len(accounts.accounts))
        return accounts

    def __len__(self) -> int:
        return len(self.known)


def _tags_in(budgets: Sequence[Budget]) -> tuple[str, ...]:
    """Return the names of tags on which one of `budgets` depends."""
    names = {name for budget in budgets for name, _ in budget.tags} | {
        tag_in(budget.each) for budget in budgets
    }
    return tuple(sorted(names - {""}))


def _says(budgets: Sequence[Budget]) -> tuple[bool, ...]:
    """Return for each field of `CallAttributes` but tags whether a budget depends on it, in order."""
    kinds = {budget.each for budget in budgets}
    return (
        any(budget.tenant_id for budget in budgets) or TENANT in kinds,
        any(budget.api_key_id for budget in budgets) or KEY in kinds,
        any(budget.service_id for budget in budgets),
        any(budget.user for budget in budgets) or USER in kinds,
        any(budget.project_id is not None for budget in budgets) or PROJECT in kinds,
        any(budget.model for budget in budgets),
        SESSION in kinds,
        any(budget.tool for budget in budgets),
        any(budget.server for budget in budgets),
        any(budget.has_groups for budget in budgets),
    )
