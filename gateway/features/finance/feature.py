"""Finance: `tollkeeper report`, and charges of each day as FOCUS has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.feature import Feature, at, mounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.admin.resources.resource import DocumentEndpoint


def _documents() -> Mapping[str, Sequence[DocumentEndpoint]]:
    from gateway.admin.resources.resource import DocumentEndpoint  # noqa: PLC0415  # of people's processes alone

    return {
        "usage": (DocumentEndpoint("/focus.csv", "text/csv", "Charges of each day, as FOCUS 1.4 has them"),)
    }


FEATURE = Feature(
    name="finance",
    documents=_documents,
    admin_commands=at("gateway.features.finance.command:add_reports"),
    routes=mounts(files="gateway.features.finance.api:mount_focus"),
)
