"""Which members of a call's metadata are tags, and whose value goes before."""

from __future__ import annotations

import pytest

from gateway.core.accounts.tags import read_value, read_values, tags_of


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("search", "search"), ("Ä b", "Ä b"), ("x" * 64, "x" * 64), (7, "7"), (-1.5, "-1.5"), (10**63, "1" + "0" * 63),
        (1.0, "1"), (-0.0, "0"), (1e22, "1" + "0" * 22), (0.1, "0.1"),
        (1e30, "1" + "0" * 30), (10**30, "1" + "0" * 30), (-6.02e23, "-602" + "0" * 21), (2.0**63, "9223372036854776000"), (True, "true"), (False, "false"), ("👩‍💻", "👩‍💻"),
    ],
)  # fmt: skip
def test_tag_is_text_or_number_or_boolean_spelled_as_in_json(value: object, tag: str) -> None:
    assert read_value(value) == tag


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x" * 65,
        None,
        [],
        {"a": "b"},
        10**64,
        -(10**64),
        1e300,
        "a\tb",
        "a\x7f",
        "a\x85",
        "a\u202eb",
        "a\u200f",
        "a\u2066",
        "a\u2028",
    ],
)
def test_tag_of_another_value_is_none(value: object) -> None:
    assert read_value(value) == ""


def test_tags_are_members_with_names_that_can_be_declared() -> None:
    said = {"feature": "search", "a b": "x", "": "x", "n" * 64: 1, "n" * 65: 1, "team.x-1_": {"a": 1}}
    assert read_values(said) == (("feature", "search"), ("n" * 64, "1"))


def test_tags_of_call_are_declared_and_tags_of_key_go_before() -> None:
    said = (("feature", "search"), ("team", "red"), ("other", "x"))
    fixed = (("cost_centre", "42"), ("gone", "x"), ("team", "blue"))
    tags = tags_of(("team", "feature", "absent", "cost_centre"), fixed, said)
    assert tags == (("cost_centre", "42"), ("feature", "search"), ("team", "blue"))
