"""Sections of the command line: a resource of the Admin API each, as far as its commands need to know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.admin.resources.form_fields import REFERS, FormField, IntegerParameter, Secret

# A section is its resource in the singular, but for these.
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
    """Return the word people type for a resource."""
    return SECTIONS.get(resource) or resource.removesuffix("s")


@dataclass(frozen=True, slots=True)
class CommandParts:
    """One command of a resource: what it `does` to rows, its fields, and those that need no option's name."""

    does: str
    summary: str
    fields: tuple[FormField, ...] = ()
    positional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CliResource:
    """A resource of the Admin API.

    `filters` are those of its list, `columns` what a table shows of it. `parts` are lists within a row with
    their columns, `asks` its questions, `mints` the actions that make a secret, `batch` the name and summary
    of the command that sends a file of many. Rows of an `archived` one may be read elsewhere.
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

    def target(self, name: str) -> str:
        """Return the resource whose id a field of this one holds; empty if it holds none."""
        return self.refers.get(name) or REFERS.get(name, "")


@dataclass(frozen=True, slots=True)
class CliReport:
    """A report of the Admin API that has a command."""

    name: str
    description: str
    summary: str
    numbers: Mapping[str, IntegerParameter]
