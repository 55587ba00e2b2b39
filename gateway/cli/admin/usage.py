"""`tollkeeper usage`: what tenants have used, what remains, and their latest movements."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.admin.client import AdminClient, Json
from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, rows

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
LEDGERS_READ_MAX = 20


def usage(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant: id or name.")] = None,
    limit: Annotated[int, typer.Option(help="Most tenants to show.", min=1, max=100_000)] = 100,
    recent: Annotated[int, typer.Option(help="Latest ledger rows to show.", min=0, max=1_000)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show used and remaining tokens per tenant, and the latest ledger rows."""
    with admin() as api:
        tenant_id = api.id_of("tenants", tenant) if tenant else None
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


def _latest(api: AdminClient, quotas: list[Json], recent: int) -> dict[int, list[Json]]:
    """Read each shown tenant's latest rows, newest first."""
    if recent == 0:
        return {}
    return {
        int(quota["tenant_id"]): api.items("token-ledger", recent, tenant_id=quota["tenant_id"], order="desc")
        for quota in quotas[:LEDGERS_READ_MAX]
    }
