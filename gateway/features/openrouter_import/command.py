"""`tollkeeper import openrouter`: translates guardrails of OpenRouter into budgets and lists of models.

A guardrail limits each of its members and each of its keys alone. The default guardrail of a workspace limits
everybody in it, and what others allow beyond it has no effect. Fields are those of @openrouter/sdk 1.3.19.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.admin.budget_import import (
    Names,
    NothingAllowed,
    NotTranslated,
    Org,
    Organization,
    Pages,
    choose,
    read_amount,
    title_of,
)
from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.output import AsJson
from gateway.core.accounts import groups
from gateway.core.accounts.budgets import KEY, MONEY, OF_GROUP, USER
from gateway.core.accounts.intervals import DAY, MONTH, TOTAL, WEEK

RESETS = {None: TOTAL, "daily": DAY, "weekly": WEEK, "monthly": MONTH}
# Who has an amount alone, and the kind of a group of these.
KINDS = {USER: groups.USER, KEY: groups.API_KEY}
# Fields that are translated, or that are no setting.
KNOWN = (
    "id", "name", "workspace_id", "created_at", "updated_at",
    "limit_usd", "reset_interval", "allowed_models", "include_byok_in_budgets",
)  # fmt: skip
KNOWN_OF_ASSIGNMENTS = (
    "id", "guardrail_id", "user_id", "organization_id", "key_hash", "key_name", "key_label", "assigned_by", "created_at",
)  # fmt: skip

# Rows of a list with their places; assignments by the ids of guardrails.
Rows = Sequence[tuple[str, Json]]
Assigned = Mapping[str, list[Json]]


def translate_all(
    made: Organization, rows: Rows, users_of: Assigned, keys_of: Assigned, default: str | None
) -> None:
    """Add all guardrails. `default` is the name or id of the default one, if it is known.

    No key is made of a guardrail that is left out, and none in the workspace of a default one that is.
    """
    chosen = [pair for pair in rows if default and default in (pair[1].get("id"), pair[1].get("name"))]
    if default and len(chosen) != 1:
        raise CommandFailed(f"--default {default}: must be the id of one guardrail, or a name of one alone.")
    usual: dict[str, Json] = {}
    for place, row in chosen:
        with made.translating(place, row, *KNOWN):
            usual = translate_default(made, row)
    closed = {
        row.get("workspace_id")
        for _, row in made.lost
        if row.get("limit_usd") is not None or row.get("allowed_models")
    }
    if len({str(row.get("workspace_id")) for _, row in rows}) > 1:
        usual = {}  # others count in all workspaces, the default one in its own
    for place, row in [pair for pair in rows if pair not in chosen]:
        guardrail, is_open = str(row.get("id")), row.get("workspace_id") not in closed
        users = [made.name_of(assigned["user_id"]) for assigned in users_of.get(guardrail, ())]
        names = {key["key_hash"]: key.get("key_name") for key in keys_of.get(guardrail, ())}
        keys = [made.take_name("api-keys", str(name or key)) for key, name in names.items()]
        with made.translating(place, row, *KNOWN):
            if users or is_open:
                translate(made, row, users, keys if is_open else [], usual)
        if not is_open or (place, row) in made.lost:
            for key in keys:
                made.shut(place, key)


def translate_default(made: Organization, guardrail: Json) -> dict[str, Json]:
    """Add the default guardrail of a workspace; return its budgets, of each user and each key of its tenant."""
    money, models = _read_money(made, guardrail), _read_models(made, guardrail)
    if money and Decimal(money["amount"]) <= 0:
        raise NothingAllowed("limit_usd", money["amount"])
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
    if not users and not keys:
        raise NotTranslated("", "nobody is assigned to it: name it with --default if it is a workspace's own")
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
            raise NothingAllowed("limit_usd", money["amount"])
        else:
            objects["budgets"].append(
                made.make_budget(group["name"], **money, group=group["name"], each=owner)
            )
    if keys:
        made.note(
            "API keys are new ones. Give each key its user: a member's guardrail counts calls of all its keys."
        )
        tenant = made.name_of(guardrail.get("workspace_id"))
        objects["tenants"].append(made.make_tenant(tenant))
        objects["api-keys"] += [made.make_key(name, tenant, **models) for name in keys]
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
        raise NotTranslated("", "it has neither limit_usd nor allowed_models")
    return {"models": models} if models else {}


def _read_assignments(made: Organization, pages: Pages, field: str, known: Collection[str]) -> Assigned:
    """Return the assignments of the `known` guardrails by their ids; `field` says whom each is about."""
    assigned = defaultdict[str, list[Json]](list)
    for place, row in made.read_rows(pages, "total_count"):
        with made.translating(place, row, *KNOWN_OF_ASSIGNMENTS):
            guardrail, who = row.get("guardrail_id"), row.get(field)
            if not isinstance(guardrail, str) or guardrail not in known:
                raise NotTranslated("guardrail_id", "must be the id of a guardrail in these files")
            if not isinstance(who, str) or not who:
                raise NotTranslated(field, "must be a text")
            assigned[guardrail].append(row)
    return assigned


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
    made = Organization(org, names)
    rows = made.read_rows(guardrails, "total_count")
    ids = {str(row.get("id")) for _, row in rows}
    users_of = _read_assignments(made, members, "user_id", ids)
    keys_of = _read_assignments(made, keys, "key_hash", ids)
    translate_all(made, rows, users_of, keys_of, default)
    made.deliver(to, as_json=as_json)
