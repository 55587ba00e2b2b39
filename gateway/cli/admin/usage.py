"""`tollkeeper usage`: what was used and what it cost; without options the quotas and the latest movements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.admin.client import AdminClient, Json
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, rows
from gateway.core.accounts.usage import GROUPS, SUMS

COLUMNS = (
    "tenant_id", "tenant", "tokens_used", "tokens_remaining", "tokens_held", "is_blocked", "next_reset_at",
)  # fmt: skip
RECENT = (
    "tenant",
    "seq",
    "created_at",
    "transaction_type",
    "direction",
    "amount",
    "total_remaining",
    "request_id",
)
# What a table shows of what is added up; JSON and CSV have all of it.
ADDED = ("requests", "input", "cache_read", "output", "tokens", "cost", "currency")
LEDGERS_READ_MAX = 20
ITEMS_MAX = 10_000


def usage(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant: id or name.")] = None,
    limit: Annotated[int, typer.Option(help="Most tenants to show.", min=1, max=100_000)] = 100,
    recent: Annotated[int, typer.Option(help="Latest ledger rows to show.", min=0, max=1_000)] = 10,
    by: Annotated[
        str | None, typer.Option(help=f"Add up by some of {', '.join(GROUPS)}, with commas.")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="From this day or time on, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before this day or time, UTC.")] = None,
    interval: Annotated[str | None, typer.Option(help="hour, day, month or none.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write Parquet to this file.")] = None,
    as_focus: Annotated[
        bool, typer.Option("--focus", help="Print charges of each day as FOCUS 1.2 has them, as CSV.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what was used and what it cost; without --by and its like, quotas and the latest ledger rows."""
    with admin() as api:
        tenant_id = api.id_of("tenants", tenant) if tenant else None
        if as_focus:
            asked = {"from_": _moment(since), "to": _moment(until), "group_by": by, "interval": interval}
            typer.echo(api.download("usage/focus.csv", **asked, tenant_id=tenant_id), nl=False)
            return
        if as_csv or any(each is not None for each in (by, since, until, interval, parquet)):
            asked = {"group_by": by, "from_": _moment(since), "to": _moment(until), "interval": interval}
            if parquet is not None:
                parquet.write_bytes(api.download("usage.parquet", **asked, tenant_id=tenant_id))
                return
            _added(api, {**asked, "tenant_id": tenant_id}, as_csv, as_json)
            return
        quotas = api.items("tenant-quotas", limit, tenant_id=tenant_id)
        names = api.names("tenants", {quota["tenant_id"] for quota in quotas}, limit)
        for quota in quotas:
            quota["tenant"] = names.get(quota["tenant_id"], "")
        latest = _latest(api, quotas, recent)
        if as_json:
            rows(
                [{**quota, "ledger": latest.get(quota["tenant_id"], [])} for quota in quotas],
                (),
                as_json=True,
            )
            return
        rows(quotas, COLUMNS, as_json=False, title="Quotas")
        movements = [
            {**row, "tenant": names.get(row["tenant_id"], "")} for part in latest.values() for row in part
        ]
        movements.sort(key=lambda row: str(row["created_at"]), reverse=True)
        rows(movements[:recent], RECENT, as_json=False, title="Latest movements")


def _added(api: AdminClient, asked: Json, as_csv: bool, as_json: bool) -> None:
    """What calls add up to; a table has names where there are ids."""
    if as_csv:
        typer.echo(api.download("usage.csv", **asked), nl=False)
        return
    items = api.items("usage", ITEMS_MAX, **asked)
    told = [name for name in (items[0] if items else ()) if name not in SUMS and name not in ADDED]
    groups = [name for name in told if not name.endswith("_id") or name.removesuffix("_id") not in told]
    rows(items, [*(name for name in groups if name != "start" or asked["interval"]), *ADDED], as_json=as_json)


def _moment(text: str | None) -> str | None:
    """A day is its first moment."""
    return f"{text}T00:00:00Z" if text is not None and len(text) == len("2026-01-31") else text


def _latest(api: AdminClient, quotas: list[Json], recent: int) -> dict[int, list[Json]]:
    """Read each shown tenant's latest rows, newest first."""
    if recent == 0:
        return {}
    return {
        int(quota["tenant_id"]): api.items("token-ledger", recent, tenant_id=quota["tenant_id"], order="desc")
        for quota in quotas[:LEDGERS_READ_MAX]
    }
