"""Capabilities: writes that are right only once all running programs know what they bring. Pure.

An earlier program ignores such a row: it limits nobody by it, charges another price, or fails. So a write is
refused until the layout that came with its capability is taken up: from then on no earlier program serves.
A capability with a schema alone is used by keepers alone, and by no marker in Redis: their list decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.accounts.budget_amounts import MONEY_DIGITS_MAX
from gateway.core.accounts.budgets import MONEY, OF_GROUP, TENANT
from gateway.core.accounts.tags import tag_in
from gateway.core.accounts.windows import CALENDAR
from gateway.core.processes import Program, name_programs

# The largest amount of money that programs before layout 133 count.
USUAL_MONEY_MAX = MONEY_DIGITS_MAX[9]
# For people who may not see which programs run.
WAITS = "{} wait for the end of an upgrade of this installation: try again later."

Row = Mapping[str, object]
# Whether a write uses a capability, by its verb, its values and the row after it.
Uses = Callable[[str, Row, Row], bool]


@dataclass(frozen=True, slots=True)
class Capability:
    """A name in words, the writes that use the capability, by resource, and the first version that knows it.

    `layout` is that of all programs, 0 if gateways need not know it; `schema` is that of keepers.
    """

    what: str
    uses: Mapping[str, Uses]
    layout: int = 0
    schema: str = ""

    def is_lacked_by(self, name: str, program: Program) -> bool:
        """Return whether a program does not know this capability, which is called `name`.

        Programs that list none are earlier ones, which are known by their numbers.
        """
        if not self.layout and program.role != "keeper":
            return False
        if program.knows:
            return name not in program.knows
        return program.layout < self.layout or "" < program.schema < self.schema


def _is_large(verb: str, values: Row, row: Row) -> bool:
    return row.get("unit") == MONEY and _above(values.get("amount"))


def _approves_large(verb: str, values: Row, row: Row) -> bool:
    return verb == "approve" and row["unit"] == MONEY and _above(row["amount"])


def _above(amount: object) -> bool:
    return amount is not None and amount > USUAL_MONEY_MAX  # type: ignore[operator]  # a number of money


def _does(*verbs: str) -> Uses:
    return lambda verb, *_: verb in verbs


def _sets(*names: str) -> Uses:
    return lambda verb, values, row: any(values.get(name) is not None for name in names)


def _of_budgets(verb: str, values: Row, row: Row) -> bool:
    if "events" not in values:
        return False
    events: Any = values["events"]  # a list of names; without any it is of every event
    return not events or any(event.startswith("budget.") for event in events)


def _names_tags(verb: str, values: Row, row: Row) -> bool:
    return bool(values.get("tags")) or tag_in(str(values.get("each") or "")) != ""


def _names_group(verb: str, values: Row, row: Row) -> bool:
    return values.get("group_id") is not None or str(values.get("who", "")).startswith(OF_GROUP)


# Names are said by running programs, so none is ever removed.
CAPABILITIES: Mapping[str, Capability] = {
    "large_budgets": Capability(
        f"Budget amounts above {USUAL_MONEY_MAX}",
        {"budgets": _is_large, "raise-requests": _approves_large},
        layout=133,
    ),
    "personal_raises": Capability(
        "Raises of one user, session, key or project",
        {
            "budgets": lambda verb, values, _: verb == "raise" and values.get("who") is not None,
            "raise-requests": lambda verb, _, row: verb == "approve" and row["who"] is not None,
        },
        layout=133,
    ),
    "overrides": Capability(
        "Overrides of budgets", {"budgets": _does("override")}, layout=133, schema="0134"
    ),
    "tenant_budgets": Capability(
        "Budgets with an amount for each tenant",
        {"budgets": lambda verb, values, row: values.get("each") == TENANT},
        layout=133,
        schema="0134",
    ),
    "budget_webhooks": Capability("Webhooks of budgets", {"webhooks": _of_budgets}, schema="0125"),
    "amended_prices": Capability("Amended prices", {"prices": _does("amend")}, layout=133, schema="0131"),
    "cache_prices": Capability(
        "Prices of kept contents and of cached sound",
        {"prices": _sets("cache_hour", "cache_audio")},
        layout=133,
    ),
    "hourly_prices": Capability(
        "Prices by the hour",
        {"prices": lambda verb, values, row: bool(values.get("hours"))},
        layout=133,
        schema="0133",
    ),
    "tags": Capability(
        "Tags",
        dict.fromkeys(("organizations", "api-keys", "budgets"), _names_tags),
        layout=133,
        schema="0136",
    ),
    "service_discounts": Capability(
        "Discounts on services", {"organization-services": _sets("discount")}, schema="0138"
    ),
    "groups": Capability(
        "Groups and budgets of them",
        {"groups": lambda verb, values, _: verb != "delete", "budgets": _names_group},
        layout=133,
        schema="0135",
    ),
    "windows": Capability(
        "Budgets with a window that rolls or begins at first use",
        {"budgets": lambda verb, values, row: values.get("window", CALENDAR) != CALENDAR},
        layout=133,
        schema="0140",
    ),
    "carry": Capability("Carry-over of budgets", {"budgets": _sets("carry")}, layout=133, schema="0142"),
    "steps": Capability(
        "Steps of budgets",
        {"budgets": lambda verb, values, row: bool(values.get("steps"))},
        layout=133,
        schema="0141",
    ),
    "run_policies": Capability(
        "Policies of runs", dict.fromkeys(("organizations", "tenants", "api-keys"), _sets("runs")), layout=133
    ),
}


def used_by(resource: str, verb: str, values: Row, row: Row) -> Iterator[str]:
    """Yield the names of the capabilities that a write of a resource uses; `row` is the row after it."""
    if verb == "set-overrides":
        overrides: Any = values["overrides"]
        yield from dict.fromkeys(
            name for own in overrides for name in used_by(resource, "override", own, row)
        )
        return
    for name, capability in CAPABILITIES.items():
        uses = capability.uses.get(resource)
        if uses is not None and uses(verb, values, row):
            yield name


def wait_reason(name: str, programs: Sequence[Program], written: int) -> str:
    """Return why a capability cannot be used yet, naming the programs to replace; "" if it can.

    `programs` run, `written` is the lowest layout in which a partition of Redis is written, 0 for unknown.
    """
    capability = CAPABILITIES[name]
    earlier = [program for program in programs if capability.is_lacked_by(name, program)]
    if earlier:
        named = name_programs(earlier)
        return f"{capability.what} wait for programs that do not know them, replace these first: {named}."
    if written < capability.layout:
        return (
            f"{capability.what} wait until layout {capability.layout} is taken up: an earlier program that ended"
            " less than 90 seconds ago may run still. Try again in a while."
        )
    if not any(program.role == "keeper" for program in programs):
        return (
            f"{capability.what} wait for the list of programs, which names no keeper: try again in a while."
        )
    return ""
