"""A plan's terms: what of them is stated, defaulted, committed and read again."""

from __future__ import annotations

from dataclasses import fields

from gateway.core.accounts.plans import TERMS, PlanTerms, plan_payload, read_terms
from gateway.core.times import CLOCK_OF_UTC, HOUR_MS, ZoneOffset

ROW = {
    "id": 4, "name": "Team", "total_amount": 500, "reset_interval": "daily", "overage_policy": "bill",
    "rollover_max": 3, "admission": "strict", "on_exhausted": "cut", "on_store_failure": "allow",
    "time_zone": "Europe/Berlin", "anchor_day": 7,
}  # fmt: skip
SUMMER = 1_774_746_000_000  # 2026-03-29T01:00Z: clocks of Berlin are set on


def test_a_control_write_brings_the_terms_of_its_plan() -> None:
    payload = plan_payload(ROW, anchor=31, since_ms=SUMMER)
    stated = {name: value for name, value in ROW.items() if name not in ("id", "name")}
    assert payload.items() >= ({"plan_id": 4, "anchor": 31, "since_ms": SUMMER} | stated).items()
    assert payload.keys() == {"plan_id", "anchor", "since_ms"} | {one.name for one in TERMS}
    clock = ZoneOffset(HOUR_MS, SUMMER, 2 * HOUR_MS)
    assert read_terms(payload, SUMMER - 1) == PlanTerms(plan_id=4, anchor=31, clock=clock, **stated)


def test_no_plan_is_unlimited_and_never_reset() -> None:
    payload = plan_payload(None, anchor=7, since_ms=0)
    assert payload["plan_id"] is None
    assert read_terms(payload, SUMMER) == PlanTerms(anchor=7)
    assert (PlanTerms().plan_id, PlanTerms().total_amount, PlanTerms().reset_interval) == (0, None, "none")


def test_a_field_that_its_version_did_not_know_has_its_default() -> None:
    payload = plan_payload(ROW, anchor=1, since_ms=0)
    for name in ("rollover_max", "time_zone", "anchor_day"):
        del payload[name]
    terms = read_terms(payload, SUMMER)
    assert (terms.rollover_max, terms.time_zone, terms.anchor_day, terms.clock) == (
        0,
        "UTC",
        None,
        CLOCK_OF_UTC,
    )


def test_every_field_of_a_plan_is_a_term_and_only_a_number_may_be_null() -> None:
    stated = [one.name for one in fields(PlanTerms)]
    assert stated == ["plan_id", "anchor", "clock", *(one.name for one in TERMS)]
    assert [one.name for one in TERMS if one.nullable] == ["total_amount", "anchor_day"]
    assert {one.name: one.default for one in TERMS}["reset_interval"] == "monthly"
    for one in TERMS:
        assert one.default in (one.choices or (("UTC",) if one.is_text else (None, 0))), one.name
