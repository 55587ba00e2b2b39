"""The numbers that are promised, where a machine can count them."""

from __future__ import annotations

import pytest

from tests import numbers

FILES_A_PLAN_FIELD_MAX = 9
BASE_PACKAGES_MAX = 45


def test_a_field_of_a_plan_stands_in_few_files() -> None:
    naming = numbers.files_naming(numbers.PLAN_FIELD)
    assert "gateway/core/accounts/plans.py" in naming
    assert len(naming) <= FILES_A_PLAN_FIELD_MAX, naming


def test_a_family_stands_in_its_own_place_and_the_registry() -> None:
    assert numbers.files_of_a_family() == [
        "gateway/core/families/anthropic",
        "gateway/core/families/bedrock.py",  # whose InvokeModel takes this family's calls
        "gateway/core/families/registry.py",
    ]


def test_the_base_installs_few_packages() -> None:
    assert len(numbers.base_packages()) <= BASE_PACKAGES_MAX


def test_the_name_of_a_class_stands_once() -> None:
    assert numbers.classes_named_twice() == {}


def test_the_numbers_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    numbers.main()
    said = capsys.readouterr().out
    for name in (
        "a field of a plan",
        "an API family",
        "lines of product code",
        "root of gateway/",
        "packages of the base",
        "layers: 8",
        "imports: 0",
    ):
        assert name in said
