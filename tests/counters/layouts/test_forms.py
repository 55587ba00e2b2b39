"""Released forms of stored data stay, and forms that no release has carry a second number."""

from __future__ import annotations

import pytest

from gateway.core.layout import KINDS, LAYOUT, Layout, LayoutField
from gateway.counters.layouts.packing import LAYOUTS
from tests import forms

RELEASED = forms.read_released()
KEY = next(one for one in LAYOUTS if one.name == "KEY")
PLAN = next(one for one in LAYOUTS if one.name == "PLAN")
MORE = LayoutField("more", KINDS["f64"], 0, LAYOUT)


def with_fields(of: Layout, *fields: LayoutField) -> tuple[Layout, ...]:
    """Return all forms, one of them with other fields."""
    return tuple(Layout(of.name, fields) if one is of else one for one in LAYOUTS)


def test_released_forms_stay_and_the_second_number_is_that_of_this_tree() -> None:
    assert forms.faults() == []


@pytest.mark.parametrize(
    "fields",
    [
        (*KEY.fields, MORE),
        (*KEY.fields[:1], MORE, *KEY.fields[1:]),
        (*KEY.fields[:-2], *reversed(KEY.fields[-2:])),
        KEY.fields[:-1],
    ],
    ids=["a field more", "a field between others", "two fields in another order", "a field less"],
)
def test_a_stored_form_that_changes_has_another_second_number(fields: tuple[LayoutField, ...]) -> None:
    changed = forms.forms_of(LAYOUT, with_fields(KEY, *fields))
    assert forms.second_number(RELEASED, changed) != forms.second_number(RELEASED)


def test_a_flag_that_comes_has_another_second_number() -> None:
    today = forms.forms_of(LAYOUT)
    changed = {**today, "flags": {**today["flags"], "FLAG_SLIDES": "256"}}
    assert forms.second_number(RELEASED, changed) != forms.second_number(RELEASED)


def test_an_argument_of_scripts_that_changes_has_the_same_second_number() -> None:
    changed = forms.forms_of(LAYOUT, with_fields(PLAN, *PLAN.fields, MORE))
    assert forms.second_number(RELEASED, changed) == forms.second_number(RELEASED)


def test_forms_of_a_release_have_no_second_number() -> None:
    assert forms.second_number({**RELEASED, str(LAYOUT): forms.forms_of(LAYOUT)}) == ""


def test_a_released_form_that_changed_is_named_with_its_remedy() -> None:
    before = {**RELEASED, "132": {**RELEASED["132"], "forms": {"HOLD": "00000000"}}}
    [said] = forms.changed_forms(before)
    assert said.startswith("form HOLD of layout 132 is released, and was changed: put it back")
    assert "add a field under a new number" in said
