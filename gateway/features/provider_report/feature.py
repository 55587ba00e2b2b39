"""Provider report: compares days and models of our ledger with what a provider reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    import typer


def _commands(app: typer.Typer) -> None:
    from gateway.features.provider_report.command import reconcile_provider  # noqa: PLC0415  # of the command line alone

    app.command("reconcile-provider")(reconcile_provider)


FEATURE = Feature(name="provider_report", admin_commands=_commands)
