"""`tollkeeper service …`: what can be used, and what organizations negotiated."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli_admin.client import AdminClient, CommandFailed, Json
from gateway.cli_admin.options import AsJson, LimitRows
from gateway.cli_admin.output import admin, deleted, given, row, rows

app = typer.Typer(no_args_is_help=True, help="Services: what can be used, and its price.")

COLUMNS = ("id", "key", "name", "credits", "service_type", "business_model_id", "counts_tokens", "pricing")

ServiceKey = Annotated[str, typer.Argument(metavar="SERVICE", help="Id or key.")]
Pricing = Annotated[
    str | None,
    typer.Option("--pricing", help='JSON, such as \'{"tiers": [{"up_to": null, "unit_price": "0.01"}]}\'.'),
]


class Kind(StrEnum):
    """How often its credits are due."""

    PAY_AS_YOU_GO = "Pay-As-You-Go"
    ONE_TIME = "One-Time"


@app.command("list")
def list_services(*, limit: LimitRows = 100, as_json: AsJson = False) -> None:
    """List services."""
    with admin() as api:
        rows(api.items("services", limit), COLUMNS, as_json=as_json)


@app.command()
def create(
    key: str,
    *,
    model: Annotated[str, typer.Option("--model", help="A business model: id or name.")],
    name: Annotated[str | None, typer.Option(help="By default its key.")] = None,
    credits_: Annotated[int, typer.Option("--credits", help="What a unit costs in credits.", min=0)] = 0,
    kind: Annotated[Kind, typer.Option("--type")] = Kind.PAY_AS_YOU_GO,
    counts_tokens: Annotated[
        bool, typer.Option("--counts-tokens", help="Debit the tenant's tokens too.")
    ] = False,
    pricing: Pricing = None,
    description: Annotated[str | None, typer.Option()] = None,
    as_json: AsJson = False,
) -> None:
    """Make a service."""
    with admin() as api:
        body = given(
            key=key,
            name=name or key,
            credits=credits_,
            service_type=kind,
            business_model_id=api.named("business-models", model),
            counts_tokens=counts_tokens,
            pricing=_pricing(pricing),
            description=description,
        )
        row(api.post("services", body), as_json=as_json)


@app.command()
def negotiate(
    service: ServiceKey,
    organization: Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")],
    *,
    credits_: Annotated[int, typer.Option("--credits", help="What a unit costs this organization.", min=0)],
    model: Annotated[str | None, typer.Option("--model", help="Instead of the service's own.")] = None,
    pricing: Pricing = None,
    as_json: AsJson = False,
) -> None:
    """Give an organization a price of its own; an earlier one is replaced."""
    with admin() as api:
        pair = {
            "organization_id": api.named("organizations", organization),
            "service_id": _named(api, service),
        }
        price = given(
            negotiated_credits=credits_,
            business_model_id=api.named("business-models", model) if model else None,
            pricing=_pricing(pricing),
        )
        known = api.get("organization-services", **pair)["items"]
        where = f"organization-services/{known[0]['id']}" if known else ""
        row(
            api.patch(where, price) if known else api.post("organization-services", pair | price),
            as_json=as_json,
        )


@app.command()
def delete(service: ServiceKey, *, as_json: AsJson = False) -> None:
    """Delete a service nobody has a price for."""
    with admin() as api:
        row_id = _named(api, service)
        api.delete(f"services/{row_id}")
        deleted(row_id, as_json=as_json)


def _named(api: AdminClient, text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    found = api.get("services", key=text)["items"]
    if not found:
        raise CommandFailed(f"There is no service with the key {text!r}.")
    return int(found[0]["id"])


def _pricing(text: str | None) -> Json | None:
    if text is None:
        return None
    try:
        read = json.loads(text)
    except ValueError as error:
        raise CommandFailed(f"--pricing is not JSON: {error}.") from error
    if not isinstance(read, dict):
        raise CommandFailed("--pricing must be a JSON object.")
    return read
