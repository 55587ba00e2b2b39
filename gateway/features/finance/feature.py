"""Finance: `tollkeeper report`, and charges of each day as FOCUS has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import typer

    from gateway.admin.resources.resource import DocumentEndpoint
    from gateway.run.keeper_doors import AdminParts, Routes


def _documents() -> Mapping[str, Sequence[DocumentEndpoint]]:
    from gateway.admin.resources.resource import DocumentEndpoint  # noqa: PLC0415  # of people's processes alone

    return {
        "usage": (DocumentEndpoint("/focus.csv", "text/csv", "Charges of each day, as FOCUS 1.4 has them"),)
    }


def _routes(_: AdminParts) -> Routes:
    from gateway.features.finance.api import mount_focus  # noqa: PLC0415  # of people's processes alone
    from gateway.run.keeper_doors import Routes  # noqa: PLC0415  # as above

    return Routes(files=mount_focus)


def _commands(app: typer.Typer) -> None:
    from gateway.features.finance.command import report_section  # noqa: PLC0415  # of the command line alone

    app.add_typer(report_section(), name="report")


FEATURE = Feature(name="finance", documents=_documents, admin_commands=_commands, routes=_routes)
