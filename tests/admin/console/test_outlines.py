"""Nested values in forms: written as lines, read back as the same value, and no form asks for JSON."""

from __future__ import annotations

from decimal import Decimal
from html import unescape

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admin.console.forms import EXAMPLES, hint_of
from gateway.admin.console.outlines import fit_to, read_outline, write_outline
from gateway.admin.console.screens import SCREENS
from gateway.admin.resources.resource import fields_of
from tests.admin.conftest import Api
from tests.admin.console.conftest import Person
from tests.search import examples

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.from_regex(r"[a-z][a-z0-9_*./-]{0,8}", fullmatch=True), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=examples(100), deadline=None)
@given(VALUES)
def test_nested_value_written_as_form_text_reads_back_as_the_same_value(value: object) -> None:
    assert read_outline(write_outline(value)) == as_text(value)


def as_text(value: object) -> object:
    """A value with numbers for texts of digits: the field's model makes them texts again."""
    if isinstance(value, dict):
        return {name: as_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_text(inner) for inner in value]
    return read_outline(value) if isinstance(value, str) and value.lstrip("+-").isdecimal() else value


def test_example_shown_for_each_nested_form_field_is_valid_input() -> None:
    seen = set()
    for screen in SCREENS.values():
        resource = screen.resource
        for model in (resource.create, resource.patch, *(action.body for action in resource.actions)):
            for field in () if model is None else fields_of(resource, model):
                assert not set("{`") & set(hint_of(field.hint)), field
                if field.kind != "json" or (screen.name, field.name) == ("invoices", "lines"):
                    continue
                seen.add(field.name)
                value = fit_to(model, field.name, read_outline(EXAMPLES[field.name]))
                model.__pydantic_validator__.validate_assignment(model.model_construct(), field.name, value)
                assert fit_to(model, field.name, read_outline(write_outline(value))) == value
    assert len(seen) >= 12


async def test_model_targets_and_tool_prices_are_typed_as_lines_of_text_in_the_form(
    api: Api, admin: Person
) -> None:
    targets = "openai: gpt-4o-mini\nazure: small"
    done = await admin.fill("/models/new", "/models", name="fast", targets=targets)
    assert done.status == 303
    [model] = (await api.get("models")).json["items"]
    assert [(each["upstream"], each["model"]) for each in model["targets"]] == [
        ("openai", "gpt-4o-mini"), ("azure", "small"),
    ]  # fmt: skip
    page = (await admin.open(f"/models/{model['id']}")).text
    shown = unescape(page.partition('name="targets"')[2].partition("</textarea>")[0])
    assert "- model: gpt-4o-mini\n  upstream: openai" in shown
    exact = "123456789012.123456789"
    typed = {"model": "m", "currency": "USD", "input": "1", "output": "2", "tools": f"web_search: {exact}"}
    made = await admin.fill("/prices/new", "/prices", **typed, effective_from="2027-01-01T00:00")
    assert made.status == 303, made.text
    [price] = (await api.get("prices?model=m")).json["items"]
    assert Decimal(price["tools"]["web_search"]) == Decimal(exact)
    wrong = await admin.fill("/models/new", "/models", name="slow", targets="gpt-4o-mini")
    assert (wrong.status, "must be lines as in the example" in wrong.text) == (422, True)


async def test_organization_form_accepts_an_address_as_lines_or_as_named_parts(
    api: Api, admin: Person
) -> None:
    for typed, kept in (
        ("Main Road 5\n10115 Berlin", ["Main Road 5", "10115 Berlin"]),
        ("street: Main Road 5\npost_code: 10115", {"street": "Main Road 5", "post_code": "10115"}),
        ("Attn: Ada", ["Attn: Ada"]),
    ):
        name = f"Org {len(typed)}"
        done = await admin.fill("/organizations/new", "/organizations", name=name, address=typed)
        assert done.status == 303, done.text
        [row] = (await api.get(f"organizations?name={name}")).json["items"]
        address = row["address"]
        if isinstance(address, dict):
            address = {part: value for part, value in address.items() if value is not None}
        assert address == kept
