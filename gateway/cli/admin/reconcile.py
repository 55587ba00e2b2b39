"""`tollkeeper reconcile`: whether the counters and the ledger say the same."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, row, rows, waiting

COLUMNS = ("account", "kind", "difference", "seq", "detail")


def reconcile(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Make drifts good by appended rows.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every account now; exit 1 if any is wrong."""
    with admin() as api:
        with waiting("Comparing every account"):
            found = api.post("reconciliation", {"repair": repair})
        if as_json:
            row(dict(found), as_json=True)
        else:
            rows(found["items"], COLUMNS, as_json=False, title="Accounts that differ")
            row({name: value for name, value in found.items() if name != "items"}, as_json=False)
        if any(item["kind"] != "lag" for item in found["items"]):
            raise typer.Exit(1)
