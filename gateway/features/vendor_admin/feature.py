"""Vendors' Admin APIs: usage and costs as Anthropic's and OpenAI's SDKs and dashboards read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.feature import Feature

if TYPE_CHECKING:
    from gateway.run.keeper_doors import AdminParts, Routes


def _routes(_: AdminParts) -> Routes:
    from gateway.features.vendor_admin.api import mount_vendors  # noqa: PLC0415  # of people's processes alone
    from gateway.run.keeper_doors import Routes  # noqa: PLC0415  # as above

    return Routes(mount=mount_vendors)


FEATURE = Feature(name="vendor_admin", routes=_routes)
