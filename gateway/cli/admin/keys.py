"""`tollkeeper key …`: API keys of the gateway."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from gateway.cli.admin.client import CommandFailed
from gateway.cli.admin.options import (
    AsJson,
    AtOnce,
    LimitRows,
    NewAtOnce,
    NewRpm,
    NewTpm,
    Rpm,
    TenantName,
    Tpm,
)
from gateway.cli.admin.output import (
    NOTHING,
    admin,
    deleted,
    emptied,
    given,
    limits,
    new_limits,
    row,
    rows,
    some,
)

app = typer.Typer(no_args_is_help=True, help="API keys of the gateway.")

COLUMNS = ("id", "tenant_id", "name", "prefix", "user", "user_header", "models", "expires_at", "revoked_at")


class UserHeaderChoice(StrEnum):
    """What requests may say of their user."""

    ACCEPT = "accept"
    REQUIRE = "require"
    IGNORE = "ignore"


UserHeader = Annotated[
    UserHeaderChoice | None,
    typer.Option("--user-header", help="What requests may say of their user, where the key says none."),
]
KeyId = Annotated[int, typer.Argument(metavar="KEY", help="Id of the key.")]


@app.command("list")
def list_keys(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's: id or name.")] = None,
    limit: LimitRows = 100,
    as_json: AsJson = False,
) -> None:
    """List API keys; the keys themselves are stored nowhere."""
    with admin() as api:
        tenant_id = api.named("tenants", tenant) if tenant else None
        rows(api.items("api-keys", limit, tenant_id=tenant_id), COLUMNS, as_json=as_json)


@app.command()
def create(
    tenant: TenantName,
    name: str,
    *,
    user: Annotated[str | None, typer.Option(help="The tenant's user its requests act for.")] = None,
    user_header: UserHeader = None,
    model: Annotated[list[str] | None, typer.Option(help="A model it may ask for; repeatable.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="RFC 3339, such as 2027-01-31T00:00:00Z.")] = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    concurrency: AtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and show it, this once."""
    with admin() as api:
        body = given(
            tenant_id=api.named("tenants", tenant),
            name=name,
            user=user,
            user_header=user_header,
            models=model or None,
            expires_at=expires_at,
            limits=limits(rpm, tpm, concurrency),
        )
        row(api.post("api-keys", body), as_json=as_json, note="The key is not shown again: keep it now.")


@app.command()
def show(key_id: KeyId, *, as_json: AsJson = False) -> None:
    """Show what is kept of a key."""
    with admin() as api:
        row(api.get(f"api-keys/{key_id}"), as_json=as_json)


@app.command()
def change(
    key_id: KeyId,
    *,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    user: Annotated[str | None, typer.Option(help=f"Whom its requests act for, or {NOTHING!r}.")] = None,
    user_header: UserHeader = None,
    model: Annotated[list[str] | None, typer.Option(help="All it may ask for from now; repeatable.")] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="It may ask for any again.")] = False,
    expires_at: Annotated[
        str | None, typer.Option(help=f"RFC 3339, such as 2027-01-31T00:00:00Z, or {NOTHING!r}.")
    ] = None,
    rpm: NewRpm = None,
    tpm: NewTpm = None,
    concurrency: NewAtOnce = None,
    as_json: AsJson = False,
) -> None:
    """Change what a key may do; what is not named stays."""
    with admin() as api:
        if model and any_model:
            raise CommandFailed("Give --model or --any-model, not both.")
        where = f"api-keys/{key_id}"
        known = api.get(where)["limits"]
        body = given(
            name=name,
            user_header=user_header,
            models=model or None,
            limits=new_limits(known, rpm, tpm, concurrency),
        )
        body |= emptied(user=user, expires_at=expires_at) | ({"models": None} if any_model else {})
        row(api.patch(where, some(body)), as_json=as_json)


@app.command()
def delete(key_id: KeyId, *, as_json: AsJson = False) -> None:
    """Revoke a key and forget it."""
    with admin() as api:
        api.delete(f"api-keys/{key_id}")
        deleted(key_id, as_json=as_json)


@app.command()
def revoke(key_id: KeyId, *, as_json: AsJson = False) -> None:
    """Refuse a key from now on, for ever."""
    with admin() as api:
        row(api.post(f"api-keys/{key_id}/revoke"), as_json=as_json)
