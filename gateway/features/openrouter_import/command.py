"""`tollkeeper import openrouter`: translates guardrails of OpenRouter into budgets and lists of models.

A guardrail limits each of its members and each of its keys alone. The default guardrail of a workspace limits
everybody in it, and what others allow beyond it has no effect. Fields are those of @openrouter/sdk 1.3.19.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from gateway.cli.admin.budget_import import Names, NotTranslated, Org, Organization, amount_of, choice, title
from gateway.cli.admin.client import CommandFailed, Json
from gateway.cli.admin.imports import EVERYBODY, deliver
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


class Terms(NamedTuple):
    """What a guardrail allows: so much money in each interval, None for any amount, and models."""

    amount: str | None
    interval: str
    models: Json


def _terms(made: Organization, guardrail: Json) -> Terms:
    models, limit = guardrail.get("allowed_models") or [], guardrail.get("limit_usd")
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        raise NotTranslated("allowed_models", "must be a list of texts")
    if not models and limit is None:
        raise NotTranslated("", "it has neither limit_usd nor allowed_models")
    if models:
        made.note("Names of models are OpenRouter's, often with a date: add those that your callers use.")
    if limit is not None and not guardrail.get("include_byok_in_budgets"):
        made.note("All calls count, also those that OpenRouter counts with include_byok_in_budgets alone.")
    amount = None if limit is None else amount_of(limit, MONEY, "limit_usd")
    return Terms(amount, choice(guardrail, "reset_interval", RESETS), {"models": models} if models else {})


def translate_default(made: Organization, guardrail: Json) -> tuple[Terms, dict[str, str]]:
    """Add the default guardrail of a workspace, for each user and each key of its tenant.

    Return its terms, and the names of its budgets by `each`.
    """
    terms, tenant = _terms(made, guardrail), made.named(str(guardrail.get("workspace_id") or EVERYBODY))
    budgets = (
        {}
        if terms.amount is None
        else {each: made.free(f"{title(guardrail)}, each {each}") for each in KINDS}
    )
    rows = [
        made.budget(name, MONEY, terms.amount, interval=terms.interval, tenant=tenant, each=each)
        for each, name in budgets.items()
    ]
    made.add(tenants=[made.tenant(tenant, **terms.models)], budgets=rows)
    return terms, budgets


def translate(
    made: Organization, guardrail: Json, users: Sequence[str], keys: Sequence[str],
    default: tuple[Terms, dict[str, str]] | None,
) -> None:  # fmt: skip
    """Add a guardrail of users and of keys, a group each.

    Where the default guardrail has the same interval, the smaller amount is an override for the group.
    """
    terms, tenant = _terms(made, guardrail), made.named(str(guardrail.get("workspace_id") or EVERYBODY))
    if not users and not keys:
        raise NotTranslated("", "nobody is assigned to it: name it with --default if it is a workspace's own")
    objects = defaultdict[str, list[Json]](list)
    for each, members in ((USER, users), (KEY, keys)):
        if not members or terms.amount is None:
            continue
        name = made.free(f"{title(guardrail)}, each {each}")
        row = made.budget(name, MONEY, terms.amount, interval=terms.interval, group=name, each=each)
        if default and each in default[1] and terms.interval == default[0].interval:
            amount = min(terms.amount, str(default[0].amount), key=Decimal)
            row = {"name": default[1][each], "overrides": [{"who": f"{OF_GROUP}{name}", "amount": amount}]}
        objects["groups"].append(made.group(name, KINDS[each], members))
        objects["budgets"].append(row)
    if keys:
        made.note("API keys are new ones: OpenRouter tells no values of keys.")
        objects["tenants"].append(made.tenant(tenant))
        objects["api-keys"] += [made.key(name, tenant, **terms.models) for name in keys]
    if terms.models:
        objects["users"] += [
            {"external_id": user, "organization": made.name, **terms.models} for user in users
        ]
    made.add(**objects)


def _assigned(
    made: Organization, paths: Sequence[Path], field: str, known: Collection[str]
) -> dict[str, list[Json]]:
    """Return the assignments of the `known` guardrails by their ids; `field` says whom each is about."""
    assigned = defaultdict[str, list[Json]](list)
    for place, row in made.rows(paths, "total_count"):
        with made.taking(place, row, *KNOWN_OF_ASSIGNMENTS):
            guardrail, who = row.get("guardrail_id"), row.get(field)
            if not isinstance(guardrail, str) or guardrail not in known:
                raise NotTranslated("guardrail_id", f"{guardrail}: there is no such guardrail here")
            if not isinstance(who, str) or not who:
                raise NotTranslated(field, "must be a text")
            assigned[guardrail].append(row)
    return assigned


Pages = list[Path] | None


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
    made = Organization(org, names or ())
    listed = made.rows(guardrails, "total_count")
    known = {str(row.get("id")) for _, row in listed}
    users_of = _assigned(made, members or (), "user_id", known)
    keys_of = _assigned(made, keys or (), "key_hash", known)
    chosen = (
        [item for item in listed if default in (item[1].get("id"), item[1].get("name"))] if default else []
    )
    if default and len(chosen) != 1:
        raise CommandFailed(
            f"--default {default}: must be the id of one guardrail, or a name that only one has."
        )
    everybody = None
    for place, row in chosen:
        with made.taking(place, row, *KNOWN):
            everybody = translate_default(made, row)
    if len({str(row.get("workspace_id")) for _, row in listed}) > 1:
        everybody = None  # guardrails count in all workspaces, the default one in its own
    for place, row in listed:
        if (place, row) not in chosen:
            with made.taking(place, row, *KNOWN):
                users = [made.named(assigned["user_id"]) for assigned in users_of[str(row.get("id"))]]
                hashes = {assigned["key_hash"]: assigned for assigned in keys_of[str(row.get("id"))]}
                names_of_keys = [
                    made.free(str(key.get("key_name") or key_hash)) for key_hash, key in hashes.items()
                ]
                translate(made, row, users, names_of_keys, everybody)
    made.note("Use so far is not taken over: each budget begins at 0.")
    deliver(made.done(), to, as_json=as_json)
