"""`tollkeeper letters redrive` and `release`: the same decision for all that a filter finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from gateway.admin.resources.letters import RUN_S_MAX
from gateway.cli.admin.client import AdminClient, Json
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, report, waiting

# A letter may fit only once another one is stored: so often all are gone through again.
PASSES_MAX = 5

Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept with each.")]
Org = Annotated[str | None, typer.Option("--org", help="Only of this organization.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Only of this tenant.")]


def redrive(
    *,
    reason: Reason,
    org: Org = None,
    tenant: Tenant = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only of this partition.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store all dead letters where they belong, as they are; exit 1 if any is left."""
    _decide({"what": "dead_letters", "reason": reason, "partition": partition}, org, tenant, as_json=as_json)


def release(
    *,
    reason: Reason,
    org: Org = None,
    tenant: Tenant = None,
    kind: Annotated[str | None, typer.Option(help="gap, conflict, unknown_account or behind.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="List what is missing as lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let all accounts in quarantine go on; exit 1 if any is left."""
    sent = {"what": "quarantine", "reason": reason, "kind": kind, "accept": accept or None}
    _decide(sent, org, tenant, as_json=as_json)


def _decide(sent: dict[str, Any], org: str | None, tenant: str | None, *, as_json: bool) -> None:
    with admin() as api:
        for name, resource, given in (
            ("organization_id", "organizations", org), ("tenant_id", "tenants", tenant),
        ):  # fmt: skip
            sent |= {name: api.id_of(resource, given)} if given is not None else {}
        sent = {name: value for name, value in sent.items() if value is not None}
        with waiting("Deciding"):
            done, refused = decided(api, sent)
        report({"done": done, "items": refused}, "Left as they are", as_json=as_json)
        if refused:
            raise typer.Exit(1)


def decided(api: AdminClient, sent: Json) -> tuple[int, list[Json]]:
    """Go through all until nothing more fits; how many were decided, and what is left."""
    # A call of this goes on for so long, and as long as any other behind that.
    api = replace(api, timeout_s=RUN_S_MAX + api.timeout_s)
    done = 0
    refused: list[Json] = []
    for _ in range(PASSES_MAX):
        found, refused = _pass(api, sent)
        done += len(found)
        if not (found and refused):
            break
    return done, refused


def _pass(api: AdminClient, sent: Json) -> tuple[list[int], list[Json]]:
    """Go through all there are once, some a call."""
    done: list[int] = []
    refused: list[Json] = []
    after = 0
    while True:
        found = api.post("letters", {**sent, "after_id": after})
        done += found["done"]
        refused += found["refused"]
        if found["next_after_id"] is None:
            return done, refused
        after = found["next_after_id"]
