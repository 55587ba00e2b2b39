"""Everyday administration from a terminal, over the Admin API: tables for people, `--json` for programs."""

import typer

from gateway.cli_admin import keys, organizations, plans, tenants, usage

SECTIONS = {
    "org": organizations.app,
    "tenant": tenants.app,
    "key": keys.app,
    "plan": plans.app,
}


def mount(app: typer.Typer) -> None:
    """Add the administration commands to the program's."""
    for name, section in SECTIONS.items():
        app.add_typer(section, name=name)
    app.command("usage")(usage.usage)
