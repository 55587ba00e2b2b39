"""A token plan's terms: each field of a plan that the counters go by, once.

The Admin API's fields, the columns of the table, what a control write carries and what a tenant's state
holds are made from these. What a term does is said in the scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gateway.core.accounts.zones import CLOCK_OF_UTC, Clock, clock_of


def _term(default: object, description: str = "", *, of_new: object = None) -> Any:
    """A field with what the Admin API says of it, and the default of a new plan where it is another one."""
    of_new = default if of_new is None else of_new
    return field(default=default, metadata={"default": of_new, "description": description})


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """A token plan as a tenant follows it; `plan_id` 0 is "no plan".

    `anchor` is the tenant's: the day on which its months begin where the plan says none. `clock` is what the
    scripts are told of the zone. They know a choice by its place, from 0: a new one goes to the end.
    """

    plan_id: int = 0
    anchor: int = 1
    clock: Clock = CLOCK_OF_UTC
    total_amount: int | None = _term(None, "Tokens a cycle; null is unlimited.")
    reset_interval: Literal["none", "daily", "weekly", "monthly"] = _term("none", of_new="monthly")
    overage_policy: Literal["block", "carry", "bill"] = _term(
        "block", "block: debt is forgiven at reset; carry: it is kept; bill: never refused."
    )
    rollover_max: int = _term(0, "Most unused tokens a reset carries over.")
    time_zone: str = _term("UTC", "An IANA name: whose days it counts.")
    anchor_day: int | None = _term(
        None,
        "The day a cycle begins on: 1 to 31 of a month, 1 (Monday) to 7 of a week. Null is the day the"
        " organization's subscription began on, else 1.",
    )
    admission: Literal["available", "strict"] = _term("available")
    on_exhausted: Literal["finish", "cut"] = _term("finish")
    on_store_failure: Literal["deny", "allow"] = _term("deny")


@dataclass(frozen=True, slots=True)
class Term:
    """One field of a plan: a number, one of some choices, or a text. `default` is that of a new plan."""

    name: str
    choices: tuple[str, ...]
    is_text: bool
    nullable: bool
    default: object
    description: str

    @property
    def counts(self) -> bool:
        """The scripts have it as a number."""
        return bool(self.choices) or not self.is_text


def _terms() -> tuple[Term, ...]:
    hints = get_type_hints(PlanTerms)
    return tuple(
        Term(
            one.name,
            get_args(hints[one.name]) if get_origin(hints[one.name]) is Literal else (),
            get_origin(hints[one.name]) is Literal or hints[one.name] is str,
            NoneType in get_args(hints[one.name]),
            **one.metadata,
        )
        for one in fields(PlanTerms)
        if one.metadata
    )


TERMS = _terms()
SINCE_MS = "since_ms"
_STATED = ("plan_id", "anchor", *(one.name for one in TERMS))


def read_terms(row: Mapping[str, Any], at_ms: int) -> PlanTerms:
    """Terms of a row or a control write that has the fields by their names; without a plan, those of none.

    A field that is not there is one that the version which committed it did not know. The clock is what is
    told at this moment.
    """
    terms = _stated(row)
    return replace(terms, clock=clock_of(terms.time_zone, at_ms))


def plan_payload(plan: Mapping[str, object] | None, *, anchor: int, since_ms: int) -> dict[str, object]:
    """What a control write of verb `plan` carries of a token plan, a row of the table; None is no plan.

    `since_ms` is when that was decided: cycles that were over by then end by the plan before.
    """
    terms = _stated({**(plan or {}), "plan_id": plan and plan["id"], "anchor": anchor})
    stated = {name: getattr(terms, name) for name in _STATED}
    return stated | {"plan_id": terms.plan_id or None, SINCE_MS: since_ms}


def _stated(row: Mapping[str, Any]) -> PlanTerms:
    if row["plan_id"] is None:
        return PlanTerms(anchor=row["anchor"])
    return PlanTerms(**{name: row[name] for name in _STATED if name in row})
