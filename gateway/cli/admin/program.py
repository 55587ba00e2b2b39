"""All administration commands: those that are made of the resources, and those written by hand."""

from __future__ import annotations

from collections.abc import Collection

import typer

from gateway.cli.admin import commands, invoices, letters, prices, reconcile, report, top, usage
from gateway.cli.admin.configuration import commands as configuration
from gateway.cli.admin.provider.command import reconcile_provider


def mount(app: typer.Typer, asked: Collection[str] | None = None) -> None:
    """Add the administration commands to the program's: all, or those of the sections `asked`."""
    made = commands.mount(app, asked)
    for function in (invoices.create, invoices.show, invoices.run):
        made["invoice"].command(function.__name__)(function)
    for decision in (letters.redrive, letters.release):
        made["letters"].command(decision.__name__)(decision)
    made["reconciliation"].command("run")(reconcile.reconcile)
    app.add_typer(prices.section(), name="prices")
    app.add_typer(report.section(), name="report")
    for each in (configuration.apply, configuration.diff, configuration.export):
        app.command(each.__name__)(each)
    app.command("usage")(usage.usage)
    app.command("top")(top.top)
    app.command("reconcile")(reconcile.reconcile)
    app.command("reconcile-provider")(reconcile_provider)
