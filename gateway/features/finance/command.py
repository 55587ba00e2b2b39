"""`tollkeeper report …`: reports for finance, as a table, as JSON, or as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.admin.output import AsJson, admin, rows

ITEMS_MAX = 10_000
ReportOrganization = Annotated[str | None, typer.Option("--org", help="Only this organization: id or name.")]
Currency = Annotated[str | None, typer.Option(help="Only this currency.")]
At = Annotated[str | None, typer.Option(help="As it was at the end of this day, UTC; else today.")]
Since = Annotated[str | None, typer.Option("--from", help="The first month, such as 2026-04.")]
Until = Annotated[str | None, typer.Option("--to", help="The last month; else this one.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
Parquet = Annotated[Path | None, typer.Option(help="Write Parquet to this file.")]


# Reports as of the end of a day.
_OF_A_DAY = {
    "receivables": "Show what organizations have to pay, by age.",
    "unbilled": "Show what was charged and no invoice has, by the month of its supply.",
    "balances": "Show the whole debt of organizations: documents, payments, credit and unbilled charges.",
    "deferred-revenue": "Show what is billed and not supplied yet, by the month of its supply.",
}


def add_reports(program: typer.Typer) -> None:
    """Add the section `report`, with the reports for finance, to the program."""
    app = typer.Typer(help="What finance asks: what is owed, deferred, earned, taxed; and entries.")
    program.add_typer(app, name="report")
    for name, help_ in _OF_A_DAY.items():
        app.command(name, help=help_)(_of_a_day(name))
    for function in (revenue, taxes, ledger):
        app.command()(function)


def _of_a_day(name: str) -> Callable[..., None]:
    def show(
        *, at: At = None, org: ReportOrganization = None, currency: Currency = None, as_csv: AsCsv = False,
        parquet: Parquet = None, as_json: AsJson = False,
    ) -> None:  # fmt: skip
        _report(name, org, parquet, as_csv=as_csv, as_json=as_json, at=at, currency=currency)

    return show


def revenue(
    *, since: Since = None, until: Until = None, org: ReportOrganization = None, currency: Currency = None,
    as_csv: AsCsv = False, parquet: Parquet = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what was earned, by month and kind."""
    _report("revenue", org, parquet, as_csv=as_csv, as_json=as_json, from_=since, to=until, currency=currency)


def taxes(
    *, since: Since = None, until: Until = None,
    by: Annotated[str | None, typer.Option(help="document or supply.")] = None,
    org: ReportOrganization = None,
    currency: Currency = None, as_csv: AsCsv = False, parquet: Parquet = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show tax by month, rate and currency."""
    _report(
        "taxes", org, parquet, as_csv=as_csv, as_json=as_json, from_=since, to=until, by=by, currency=currency
    )


def ledger(
    *, since: Since = None, until: Until = None, org: ReportOrganization = None, currency: Currency = None,
    account: Annotated[
        list[str] | None, typer.Option(help="The code of an account, such as receivables:1200; repeat it.")
    ] = None, as_csv: AsCsv = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show double entries of charges, invoices, payments and credit notes."""
    codes = ",".join(account) if account else None
    _report(
        "ledger", org, None, as_csv=as_csv, as_json=as_json, from_=since, to=until, accounts=codes,
        currency=currency,
    )  # fmt: skip


def _report(
    name: str, org: str | None, parquet: Path | None, *, as_csv: bool, as_json: bool, **asked: str | None
) -> None:
    """Print the rows of a report, or download it as CSV or to a Parquet file."""
    with admin() as api:
        organization_id = api.id_of("organizations", org) if org else None
        if parquet is not None:
            made = api.download(f"reports/{name}.parquet", **asked, organization_id=organization_id)
            parquet.write_bytes(made)
            return
        if as_csv:
            made = api.download(f"reports/{name}.csv", **asked, organization_id=organization_id)
            typer.echo(made, nl=False)
            return
        items = api.items(f"reports/{name}", ITEMS_MAX, **asked, organization_id=organization_id)
        columns = [
            column
            for column in (items[0] if items else ())
            if not column.endswith("_id") or column == "entry_id"
        ]
        rows(items, tuple(columns), as_json=as_json)
