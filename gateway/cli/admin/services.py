"""`tollkeeper service …`: what can be used, and what organizations negotiated."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.admin.client import AdminClient, CommandFailed, Json
from gateway.cli.admin.options import AsJson, LimitRows
from gateway.cli.admin.output import NOTHING, admin, deleted, emptied, given, row, rows, some

app = typer.Typer(no_args_is_help=True, help="Services: what can be used, and its price.")

COLUMNS = (
    "id", "key", "name", "credits", "service_type", "business_model_id", "counts_tokens", "pricing",
    "upstream", "paths",
)  # fmt: skip
MODEL_COLUMNS = ("id", "name", "display_name", "meter", "description")
PRICE_COLUMNS = (
    "id", "organization_id", "service_id", "negotiated_credits", "business_model_id", "pricing",
)  # fmt: skip

ServiceKey = Annotated[str, typer.Argument(metavar="SERVICE", help="Id or key.")]
Pricing = Annotated[
    str | None,
    typer.Option("--pricing", help='JSON, such as \'{"tiers": [{"up_to": null, "unit_price": "0.01"}]}\'.'),
]
NewPricing = Annotated[str | None, typer.Option("--pricing", help=f"JSON, or {NOTHING!r}.")]
UPSTREAM = "Where /services/<key>/ goes: an upstream of the configuration"
PATHS = "What may be called there, such as /v1/sms/*; repeatable"


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
    upstream: Annotated[str | None, typer.Option(help=f"{UPSTREAM}.")] = None,
    paths: Annotated[list[str] | None, typer.Option(help=f"{PATHS}. By default all.")] = None,
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
            upstream=upstream,
            paths=paths or None,
            description=description,
        )
        row(api.post("services", body), as_json=as_json)


@app.command()
def show(service: ServiceKey, *, as_json: AsJson = False) -> None:
    """Show one service."""
    with admin() as api:
        row(api.get(f"services/{_named(api, service)}"), as_json=as_json)


@app.command()
def change(
    service: ServiceKey,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A business model: id or name.")] = None,
    credits_: Annotated[int | None, typer.Option("--credits", help="What a unit costs.", min=0)] = None,
    kind: Annotated[Kind | None, typer.Option("--type")] = None,
    counts_tokens: Annotated[
        bool | None,
        typer.Option("--counts-tokens/--no-counts-tokens", help="Debit the tenant's tokens too, or not."),
    ] = None,
    pricing: NewPricing = None,
    upstream: Annotated[str | None, typer.Option(help=f"{UPSTREAM}, or {NOTHING!r}.")] = None,
    paths: Annotated[list[str] | None, typer.Option(help=f"{PATHS}. {NOTHING!r} is all.")] = None,
    description: Annotated[str | None, typer.Option(help=f"A text, or {NOTHING!r}.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a service; what is not named stays. It is in force for the next call."""
    with admin() as api:
        body = given(
            name=name,
            credits=credits_,
            service_type=kind,
            business_model_id=api.named("business-models", model) if model else None,
            counts_tokens=counts_tokens,
        )
        body |= emptied(description=description, upstream=upstream) | _new_pricing(pricing)
        body |= {"paths": None} if paths == [NOTHING] else given(paths=paths or None)
        row(api.patch(f"services/{_named(api, service)}", some(body)), as_json=as_json)


@app.command()
def models(*, limit: LimitRows = 100, as_json: AsJson = False) -> None:
    """List business models: how services are paid for."""
    with admin() as api:
        rows(api.items("business-models", limit), MODEL_COLUMNS, as_json=as_json)


@app.command()
def prices(
    *,
    organization: Annotated[str | None, typer.Option("--org", help="Only this one's: id or name.")] = None,
    service: Annotated[str | None, typer.Option(help="Only of this one: id or key.")] = None,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List the prices organizations negotiated."""
    with admin() as api:
        pair = {
            "organization_id": api.named("organizations", organization) if organization else None,
            "service_id": _named(api, service) if service else None,
        }
        rows(api.items("organization-services", limit, **pair), PRICE_COLUMNS, as_json=as_json)


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
def forget(
    service: ServiceKey,
    organization: Annotated[str, typer.Argument(metavar="ORG", help="Id or name.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Take an organization's own price back: the service's is in force for it again."""
    with admin() as api:
        owner, service_id = api.named("organizations", organization), _named(api, service)
        known = api.get("organization-services", organization_id=owner, service_id=service_id)["items"]
        if not known:
            raise CommandFailed("The organization has no price of its own for this service.")
        api.delete(f"organization-services/{known[0]['id']}")
        deleted(known[0]["id"], as_json=as_json)


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


def _new_pricing(text: str | None) -> Json:
    return {"pricing": None} if text == NOTHING else given(pricing=_pricing(text))


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
