"""`tollkeeper reconcile-provider`: its options and its output."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import typer

from gateway.cli.admin import output
from gateway.cli.admin.output import AsJson

BAD_INPUT: Final = 2


class ReportProvider(StrEnum):
    """The provider of the report."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def reconcile_provider(
    provider: Annotated[ReportProvider, typer.Argument(help="Whose report it is.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|URL",
            help="Reports as JSON or CSV, - for standard input, or the API; by default the provider's.",
        ),
    ] = None,
    *,
    api: Annotated[
        str | None, typer.Option("--api", help="Base URL of the provider's API, by default its own.")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", help="From this day on, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Before this day, UTC.")] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            help="Ours that go to the provider, by key or id; by default those of its built-in routes."
        ),
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(help="How much may differ: 1%, cost=0.01, requests=5%. Without a field, each."),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare days and models with a provider's report; exit 1 if any differs, 2 if it cannot be read."""
    from gateway.features.provider_report import api as comparing  # each command loads what it needs

    with output.admin(failed=BAD_INPUT) as admin:
        asked = comparing.ProviderOptions(
            provider.value, files or (), api, since, until, service or (), tolerance or ()
        )
        comparison = comparing.compare_usage(admin, asked)
    if as_json:
        comparing.print_json(comparison)
    elif as_csv:
        comparing.print_csv(comparison)
    else:
        comparing.print_table(comparison)
    if not comparison.is_matched:
        raise typer.Exit(1)
