"""Finance: `tollkeeper report`, which shows what organizations owe, and revenue, taxes and entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    import typer


def _commands(app: typer.Typer) -> None:
    from gateway.features.finance.command import report_section  # noqa: PLC0415  # of the command line alone

    app.add_typer(report_section(), name="report")


FEATURE = Feature(name="finance", admin_commands=_commands)
