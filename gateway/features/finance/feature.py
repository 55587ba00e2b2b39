"""Finance: `tollkeeper report`, and charges of each day as FOCUS has them."""

from __future__ import annotations

from gateway.feature import Feature, at, mounts

FEATURE = Feature(
    name="finance",
    documents={"usage": (("/focus.csv", "text/csv", "Charges of each day, as FOCUS 1.4 has them"),)},
    admin_commands=at("gateway.features.finance.command:add_reports"),
    routes=mounts(files="gateway.features.finance.api:mount_focus"),
)
