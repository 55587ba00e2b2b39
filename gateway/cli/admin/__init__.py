"""Everyday administration from a terminal, over the Admin API: tables for people, `--json` for programs."""

import typer

from gateway.cli.admin import (
    credits,  # noqa: A004  # the domain's word
    deadletters,
    invoices,
    keys,
    organizations,
    plans,
    quarantine,
    reconcile,
    services,
    subscriptions,
    tenants,
    top,
    usage,
)

SECTIONS = {
    "org": organizations.app,
    "tenant": tenants.app,
    "key": keys.app,
    "plan": plans.app,
    "service": services.app,
    "credits": credits.app,
    "subscription": subscriptions.app,
    "invoice": invoices.app,
    "deadletter": deadletters.app,
    "quarantine": quarantine.app,
}


def mount(app: typer.Typer) -> None:
    """Add the administration commands to the program's."""
    for name, section in SECTIONS.items():
        app.add_typer(section, name=name)
    app.command("usage")(usage.usage)
    app.command("top")(top.top)
    app.command("reconcile")(reconcile.reconcile)
