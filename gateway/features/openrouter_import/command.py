"""`tollkeeper import openrouter`: translates guardrails of OpenRouter into budgets and lists of models.

A guardrail limits each of its members and each of its keys alone. The default guardrail of a workspace limits
everybody in it, and what others allow beyond it has no effect. Fields are those of @openrouter/sdk 1.3.19 of 22 August
2026.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.admin.budget_import import (
    Names,
    NoLimit,
    NotTranslated,
    Org,
    Organization,
    choose,
    read_amount,
    title_of,
    translate_all,
)
from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.imports import EVERYBODY, Pages, read_rows
from gateway.cli.admin.output import AsJson
from gateway.core.accounts import groups
from gateway.core.accounts.budgets import KEY, MONEY, OF_GROUP, USER
from gateway.core.accounts.intervals import DAY, MONTH, TOTAL, WEEK
from gateway.core.families.registry import ALL

RESETS = {None: TOTAL, "daily": DAY, "weekly": WEEK, "monthly": MONTH}
# Who has an amount alone, and the kind of a group of these.
KINDS = {USER: groups.USER, KEY: groups.API_KEY}
# Fields that are translated, or that are no setting.
KNOWN = (
    "id", "name", "workspace_id", "created_at", "updated_at",
    "limit_usd", "reset_interval", "allowed_models", "include_byok_in_budgets",
)  # fmt: skip
# Fields that limit no use. Any other field may.
HARMLESS = (
    "description", "allowed_providers", "ignored_providers", "content_filters", "content_filter_builtins", "enforce_zdr",
    "enforce_zdr_google", "enforce_zdr_other", "enforce_zdr_xai", *(f"enforce_zdr_{family.name}" for family in ALL),
    "enable_free_model_publication", "enable_paid_model_training",
)  # fmt: skip
KNOWN_OF_ASSIGNMENTS = (
    "id", "guardrail_id", "user_id", "organization_id", "key_hash", "key_name", "key_label", "assigned_by", "created_at",
)  # fmt: skip

# Rows of a list with their places.
Rows = Sequence[tuple[str, Json]]


def add_guardrails(made: Organization, rows: Rows, members: Rows, keys: Rows, default: str | None) -> None:
    """Add all guardrails, with their assignments to `members` and `keys`.

    `default` is the name or id of the default one, if it is known.
    """
    chosen = [pair for pair in rows if default and default in (pair[1].get("id"), pair[1].get("name"))]
    if default and len(chosen) != 1:
        raise CommandFailed(f"--default {default}: must be the id of one guardrail, or a name of one alone.")
    ids = {str(row.get("id")) for _, row in rows}
    users_of, keys_of = _assign(made, members, "user_id", ids), _assign(made, keys, "key_hash", ids)
    usual: dict[str, Json] = {}
    for place, row in chosen:
        with made.translating(place, row, KNOWN, HARMLESS, _keys_near(made, row)):
            usual = translate_default(made, row)
    if len({str(row.get("workspace_id")) for _, row in rows}) > 1:
        usual = {}  # others count in all workspaces, the default one in its own
    for place, row in [pair for pair in rows if pair not in chosen]:
        users, names = users_of[str(row.get("id"))], keys_of[str(row.get("id"))]
        limits = partial(list[str], names) if names else _keys_near(made, row)
        limits = made.keys_of if users else limits
        with made.translating(place, row, KNOWN, HARMLESS, limits):
            if not users and not names:
                why = "nobody is assigned to it: name it with --default if it is a workspace's own"
                limits_none = row.get("limit_usd") is None and not row.get("allowed_models")
                is_known = row.get("workspace_id") in [other.get("workspace_id") for _, other in chosen]
                raise (NoLimit if limits_none or is_known else NotTranslated)("", why)
            translate(made, row, users, [name for name in names if name not in made.barred], usual)
    if any(users_of.values()):
        unowned = [name for name in chain(*keys_of.values()) if name not in made.makers]
        why = "members have guardrails, and no list has its creator_user_id"
        made.lost.append(("--names", why, lambda: unowned))


def _keys_near(made: Organization, guardrail: Json) -> Callable[[], list[str]]:
    return partial(made.keys_of, [EVERYBODY, made.name_of(guardrail.get("workspace_id"))])


def _assign(made: Organization, rows: Rows, field: str, ids: Collection[str]) -> Mapping[str, list[str]]:
    """Return the names of those that are assigned to guardrails, by the `ids` of these."""
    assigned = defaultdict[str, list[str]](list)
    for place, row in rows:
        guardrail, who = row.get("guardrail_id"), row.get(field)
        name = made.name_of(who, row.get("key_name")) if isinstance(who, str) else ""
        # Nobody knows which keys a member has.
        limits = partial(list[str], [name]) if name and field == "key_hash" else made.keys_of
        with made.translating(place, row, KNOWN_OF_ASSIGNMENTS, (), limits):
            if str(guardrail) not in ids:
                raise NotTranslated("guardrail_id", "must be the id of a guardrail in these files")
            if not name or not who:
                raise NotTranslated(field, "must be a text")
            assigned[str(guardrail)].append(name)
    return assigned


def translate_default(made: Organization, guardrail: Json) -> dict[str, Json]:
    """Add the default guardrail of a workspace; return its budgets, of each user and each key of its tenant."""
    money, models = _read_money(made, guardrail), _read_models(made, guardrail)
    if money and Decimal(money["amount"]) <= 0:
        raise NotTranslated("limit_usd", f"{money['amount']}: an amount is above 0")
    tenant = made.name_of(guardrail.get("workspace_id"))
    budgets = {
        owner: made.make_budget(f"{title_of(guardrail)}, each {owner}", **money, tenant=tenant, each=owner)
        for owner in KINDS
        if money
    }
    made.add(tenants=[made.make_tenant(tenant, **models)], budgets=[*budgets.values()])
    return budgets


def translate(
    made: Organization, guardrail: Json, users: Sequence[str], keys: Sequence[str], usual: Mapping[str, Json]
) -> None:
    """Add a guardrail of users and of keys, a group each.

    If the usual budget, by `each`, has the same interval, the smaller amount is an override for the group; 0 is one beside any.
    """
    money, models = _read_money(made, guardrail), _read_models(made, guardrail)
    objects = defaultdict[str, list[Json]](list)
    for owner, members in ((USER, users), (KEY, keys)):
        if not members or not money:
            continue
        group = made.make_group(f"{title_of(guardrail)}, each {owner}", KINDS[owner], members)
        objects["groups"].append(group)
        budget = usual.get(owner, {})
        if budget.get("interval") == money["interval"] or (budget and not Decimal(money["amount"])):
            amount = min(money["amount"], budget["amount"], key=Decimal)
            overrides = [{"who": f"{OF_GROUP}{group['name']}", "amount": amount}]
            objects["budgets"].append({"name": budget["name"], "overrides": overrides})
        elif Decimal(money["amount"]) <= 0:
            raise NotTranslated("limit_usd", f"{money['amount']}: an amount is above 0")
        else:
            objects["budgets"].append(
                made.make_budget(group["name"], **money, group=group["name"], each=owner)
            )
    if keys:
        made.note("API keys are new ones, each with the member who made it as its user, if --names has it.")
        tenant = made.name_of(guardrail.get("workspace_id"))
        objects["tenants"].append(made.make_tenant(tenant))
        for name in keys:
            user = {"user": made.name_of(made.makers[name])} if name in made.makers else {}
            objects["api-keys"].append(made.make_key(name, tenant, **models, **user))
    if models:
        objects["users"] += [{"external_id": user, "organization": made.name, **models} for user in users]
    made.add(**objects)


def _read_money(made: Organization, guardrail: Json) -> Json:
    """Return the fields of a budget; {} for any amount."""
    limit, interval = guardrail.get("limit_usd"), choose(guardrail, "reset_interval", RESETS)
    if limit is None:
        return {}
    if not guardrail.get("include_byok_in_budgets"):
        made.note("All calls count, also those that OpenRouter counts with include_byok_in_budgets alone.")
    return {"unit": MONEY, "amount": read_amount(limit, MONEY, "limit_usd"), "interval": interval}


def _read_models(made: Organization, guardrail: Json) -> Json:
    """Return the list of models, as a field; {} for any model."""
    models = guardrail.get("allowed_models") or []
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise NotTranslated("allowed_models", "must be a list of texts")
    if models:
        made.note("Names of models are OpenRouter's, often with a date: add those that your callers use.")
    elif guardrail.get("limit_usd") is None:
        raise NoLimit("", "it has neither limit_usd nor allowed_models")
    return {"models": models} if models else {}


def openrouter(
    guardrails: Annotated[
        list[Path], typer.Argument(help="Answers of GET /api/v1/guardrails, as JSON files.")
    ],
    *,
    members: Annotated[Pages, typer.Option(help="Answers of GET …/guardrails/assignments/members.")] = None,
    keys: Annotated[Pages, typer.Option(help="Answers of GET …/guardrails/assignments/keys.")] = None,
    default: Annotated[
        str | None, typer.Option(help="Name or id of the workspace's default guardrail.")
    ] = None,
    to: Annotated[Path, typer.Option(help="A new directory for the files.")] = Path("from-openrouter"),
    org: Org = "Company",
    names: Names = None,
    as_json: AsJson = False,
) -> None:
    """Translate guardrails of OpenRouter, and name each one, and each field, that is left out."""
    if keys and members is None:
        raise CommandFailed("--keys needs --members: a guardrail of a member limits calls of all keys of it.")
    rows, of_members, of_keys = (read_rows(pages) for pages in (guardrails, members, keys))
    made = translate_all(org, names, lambda made: add_guardrails(made, rows, of_members, of_keys, default))
    made.note(
        "Limits that keys have besides guardrails count only if --names has the answer of GET /api/v1/keys."
    )
    made.deliver(to, as_json=as_json)
