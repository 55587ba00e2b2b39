"""Finance: `tollkeeper report`, and the charges of each day in the FOCUS format."""

from __future__ import annotations

from gateway.features.record import Feature, lazy, mounts

_VERSIONS = (("version", ("1.4", "1.2")),)

FEATURE = Feature(
    name="finance",
    documents={
        "usage": (
            ("/focus.csv", "text/csv", "Charges of each day, as FOCUS has them", _VERSIONS),
            ("/focus.parquet", "application/vnd.apache.parquet", "The same as Parquet", _VERSIONS),
        )
    },
    admin_commands=lazy("gateway.features.finance.command:add_reports"),
    routes=mounts(files="gateway.features.finance.api:mount_focus"),
)
