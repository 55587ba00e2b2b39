"""Explains a budget by a sentence, and by how often it would have refused calls lately.

Past use is read from the roll-ups, in a bounded number of rows, for whole UTC days.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from pydantic import ValidationError

from gateway.admin.console.formatting import (
    WHOLE,
    amount,
    budget_selector,
    each_in_words,
    limit_of,
    limit_text,
    minute,
    references,
)
from gateway.admin.console.home import ConsoleShell, query
from gateway.admin.console.screens import SCREENS
from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_selectors import SELECTING
from gateway.core.accounts.budgets import ENFORCE, MONEY
from gateway.core.accounts.intervals import INTERVALS, TOTAL
from gateway.core.accounts.steps import SWITCH
from gateway.core.accounts.tags import TAG, tag_in
from gateway.core.accounts.usage import UsageQuery, column_of, end_of
from gateway.core.accounts.window_words import render_window
from gateway.core.accounts.windows import CALENDAR, FIRST_USE, ROLLING
from gateway.errors import StoreUnavailable, TollkeeperError, Unprocessable

ROWS_MAX = 5_000
# The groups of usage reports for budgets with an account for each user, key, project or tenant.
GROUPS_EACH = {"user": "user", "key": "api_key", "project": "project", "tenant": "tenant"}
# Overrides that the sentence of a budget names.
OVERRIDES_NAMED = 3
# The end of a refusal by a window with a length.
_END_OF = {ROLLING: "enough is free again", FIRST_USE: "the window that a first call began is over"}
_MEASURES = {MONEY: "cost", "tokens": "tokens", "requests": "requests"}
# Selectors that the roll-ups do not distinguish.
_UNKNOWN = frozenset(SELECTING) - {"tenant_id", "user", "api_key_id", "project_id", "model", "service_id"}


def sentence_of(budget: Row, of: str) -> str:
    """Return the sentence of a budget: its limit and the effect of reaching it; `of` is its selector."""
    scope = budget.get("each")
    who = f"Each {each_in_words(scope)}" if scope else "All calls together"
    whose = "" if of in {WHOLE, f"each {scope}"} else f" of {of.removesuffix(f', each {scope}')}"
    until = _END_OF.get(str(budget.get("window", CALENDAR)), f"the next {budget['interval']} begins")
    if budget["interval"] == TOTAL:
        until = "somebody raises or resets it"
    then = "Alerts are sent, and no call is refused."
    if budget.get("mode", ENFORCE) == ENFORCE:
        then = f"A call that does not fit is refused (429) until {until}."
    return f"{who}{whose} may use {limit_text(budget)} {render_window(budget)}. {then}"


def further_sentences(budget: Row) -> list[str]:
    """Return the sentences on a budget's carry-over and steps."""
    carry, steps = cast("Row", budget.get("carry") or {}), cast("Sequence[Row]", budget.get("steps") or ())
    sentences = []
    if carry:
        debt = ", and use beyond it is taken off" if carry.get("debt") else ""
        left = f"Up to {amount(budget, carry['max'])} of the rest goes on into the next {budget['interval']}"
        sentences.append(f"{left}{debt}.")
    for step in steps:
        models = cast("Mapping[str, str]", step["models"])
        pairs = ", ".join(f"{pattern} as {name}" for pattern, name in models.items())
        running = (
            "running sessions too" if step.get("session") == SWITCH else "running sessions stay while it fits"
        )
        sentences.append(
            f"From {100 * float(str(step['at'])):g} % on, models are sent as others: {pairs}; {running}."
        )
    if steps and budget.get("mode", ENFORCE) != ENFORCE:
        sentences.append("As it only counts, its steps are not taken.")
    return sentences


def override_sentence(budget: Row, shown: Sequence[Any], more: bool) -> str:
    """Return the sentence on who has another limit; `shown` are owners, names, amounts and overrides."""
    limits = [
        f"{name or who} {'has no limit' if own['amount'] is None else f'may use {limit}'}"
        + (f" until {minute(own['until'])}" if own["until"] else "")
        for who, name, limit, own in shown[:OVERRIDES_NAMED]
    ]
    limits += ["others have other limits too"] if more or len(shown) > OVERRIDES_NAMED else []
    return f"{'; '.join(limits)}." if limits else ""


async def meaning_of(desk: ConsoleShell, budget: Row) -> list[str]:
    """Return the sentences on a stored or typed budget: its meaning, and its effect on past use."""
    resource = SCREENS["budgets"].resource
    names = await desk.names(references(SCREENS["budgets"], [budget]))
    targets = {name: resource.target(name) for name in SELECTING}
    whole = {**dict.fromkeys((*SELECTING, "each", "interval")), **budget}
    sentences = [sentence_of(whole, budget_selector(whole, names, targets)), *further_sentences(whole)]
    past = await _past(desk, whole)
    return [*sentences, past] if past else sentences


async def with_owner(desk: ConsoleShell, budget: Row) -> Row:
    """Return a typed budget with its organization, which follows from the actor or the tenant."""
    actor = desk.ports.actor
    if actor.organization_id is not None:
        return {"organization_id": actor.organization_id, **budget}
    if "organization_id" not in budget and isinstance(budget.get("tenant_id"), int):
        tenant = await desk.ports.store.get("tenants", int(str(budget["tenant_id"])))
        budget = {**budget, "organization_id": tenant["organization_id"]}
    return budget


async def typed(desk: ConsoleShell, sent: Row) -> list[str]:
    """Return the sentences on an incomplete form; none while a field is missing or invalid."""
    try:
        budget = await with_owner(desk, sent)
        needs, lacks = (
            ("interval", "length") if budget.get("window", CALENDAR) == CALENDAR else ("length", "interval")
        )
        is_whole = all(budget.get(name) for name in ("organization_id", "amount", "unit", needs))
        if not is_whole or budget.get(lacks) or _is_wrong(budget):
            return []
        if any(isinstance(budget.get(name), str) for name in SELECTING if name.endswith("_id")):
            return []
        owner = await desk.whole.ports.store.get("organizations", int(str(budget["organization_id"])))
        limit = Decimal(str(budget["amount"]))
        if limit <= 0 or (budget["unit"] != MONEY and limit != int(limit)):
            return []
        return await meaning_of(desk, {**budget, "currency": owner["currency"]})
    except (ArithmeticError, ValueError, TollkeeperError):
        return []


def _is_wrong(budget: Row) -> bool:
    """Return whether a typed budget's window, carry-over or steps are not those of a budget."""
    model = SCREENS["budgets"].resource.create
    assert model is not None
    try:
        model.model_validate(budget)
    except ValidationError as error:
        return any(
            fault["loc"][0] in {"window", "interval", "length", "carry", "steps"} for fault in error.errors()
        )
    return False


async def _past(desk: ConsoleShell, budget: Row) -> str:
    """Return a sentence on how often a budget would have refused lately; "" if usage reports cannot tell."""
    interval, scope = INTERVALS.get(str(budget["interval"])), budget["each"]
    past = None if interval is None else interval.past
    if past is None or any(budget.get(name) is not None for name in _UNKNOWN):
        return ""
    if scope is not None and not _group_of(scope):
        return ""
    days, by = past
    end = end_of("day", datetime.now(UTC)) - timedelta(days=1)
    groups = (_group_of(scope),) if scope else ()
    filters = await _filters(desk, budget)
    if filters is None:
        return ""
    model = str(budget["model"] or "").casefold()
    asked = UsageQuery(
        end - timedelta(days=days), end, by, (*groups, *(["model"] if model else [])), filters, ROWS_MAX + 1
    )
    try:
        rows = await desk.ports.store.used(asked)
    except (Unprocessable, StoreUnavailable):
        return ""
    if len(rows) > ROWS_MAX:
        return ""
    return _sentence_of_past(budget, rows, days, model)


def _group_of(scope: object) -> str:
    """Return the group of usage reports that has each account of a budget; "" if there is none."""
    return GROUPS_EACH.get(str(scope), str(scope) if tag_in(str(scope)) else "")


def _sentence_of_past(budget: Row, rows: object, days: int, model: str) -> str:
    assert isinstance(rows, (list, tuple))
    scope, measure, limit = budget["each"], _MEASURES[str(budget["unit"])], Decimal(str(limit_of(budget)))
    used: dict[tuple[object, object], Decimal] = defaultdict(Decimal)
    for row in rows:
        who = row[column_of(_group_of(scope))] if scope else ""
        if who is None or (measure == "cost" and row["currency"] != budget["currency"]):
            continue
        name = str(row.get("model") or "").casefold()
        if model and not (name.startswith(model[:-1]) if model.endswith("*") else name == model):
            continue
        used[row["start"], who] += Decimal(str(row[measure]))
    lately, whole = f"In the last {days} days", sum(used.values(), Decimal(0))
    if not whole:
        return f"{lately} there was no such use."
    beyond = {key: sum_ - limit for key, sum_ in used.items() if sum_ > limit}
    if not beyond:
        return f"{lately} it would have refused nothing: the most was {amount(budget, max(used.values()))}."
    people = len({who for _, who in beyond})
    owners = len({who for _, who in used})
    whom = f" for {people} of {owners} {each_in_words(scope, many=True)}" if scope else ""
    return (
        f"{lately} it would have been used up {len(beyond)} {'time' if len(beyond) == 1 else 'times'}{whom}:"
        f" {amount(budget, sum(beyond.values(), Decimal(0)))} of {amount(budget, whole)} came after that."
    )


async def _filters(desk: ConsoleShell, budget: Row) -> Mapping[str, object] | None:
    """Return the usage filters for the calls that a budget selects; None if it names an unknown user."""
    names = ("organization_id", "tenant_id", "api_key_id", "project_id", "service_id")
    filters = {name: budget[name] for name in names if budget.get(name) is not None}
    tags = budget.get("tags") or {}
    assert isinstance(tags, dict)
    filters |= {TAG + name: value for name, value in tags.items()}
    if budget["user"] is None:
        return filters
    own = {"organization_id": budget["organization_id"], "external_id": budget["user"]}
    users, _ = await desk.operations["users"].list(query(1, newest_first=False, **own))
    return {**filters, "user_id": users[0]["id"]} if users else None
