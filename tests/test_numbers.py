"""The numbers that are promised, where a machine can count them."""

from __future__ import annotations

import pytest

from gateway.core.calls.call import CallSpec, StoredObjects
from gateway.core.value import Value
from gateway.http.server.exchange import Exchange
from tests import numbers
from tests.tree import ROOT
from tests.walk import walk

FILES_A_PLAN_FIELD_MAX = 9
BASE_PACKAGES_MAX = 45
# As it is: each may only fall.
WITH_EXCHANGE_MAX, EXCHANGE_FIELDS_MAX = 60, 22
# Admission, its terms and answers, the parsing of a body, and ids of requests are modules of their own: five files more.
STAYS_MAX, WALKED_FILES_MAX = 334, 52
STAYS_OF_ADMISSION_MAX = 6
# What is handed on and written at most places, whichever that is: as it is, and may only fall.
CARRIER_WRITES_MAX, CARRIER_FIELDS_MAX = 37, 25
READERS = {"gateway/core/calls/parsing.py", "gateway/core/families/objects.py", "gateway/http/admission.py"}
HEADINGS_MAX, HEADINGS_A_MODULE_MAX = 436, 7


def test_a_field_of_a_plan_stands_in_few_files() -> None:
    naming = numbers.files_naming(numbers.PLAN_FIELD)
    assert "gateway/core/accounts/plans.py" in naming
    assert len(naming) <= FILES_A_PLAN_FIELD_MAX, naming


def test_a_family_stands_in_its_own_place_and_the_registry() -> None:
    assert numbers.files_of_a_family() == [
        "gateway/core/families/anthropic",
        "gateway/core/families/bedrock.py",  # whose InvokeModel takes this family's calls
        "gateway/core/families/costs_table.py",
        "gateway/core/families/registry.py",
    ]


def test_the_base_installs_few_packages() -> None:
    assert len(numbers.base_packages()) <= BASE_PACKAGES_MAX


def test_the_name_of_a_class_stands_once() -> None:
    assert numbers.classes_named_twice() == {}


def test_the_state_of_a_request_is_handed_to_few() -> None:
    assert len(numbers.functions_with("exchange")) <= WITH_EXCHANGE_MAX
    assert len(Exchange.__slots__) <= EXCHANGE_FIELDS_MAX


def test_largest_carrier_is_written_at_few_places() -> None:
    largest = numbers.carriers()[0]
    assert len(largest.writes) <= CARRIER_WRITES_MAX, largest.name
    assert len(largest.fields) <= CARRIER_FIELDS_MAX, largest.name


def test_spec_and_objects_of_a_call_have_no_writers_besides_readers() -> None:
    """A body is read, its objects are found, a free call is read for its models; what they write is frozen."""
    [call] = [one for one in numbers.carriers() if one.name == "CallRequest"]
    assert {place.partition(":")[0] for place, name in call.writes if name in {"spec", "objects"}} == READERS
    assert issubclass(CallSpec, Value)
    assert issubclass(StoredObjects, Value)


def test_a_request_walks_through_few_files() -> None:
    walked = walk()
    assert f"{ROOT}/gateway/http/proxy.py" in walked.files
    assert walked.stays <= STAYS_MAX
    assert len(walked.files) <= WALKED_FILES_MAX, sorted(walked.files)


def test_one_place_makes_the_facts_of_a_use_and_one_its_price() -> None:
    assert [place.partition(":")[0] for place in numbers.makers_of_facts()] == ["gateway/calls/charge.py"]
    assert numbers.makers_of_prices() == ["gateway/calls/rating.py"], (
        "elsewhere a cost is asked of `cost_of` there"
    )


def test_admission_has_a_single_maker_and_few_stays() -> None:
    stays, entered = numbers.stays_of_admission()
    assert numbers.makers_of_admissions() == ["gateway/calls/terms.py"]
    assert entered == 2, "by the call, and as Redis answers"
    assert stays <= STAYS_OF_ADMISSION_MAX


def test_a_new_kind_of_use_touches_no_file_of_the_product() -> None:
    assert numbers.files_of_a_kind() == ["tests/calls/test_new_kind.py"]


def test_a_module_has_few_headings() -> None:
    found = numbers.headings()
    assert max(found.values()) <= HEADINGS_A_MODULE_MAX
    assert sum(found.values()) <= HEADINGS_MAX


def test_no_module_stands_in_a_circle() -> None:
    assert numbers.circles() == []


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
        "imports: 0,",
        "parameter exchange",
        "fields of an exchange",
        "stays of a request",
        "largest carrier: ",
        "of an admission: 1, stays of it: 6",
        "of a use: 1, of a price: 1",
        "a new kind of use touches: 1",
        "headings",
    ):
        assert name in said
