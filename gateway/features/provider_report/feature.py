"""Provider report: compares days and models of our ledger with what a provider reports."""

from __future__ import annotations

from gateway.features.record import Feature, commands

FEATURE = Feature(
    name="provider_report",
    admin_commands=commands("gateway.features.provider_report.command:reconcile_provider"),
)
