"""Import of OpenRouter: its guardrails as budgets and lists of models, with a list of all that is left out."""

from __future__ import annotations

from gateway.features.record import Feature, commands, lazy

FEATURE = Feature(
    name="openrouter_import",
    admin_sections={"import": lazy("gateway.cli.admin.imports:import_section")},
    imports=commands("gateway.features.openrouter_import.command:openrouter"),
)
