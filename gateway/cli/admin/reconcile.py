"""`tollkeeper reconcile`: whether the counters and the ledger say the same."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.admin.options import AsJson
from gateway.cli.admin.output import admin, report, waiting

# What is not stored yet, a budget's window that counts no further, rows that there was no time to ask.
_NO_FAULTS = frozenset({"lag", "full", "unasked"})


def reconcile(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Make drifts good by appended rows.")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Ask rows whether they agree in up to ten minutes, not one.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every account now; exit 1 if any is wrong."""
    with admin() as api:
        with waiting("Comparing every account"):
            found = api.post("reconciliation", {"repair": repair, "whole": whole})
        report(found, "Accounts that differ", as_json=as_json)
        # Whoever wants the whole asked is not told that all is well where it was not.
        fine = _NO_FAULTS - {"unasked"} if whole else _NO_FAULTS
        if any(item["kind"] not in fine for item in found["items"]):
            raise typer.Exit(1)
