"""Creates the description of the Admin API for the command line from the resources.

`python -m gateway.cli.admin.describing FILE` writes it, for a wheel.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from gateway.admin.console.screens import SCREENS
from gateway.admin.resources.form_fields import FormField
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.admin.resources.reports import UsageItem
from gateway.admin.resources.resource import Resource, fields_of
from gateway.admin.resources.values import Out
from gateway.cli.admin.sections import CliReport, CliResource, CommandParts, section_of
from gateway.core.accounts.tags import TAG
from gateway.feature import features

# Fields of `create` without an option's name, if these are not all required fields.
POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "api-keys": ("tenant_id", "name"), "services": ("key",),
    "budgets": ("organization_id", "name", "unit", "amount", "interval"),
}  # fmt: skip
# Columns of tables without a list in the console.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "tenants": ("id", "name", "organization_id", "plan_id", "limits", "user_limits"),
    "api-keys": (
        "id", "tenant_id", "name", "prefix", "user", "user_header", "unsettled", "priority", "models",
        "expires_at", "revoked_at",
    ),
    "tenant-quotas": (
        "tenant_id", "plan_id", "tokens_used", "tokens_remaining", "tokens_held", "is_blocked",
        "next_reset_at",
    ),
    "budgets": (
        "id", "name", "organization_id", "unit", "amount", "used", "remaining", "interval", "window", "length",
        "each", "mode", "resets_at",
    ),
    "token-ledger": (
        "seq", "created_at", "transaction_type", "direction", "amount", "total_remaining", "request_id",
    ),
    "credit-transactions": (
        "seq", "timestamp", "feature_id", "credits_used", "balance_after", "user_id", "request_id",
    ),
}  # fmt: skip


def describe() -> dict[str, Any]:
    """Return the description of all resources, reports and aliases, as `commands.json` has it."""
    archived = {
        name for feature in features() for source in feature.list_sources() for name in source.resources
    }
    reports = [
        CliReport(report.name, report.description, report.summary, report.numbers)
        for report in REPORTS.values()
        if not report.by_hand
    ]
    return {
        "features": sorted(feature.name for feature in features()),
        "numbers": sorted(_numbers()),
        "resources": {
            resource.name: asdict(_resource(resource, resource.name in archived))
            for resource in RESOURCES.values()
        },
        "reports": [asdict(report) for report in reports],
    }


def _resource(resource: Resource, archived: bool) -> CliResource:
    return CliResource(
        resource.name, resource.description, resource.named_by, tuple(resource.filters), resource.refers,
        tuple(_columns(resource)), _commands(resource), {part.name: part.columns for part in resource.parts if part.out},
        tuple(question.name for question in resource.questions if question.is_query),
        tuple(action.name for action in resource.actions if action.mints), resource.secret,
        None if resource.batch is None else (resource.batch.name, resource.batch.summary), archived,
    )  # fmt: skip


def _commands(resource: Resource) -> dict[str, CommandParts]:
    """Return the commands of a resource by name: its verbs, questions, parts and actions."""
    title = section_of(resource.name)
    summary = f"List {resource.name.replace('-', ' ')}."
    made = {"list": CommandParts("list", summary, _filters(resource))}
    if resource.create is not None:
        fields = fields_of(resource, resource.create)
        positional = POSITIONAL.get(resource.name) or _required(fields)
        doc = inspect.cleandoc(resource.create.__doc__ or "").partition("\n")[0]
        made["create"] = CommandParts("create", f"Create {doc[:1].lower()}{doc[1:]}", fields, positional)
    made["show"] = CommandParts("show", f"Show one {title}.")
    for question in resource.questions:
        if not question.is_query:
            continue
        fields = fields_of(resource, question.asked)
        made[question.name] = CommandParts(question.name, f"{question.summary}.", fields, _required(fields))
    for part in resource.parts:
        if part.out is not None:
            made[part.name] = CommandParts(part.name, f"{part.summary}.")
        for method, action in part.writes:
            fields = fields_of(resource, part.form_of(action))
            where = part.name, method, part.key
            summary = f"{action.summary}."
            made[action.name] = CommandParts(action.name, summary, fields, _required(fields), where)
    if resource.patch is not None:
        fields = fields_of(resource, resource.patch)
        only = tuple(field.name for field in fields) if len(fields) == 1 else ()
        summary = f"Change one {title}; what is not named stays."
        made[resource.patch_verb] = CommandParts("patch", summary, fields, only)
    for action in resource.actions:
        fields = fields_of(resource, action.body) if action.body else ()
        made[action.name] = CommandParts(action.name, f"{action.summary}.", fields, _required(fields))
    if resource.deletable:
        made["delete"] = CommandParts("delete", f"Delete one {title}.")
    return made


def _columns(resource: Resource) -> Sequence[str]:
    """Return the columns for a table of a resource: the id, then the fields that the console shows."""
    if resource.name in COLUMNS:
        return COLUMNS[resource.name]
    shown = SCREENS[resource.name].columns if resource.name in SCREENS else tuple(resource.out.model_fields)
    return list(dict.fromkeys(("id", *(name for name in shown if name in resource.out.model_fields))))


def _filters(resource: Resource) -> tuple[FormField, ...]:
    """Return the options of a list command, from the filters of its resource."""
    kinds: Mapping[str, str] = {"id": "whole", "count": "whole", "flag": "flag"}
    tags = FormField("tags", "json", hint="Only with these tags:", of_texts=True)
    return tuple(
        FormField(
            name,
            "choice" if filter_.choices and not filter_.or_tag else kinds.get(filter_.kind, "text"),
            hint=f"{', '.join(filter_.choices)}, or {TAG}NAME." if filter_.or_tag else "",
            choices=filter_.choices,
            refers=resource.target(name),
        )
        for name, filter_ in resource.filters.items()
    ) + ((tags,) if resource.tagged else ())


def _required(fields: Sequence[FormField]) -> tuple[str, ...]:
    return tuple(
        field.name
        for field in fields
        if field.required and field.kind not in {"lines", "many", "json", "flag"}
    )


def _numbers() -> set[str]:
    """Return the names of the columns that are numbers in any answer of the Admin API."""
    answers: list[type[Out]] = [UsageItem, *(resource.out for resource in RESOURCES.values())]
    return {
        name
        for answer in answers
        for name, field in answer.model_fields.items()
        if {int, Decimal} & set(_kinds(field.annotation))
    }


def _kinds(kind: object) -> Iterator[object]:
    yield kind
    if get_origin(kind) in {Annotated, Union, UnionType}:
        for inner in get_args(kind):
            yield from _kinds(inner)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(describe()), encoding="utf-8")
