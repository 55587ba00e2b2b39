"""Import of LiteLLM: its configuration as files of ours, with a list of all that is left out."""

from __future__ import annotations

from gateway.features.record import Feature, lazy

FEATURE = Feature(
    name="litellm_import",
    admin_sections={"import": lazy("gateway.features.litellm_import.command:import_section")},
)
