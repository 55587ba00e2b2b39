"""Import of Portkey: its policies of usage and rates as budgets and limits, with a list of all that is left out."""

from __future__ import annotations

from gateway.features.record import Feature, commands, lazy

FEATURE = Feature(
    name="portkey_import",
    admin_sections={"import": lazy("gateway.cli.admin.imports:import_section")},
    imports=commands("gateway.features.portkey_import.command:portkey"),
)
