"""Import of LiteLLM: its configuration as files of ours, with a list of all that is left out."""

from __future__ import annotations

from gateway.features.record import Feature, commands, lazy

FEATURE = Feature(
    name="litellm_import",
    admin_sections={"import": lazy("gateway.cli.admin.imports:import_section")},
    imports=commands("gateway.features.litellm_import.command:litellm"),
)
