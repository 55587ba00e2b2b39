"""Finance: `tollkeeper report`, and charges of each day as FOCUS has them."""

from __future__ import annotations

from gateway.feature import Feature, lazy, mounts

FEATURE = Feature(
    name="finance",
    documents={"usage": (("/focus.csv", "text/csv", "Charges of each day, as FOCUS 1.4 has them"),)},
    admin_commands=lazy("gateway.features.finance.command:add_reports"),
    routes=mounts(files="gateway.features.finance.api:mount_focus"),
)
