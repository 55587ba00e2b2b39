"""Sections of the command line: the description of one resource of the Admin API each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.admin.resources.form_fields import REFERS, FormField, IntegerParameter, Secret

# Names of sections that are not the resource's name in the singular.
SECTIONS: Mapping[str, str] = {
    "organizations": "org",
    "api-keys": "key",
    "token-plans": "plan",
    "tenant-quotas": "quota",
    "token-ledger": "ledger",
    "organization-services": "negotiated-price",
    "organization-subscriptions": "subscription",
    "credit-additions": "credits",
    "dead-letters": "deadletter",
    "webhook-deliveries": "webhook-delivery",
    "programs": "programs",
}


def section_of(resource: str) -> str:
    """Return the name of the group of commands for a resource, as typed on the command line."""
    return SECTIONS.get(resource) or resource.removesuffix("s")


@dataclass(frozen=True, slots=True)
class CommandParts:
    """One command of a resource: its action `does`, its fields, and those given without an option's name."""

    does: str
    summary: str
    fields: tuple[FormField, ...] = ()
    positional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CliResource:
    """A resource of the Admin API, as its commands need it.

    `filters` are those of its list, `columns` the columns of its table. `parts` are lists within a row with
    their columns, `asks` its queries, `mints` the actions that create a secret, `batch` name and summary of
    the command that sends a file of many. Rows of an `archived` resource may also be read from archives.
    `members` are the name of the set of a row, and of one in it.
    """

    name: str
    description: str
    named_by: str
    filters: tuple[str, ...]
    refers: Mapping[str, str]
    columns: tuple[str, ...]
    commands: Mapping[str, CommandParts]
    parts: Mapping[str, tuple[str, ...]]
    asks: tuple[str, ...]
    mints: tuple[str, ...]
    secret: Secret | None = None
    batch: tuple[str, str] | None = None
    archived: bool = False
    members: tuple[str, str] | None = None

    def target(self, name: str) -> str:
        """Return the resource to which the id in the field `name` refers, or an empty text."""
        return self.refers.get(name) or REFERS.get(name, "")


@dataclass(frozen=True, slots=True)
class CliReport:
    """A report of the Admin API with a command."""

    name: str
    description: str
    summary: str
    numbers: Mapping[str, IntegerParameter]
