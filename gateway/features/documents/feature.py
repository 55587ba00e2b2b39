"""Documents: an invoice as PDF and as electronic invoice (EN 16931: Factur-X, UBL)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.extras import is_installed
from gateway.features.documents.settings import DocumentSettings
from gateway.features.record import Feature

if TYPE_CHECKING:
    from gateway.run.keeper_parts import AdminParts, KeeperParts, Routes, Work
    from gateway.settings.settings import Settings


def _missing_glyphs() -> Callable[[str], str] | None:
    if not is_installed("documents"):  # no PDF is made in which letters could be missing
        return None
    from gateway.features.documents.press import missing_glyphs  # its library is large

    return missing_glyphs


def logo_of(settings: Settings) -> Path | None:
    """Return the path of the configured logo, or None; `SettingError` if the file cannot be used."""
    from gateway.features.documents.renderer import LOGO_KINDS  # of keepers alone
    from gateway.run.letterhead import readable, wrong

    logo = settings.select(DocumentSettings).invoice_logo
    if not logo:
        return None
    path = Path(logo)
    if path.suffix.lower() not in LOGO_KINDS:
        raise wrong("invoice_logo", str(path), f"a file of {', '.join(sorted(LOGO_KINDS))}")
    readable("invoice_logo", path)
    return path


def _work(parts: KeeperParts) -> Work | None:
    logo_of(parts.settings)  # an unusable logo stops the start
    return None


def _routes(parts: AdminParts) -> Routes:
    from gateway.features.documents.maker import mount_documents  # of people's processes alone
    from gateway.run.keeper_parts import Routes

    return Routes(files=partial(mount_documents, logo_of(parts.settings)))


FEATURE = Feature(
    name="documents",
    settings=DocumentSettings,
    documents={
        "invoices": (
            (".pdf", "application/pdf", "An invoice on paper"),
            (
                ".xml", "application/xml", "A final invoice as EN 16931 or its profile has it: Factur-X, UBL",
                (("format", ("factur-x", "ubl")), ("profile", ("en16931", "xrechnung", "peppol"))),
            ),
        )
    },
    missing_glyphs=_missing_glyphs,
    work=_work,
    routes=_routes,
)  # fmt: skip
