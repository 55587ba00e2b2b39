"""`tollkeeper import portkey`: translates policies of Portkey into budgets, and rates of a minute into limits.

Conditions say which calls a policy is about, and `group_by` whose calls have the amount for themselves. Fields are
those of Portkey's OpenAPI of 12 June 2026; its documentation also has several values of a condition, and models.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from itertools import product
from math import prod
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
from gateway.cli.admin.client import Json
from gateway.cli.admin.imports import EVERYBODY, Pages, read_rows
from gateway.cli.admin.output import AsJson
from gateway.core.accounts import groups
from gateway.core.accounts.budgets import KEY, MONEY, REQUESTS, TENANT, TOKENS, USER
from gateway.core.accounts.intervals import MONTH, TOTAL, WEEK
from gateway.core.accounts.tags import TAG
from gateway.core.accounts.windows import FIRST_USE, ROLLING

API_KEY, WORKSPACE, ORGANISATION, MODEL = "api_key", "workspace_id", "organisation_id", "model"
METADATA, PERSON = "metadata.", "metadata._user"
UNITS = {"cost": MONEY, "tokens": TOKENS, "requests": REQUESTS}
RESETS = {None: TOTAL, "weekly": WEEK, "monthly": MONTH}
LENGTHS = {"rpm": "", "rph": "1h", "rpd": "1d"}
LIMITS = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}
EACH = {API_KEY: KEY, WORKSPACE: TENANT, PERSON: USER}
KEYS = (API_KEY, WORKSPACE, ORGANISATION, MODEL)
# Conditions that every call has a value of, and the groups whose members share an amount.
GROUPS = {API_KEY: groups.API_KEY, WORKSPACE: groups.TENANT}
# Most budgets that one policy becomes.
BUDGETS_MAX = 100
# Fields that are translated, or that are no setting.
KNOWN = (
    "id", "object", "name", "type", "conditions", "group_by", "status", "workspace_id", "organisation_id",
    "credit_limit", "alert_threshold", "periodic_reset", "periodic_reset_days", "unit", "value", "created_at",
    "last_updated_at", "next_usage_reset_at", "last_reset_at", "value_key_usage_map",
)  # fmt: skip
# Fields that limit no use. Any other field may.
HARMLESS = ("exclude_cached",)


def translate(made: Organization, policy: Json) -> None:
    """Add what one policy becomes; raise `NotTranslated` with the field that has no counterpart."""
    if (policy.get("status") or "active") != "active":
        is_over = policy["status"] == "archived"
        raise (NoLimit if is_over else NotTranslated)("status", "only active policies are taken over")
    if policy.get("unit") and policy.get("credit_limit") is not None:
        raise NotTranslated("credit_limit", "must not stand beside unit: a policy has a rate or an amount")
    terms = _read_rate(policy) if policy.get("unit") else _read_usage(made, policy)
    fixed, alone, owner = _read_calls(policy)
    workspaces = fixed.get(WORKSPACE, [])
    if API_KEY in fixed and len(workspaces) > 1:
        raise NotTranslated("conditions", f"{WORKSPACE}: must be one beside {API_KEY}")
    home = made.name_of(workspaces[0] if workspaces else policy.get(WORKSPACE))
    name = title_of(policy)
    objects, common = defaultdict[str, list[Json]](list), Json(each=owner) if owner else Json()
    for key in fixed.keys() - {*alone}:
        members = [_select(made, objects, key, value, home)[GROUPS[key]] for value in fixed[key]]
        objects["groups"].append(group := made.make_group(name, GROUPS[key], members))
        common["group"] = group["name"]
    every = [*product(*([(key, value) for value in fixed[key]] for key in alone))]
    for chosen in every:
        selectors = dict(common)
        for key, value in chosen:
            own = _select(made, objects, key, value, home)
            selectors |= {"tags": selectors.get("tags", {}) | own["tags"]} if "tags" in own else own
        if owner and owner.startswith(TAG):
            objects["organizations"].append(made.make_organization(tags=[owner.removeprefix(TAG)]))
        if "limits" in terms:
            kind, row = _give_limits(made, selectors, terms["limits"])
            objects[kind].append(row)
        else:
            values = ", ".join(value for key, value in chosen if len(fixed[key]) > 1)
            objects["budgets"].append(
                made.make_budget(f"{name}: {values}" if values else name, **terms, **selectors)
            )
    made.add(**objects)


def add_policies(made: Organization, rows: Sequence[tuple[str, Json]]) -> None:
    """Add what all policies become."""
    for place, policy in rows:
        with made.translating(place, policy, KNOWN, HARMLESS, partial(_keys_of, made, policy)):
            translate(made, policy)


def _keys_of(made: Organization, policy: Json) -> list[str]:
    """Return the names of the keys whose calls a policy may limit: all if nobody can read which calls it is about."""
    try:
        values = _read_conditions(policy)
        grouped = [entry["key"] for entry in _read_entries(policy, "group_by", "key")]
    except NotTranslated:
        return made.keys_of()
    own = [] if WORKSPACE in {*values, *grouped} else [policy.get(WORKSPACE)]
    if keys := values.get(API_KEY):
        return [made.name_of(key) for key in keys]
    homes = values.get(WORKSPACE) or own
    return made.keys_of([EVERYBODY, *map(made.name_of, homes)] if homes and all(homes) else [])


def _read_calls(policy: Json) -> tuple[dict[str, list[str]], list[str], str | None]:
    """Return the values of conditions by their keys, the keys whose values have an amount each, and `each`.

    The values of another key share an amount. API keys come last, as they decide the tenant.
    """
    values = _read_conditions(policy)
    grouped = {entry["key"] for entry in _read_entries(policy, "group_by", "key")}
    home = policy.get(WORKSPACE)
    if not isinstance(home, str | None):
        raise NotTranslated(WORKSPACE, "must be a text")
    if home and WORKSPACE not in values.keys() | grouped:  # a policy is of its own workspace
        values[WORKSPACE] = [home]
    organisations = values.pop(ORGANISATION, [])
    if organisations and policy.get(ORGANISATION) not in organisations:
        raise NotTranslated("conditions", f"{ORGANISATION}: must be that of the policy")
    for key, options in values.items():
        if not options and key not in grouped and key not in GROUPS:
            raise NotTranslated("conditions", f"{key}: any value needs the same key in group_by")
    fixed = {key: options for key, options in values.items() if options}
    # Calls of a key are of one organization and one workspace.
    same = {ORGANISATION, *([WORKSPACE] if API_KEY in grouped else [])}
    owners = sorted(grouped - fixed.keys() - same)
    if len(owners) > 1 or owners == [MODEL]:
        why = "conditions must name the values of all but one, and of models"
        raise NotTranslated("group_by", f"{', '.join(owners)}: {why}")
    alone = [key for key in sorted(fixed, reverse=True) if key in grouped | same or len(fixed[key]) == 1]
    if len(fixed) > len(alone) + 1 or not GROUPS.keys() >= fixed.keys() - {*alone}:
        raise NotTranslated("conditions", "only values of api_key, or of workspace_id, can share an amount")
    if prod(len(fixed[key]) for key in alone) > BUDGETS_MAX:
        raise NotTranslated("conditions", f"a policy becomes {BUDGETS_MAX} budgets at most")
    return fixed, alone, next((EACH.get(key) or TAG + key.removeprefix(METADATA) for key in owners), None)


def _read_entries(policy: Json, field: str, *names: str) -> list[Json]:
    """Return the entries of a list of conditions or groups, each with a known key and these fields alone."""
    entries = policy.get(field)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise NotTranslated(field, "must be a list of objects")
    for entry in entries:
        key = entry.get("key")
        if not isinstance(key, str) or not (key in KEYS or key.removeprefix(METADATA) not in ("", key)):
            raise NotTranslated(field, f"{key}: budgets go by {', '.join(KEYS)} or metadata.NAME")
        for name, value in entry.items():
            if name not in names and value not in (None, "", []):
                raise NotTranslated(field, f"{name} of {key} has no counterpart")
    return entries


def _read_conditions(policy: Json) -> dict[str, list[str]]:
    """Return the values that all conditions of each key allow; none stand for any value."""
    values: dict[str, list[str]] = {}
    for condition in _read_entries(policy, "conditions", "key", "value"):
        key, value = condition["key"], condition.get("value")
        options = value if isinstance(value, list) else [value]
        if not options or not all(isinstance(option, str) and option for option in options):
            raise NotTranslated("conditions", f"{key}: value must be a text, or a list of texts")
        before, now = values.get(key, []), [] if "*" in options else [*dict.fromkeys(options)]
        values[key] = [option for option in now if option in before] if before and now else before or now
        if before and now and not values[key]:
            raise NotTranslated("conditions", f"{key}: no call fits all of its conditions")
    return values


def _read_usage(made: Organization, policy: Json) -> Json:
    """Return unit, amount, window and thresholds of a budget."""
    unit, interval = choose(policy, "type", UNITS), choose(policy, "periodic_reset", RESETS)
    amount = read_amount(policy.get("credit_limit"), unit, "credit_limit")
    if Decimal(amount) <= 0:
        raise NotTranslated("credit_limit", f"{amount}: an amount is above 0. Make no key for these calls")
    terms: Json = {"unit": unit, "amount": amount, "interval": interval}
    if (days := policy.get("periodic_reset_days")) is not None:
        if type(days) is not int or interval != TOTAL:
            raise NotTranslated("periodic_reset_days", "must be a whole number, without periodic_reset")
        made.note("A window of several days begins with the first call in it, not when the last one ended.")
        terms = {"unit": unit, "amount": amount, "window": FIRST_USE, "length": f"{days}d"}
    if (alert := policy.get("alert_threshold")) is not None:
        most, part = Decimal(amount), Decimal(read_amount(alert, MONEY, "alert_threshold"))
        if not 0 < part < most or not 0 < float(part / most) < 1:
            raise NotTranslated("alert_threshold", "must be above 0 and below credit_limit")
        terms["thresholds"] = [float(part / most), 1.0]
    return terms


def _read_rate(policy: Json) -> Json:
    """Return a budget of a rolling window, or the limits of a rate of a minute."""
    limit, length = choose(policy, "type", LIMITS), choose(policy, "unit", LENGTHS)
    amount = read_amount(policy.get("value"), TOKENS, "value")
    if amount <= 0:
        raise NotTranslated("value", f"{amount}: an amount is above 0. Make no key for these calls")
    if not length:
        return {"limits": {limit: amount}}
    return {"unit": UNITS[policy["type"]], "amount": amount, "window": ROLLING, "length": length}


def _select(made: Organization, objects: dict[str, list[Json]], key: str, value: str, home: str) -> Json:
    """Return the selector of a condition, and add the object that it names. API keys are of the tenant `home`."""
    if key == WORKSPACE:
        objects["tenants"].append(made.make_tenant(tenant := made.name_of(value)))
        return {"tenant": tenant}
    if key == API_KEY:
        made.note("API keys are new ones: policies have no values of keys.")
        objects["api-keys"].append(row := made.make_key(made.name_of(value), home))
        objects["tenants"].append(made.make_tenant(row["tenant"]["name"]))
        return {"tenant": row["tenant"]["name"], "api_key": row["name"]}
    if key == MODEL:
        return {"model": value.partition("/")[2] if value.startswith("@") else value}
    if key == PERSON:
        return {"user": value}
    tag = key.removeprefix(METADATA)
    objects["organizations"].append(made.make_organization(tags=[tag]))
    return {"tags": {tag: value}}


def _give_limits(made: Organization, selectors: Json, limits: Json) -> tuple[str, Json]:
    """Return the object, with its kind, that has limits for the calls of these selectors."""
    match sorted(selectors):
        case []:
            return "organizations", made.make_organization(limits=limits)
        case ["tenant"]:
            return "tenants", made.make_tenant(selectors["tenant"], limits=limits)
        case ["each", "tenant"] if selectors["each"] == USER:
            return "tenants", made.make_tenant(selectors["tenant"], user_limits=limits)
        case ["api_key", "tenant"]:
            return "api-keys", made.make_key(selectors["api_key"], selectors["tenant"], limits=limits)
        case ["user"] | ["tenant", "user"]:
            if "tenant" in selectors:
                made.note("A minute's rate of one user counts the user's calls in all workspaces.")
            row = {"external_id": selectors["user"], "organization": made.name, "limits": limits}
            return "users", row
    raise NotTranslated("unit", "a minute's rate is of one key, user or workspace, each user of one, or all")


def portkey(
    policies: Annotated[
        list[Path], typer.Argument(help="Answers of GET /v1/policies/usage-limits, as JSON files.")
    ],
    *,
    rate_limits: Annotated[Pages, typer.Option(help="Answers of GET /v1/policies/rate-limits.")] = None,
    to: Annotated[Path, typer.Option(help="A new directory for the files.")] = Path("from-portkey"),
    org: Org = "Company",
    names: Names = None,
    as_json: AsJson = False,
) -> None:
    """Translate policies of Portkey, and name each one, and each field, that is left out."""
    rows = read_rows(policies) + read_rows(rate_limits)
    translate_all(org, names, lambda made: add_policies(made, rows)).deliver(to, as_json=as_json)
