"""`tollkeeper reconcile`: whether the counters and the ledger say the same."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, report, waiting

# What is only not stored yet, and a budget's window that counts no further.
_NO_FAULTS = frozenset({"lag", "full"})


def reconcile(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Make drifts good by appended rows.")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Ask all rows whether they agree, also those proven before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every account now; exit 1 if any is wrong."""
    with admin() as api:
        with waiting("Comparing every account"):
            found = api.post("reconciliation", {"repair": repair, "whole": whole})
        report(found, "Accounts that differ", as_json=as_json)
        if any(item["kind"] not in _NO_FAULTS for item in found["items"]):
            raise typer.Exit(1)
