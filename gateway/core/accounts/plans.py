"""Terms of token plans: each field of a plan on which the counters depend, defined once.

The Admin API's fields, the table's columns, the payload of control writes and the stored state of tenants are
made from these. The effect of each term is documented in the scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gateway.core.times import CLOCK_OF_UTC, ZoneOffset, clock_of


def _term(default: object, description: str = "", *, of_new: object = None) -> Any:
    """Make a dataclass field for a term of a plan.

    `description` is its text in the Admin API; `of_new` is the default in new plans, if not `default`.
    """
    of_new = default if of_new is None else of_new
    return field(default=default, metadata={"default": of_new, "description": description})


@dataclass(frozen=True, slots=True)
class PlanTerms:
    """The terms of a token plan for one tenant. `plan_id` 0 means no plan.

    `anchor` is the day on which the tenant's months begin if the plan names none. `clock` is the time zone's
    offset for the scripts. Scripts know a choice by its index from 0, so new choices are added at the end.
    """

    plan_id: int = 0
    anchor: int = 1
    clock: ZoneOffset = CLOCK_OF_UTC
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
        """Whether the Lua scripts store this field of a plan as a number."""
        return bool(self.choices) or not self.is_text


def _terms() -> tuple[Term, ...]:
    """Return the terms of a token plan, from the fields of `PlanTerms`."""
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
_STATED = ("plan_id", "anchor", *(term.name for term in TERMS))


def read_terms(row: Mapping[str, Any], at_ms: int) -> PlanTerms:
    """Return the terms of a plan from a database row or control write with these field names.

    Fields that are missing (no plan, or written by an older version) get the defaults. `at_ms` (Unix ms)
    decides the offset of the plan's time zone.
    """
    terms = _stated(row)
    return replace(terms, clock=clock_of(terms.time_zone, at_ms))


def plan_payload(plan: Mapping[str, object] | None, *, anchor: int, since_ms: int) -> dict[str, object]:
    """Return the payload of the control write that assigns a token plan (a row), or None for no plan.

    `anchor` is the day from which cycles count. `since_ms` (Unix ms) is the time of the change: cycles
    that ended before are closed by the old plan.
    """
    terms = _stated({**(plan or {}), "plan_id": plan and plan["id"], "anchor": anchor})
    stated = {name: getattr(terms, name) for name in _STATED}
    return stated | {"plan_id": terms.plan_id or None, SINCE_MS: since_ms}


def _stated(row: Mapping[str, Any]) -> PlanTerms:
    if row["plan_id"] is None:
        return PlanTerms(anchor=row["anchor"])
    return PlanTerms(**{name: row[name] for name in _STATED if name in row})


@dataclass(frozen=True, slots=True)
class LiveQuota:
    """A tenant's token account as Redis holds it now.

    `tokens_remaining` ignores holds, and is None if unlimited. `next_reset_ms` is 0 if the plan never resets.
    Tokens are counted by the weights of the plan. `block_cause` is the word of a `BlockCause`.
    """

    tokens_used: int
    tokens_remaining: int | None
    tokens_held: int
    is_blocked: bool
    manual_block: bool
    block_cause: str | None
    last_reset_ms: int
    next_reset_ms: int
    cycle: int
    seq: int
