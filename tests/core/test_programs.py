"""Who is too old for what is stored, and how programs are counted."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Literal

import pytest

from gateway.core.layout import FIRST, KINDS, LAYOUT, NUMBER, Layout, LayoutField, UnknownLayout
from gateway.core.processes import (
    OTHER,
    VERSIONS_TOLD_MAX,
    Program,
    ProgramReport,
    StoredVersions,
    TakeUp,
    counted,
    programs_ahead,
)


def program(
    role: Literal["gateway", "keeper"] = "gateway", version: str = "1.0", layout: int = 132, schema: str = ""
) -> Program:
    return Program("an id", role, version, layout, "a host", 0.0, schema)


@pytest.mark.parametrize(
    ("stored", "of", "said"),
    [
        (StoredVersions(132, "0073", "0069"), program(), ""),
        (StoredVersions(131, "0073", "0073"), program(), ""),
        (StoredVersions(0, "", ""), program("keeper", schema="0073"), ""),
        (
            StoredVersions(133, "0073", "0069"),
            program(),
            "layout 133, this program knows up to 132: run a newer one",
        ),
        (StoredVersions(132, "0073", "0069"), program("keeper", schema="0073"), ""),
        (StoredVersions(132, "0074", "0069"), program("keeper", schema="0073"), ""),
        (StoredVersions(132, "0074", "0073"), program("keeper", schema="0073"), ""),
        (StoredVersions(132, "0072", "0072"), program("keeper", schema="0073"), ""),
        (
            StoredVersions(132, "0074", "0074"), program("keeper", schema="0073"),
            "schema version 0074, this program knows 0073 at most: run a newer one",
        ),
        (StoredVersions(132, "0074", ""), program("keeper", schema="0073"), "0073 at most"),
    ],
)  # fmt: skip
def test_who_is_older_than_what_is_stored_is_told_both_numbers(
    stored: StoredVersions, of: Program, said: str
) -> None:
    assert said in stored.refused(of)
    assert bool(stored.refused(of)) is bool(said)


def test_programs_are_counted_by_role_and_version() -> None:
    ours = [program(), program(), program("keeper", "1.1"), program("keeper")]
    assert counted(ProgramReport(one, 0.0) for one in ours) == [
        ["gateway", "1.0", 2], ["keeper", "1.0", 1], ["keeper", "1.1", 1],
    ]  # fmt: skip


def test_versions_beyond_so_many_are_others_and_none_is_left_out() -> None:
    common = [program(version=f"1.{number}") for number in range(VERSIONS_TOLD_MAX)]
    rare = [program(version=f"2.{number}") for number in range(7)]
    found = counted(ProgramReport(one, 0.0) for one in [*common, *common, *rare])
    assert len(found) == VERSIONS_TOLD_MAX + 1
    assert ["gateway", OTHER, 7] in found


SILENT_S, MOST = 90.0, 5
OWN = program("keeper", layout=LAYOUT)
OF_TODAY = replace(program(layout=LAYOUT), id="a gateway")
BEFORE = replace(program(version="0.9", layout=LAYOUT - 1), id="an older gateway")

# Another tree between releases, with the same number.
OTHERS = replace(OF_TODAY, id="another tree's gateway", forms="0b0b0b0b")


def take_up() -> TakeUp:
    return TakeUp(OWN, SILENT_S, MOST)


def seen(*programs: Program) -> list[ProgramReport]:
    return [ProgramReport(one, 0.0) for one in programs]


def test_a_layout_is_taken_up_once_all_have_read_it_for_as_long_as_one_may_be_silent() -> None:
    of = take_up()
    assert not of.look(0, seen(OWN, OF_TODAY), 1)
    assert not of.look(SILENT_S - 1, seen(OWN, OF_TODAY), 1)
    assert of.look(SILENT_S, seen(OWN, OF_TODAY), 1)
    assert not of.why_not


@pytest.mark.parametrize(
    ("there", "workers", "said"),
    [
        (seen(OWN, OF_TODAY, BEFORE), 2, f"a gateway 0.9 on a host: layout {LAYOUT - 1}"),
        (None, 0, "not kept"),
        (seen(OF_TODAY), 1, "not kept"),
        (seen(OWN, OF_TODAY), 2, "a gateway reports"),
        (seen(OWN, *[OF_TODAY] * (MOST - 1)), 1, "not all"),
        (seen(OWN, OTHERS), 1, "other forms: gateway 1.0 on a host"),
    ],
    ids=[
        "one reads less",
        "nobody knows",
        "this one is not there",
        "one is not listed",
        "more than are listed",
        "one has other forms",
    ],
)
def test_what_nobody_knows_is_no_and_the_time_begins_again(
    there: list[ProgramReport] | None, workers: int, said: str
) -> None:
    of, all_well = take_up(), seen(OWN, OF_TODAY)
    of.look(0, all_well, 1)
    assert of.look(SILENT_S, all_well, 1)
    assert not of.look(SILENT_S + 1, there, workers)
    assert said in of.why_not
    assert not of.look(SILENT_S + 2, all_well, 1)
    assert of.look(2 * SILENT_S + 2, all_well, 1)


# --- forms ------------------------------------------------------------------------------
# Two programs that differ in forms never serve together: who comes later waits.


def tree(forms: str, number: int = 0, *, layout: int = LAYOUT, waits: bool = False) -> Program:
    return replace(
        program("keeper", layout=layout),
        id=f"{forms}{number}",
        forms=forms,
        started_at=float(number),
        waits=waits,
    )


RELEASE = tree("", layout=LAYOUT - 1)  # such as 1.0.0


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (tree("a"), tree("a"), True),
        (tree("a"), tree("b"), False),
        (tree("a"), RELEASE, True),
        # A tree of main that had no second number yet: its first number is beyond the release's.
        (tree("a"), tree(""), False),
        (tree("", layout=LAYOUT + 1), tree(""), True),
        (tree("a", layout=LAYOUT + 1), tree(""), True),
        (tree("a", layout=LAYOUT + 1), tree("b"), False),
        (tree("", layout=LAYOUT + 1), tree("b"), False),
    ],
)
def test_programs_serve_together_where_the_older_layout_is_a_releases_or_the_forms_are_the_same(
    one: Program, other: Program, *, together: bool
) -> None:
    assert one.may_serve_beside(other) is other.may_serve_beside(one) is together


@pytest.mark.parametrize(
    ("there", "ahead"),
    [
        ([], []),
        ([RELEASE, tree("a", 1)], []),
        ([tree("b", 9)], ["b9"]),  # it serves, so it goes on
        ([tree("b", 9, waits=True)], []),  # it began later, and waits
        ([tree("b", 1, waits=True)], ["b1"]),  # it began before
        ([tree("b", 1, waits=True), RELEASE], ["b1"]),
        ([tree("b", 1, waits=True), tree("a", 1)], []),  # one of the same forms serves
        ([tree("b", 1, waits=True), tree("a", 1, waits=True)], ["b1"]),
        ([tree("b", 9), tree("a", 1)], ["b9"]),
    ],
)
def test_a_program_waits_for_others_that_serve_and_for_others_that_began_to_wait_before(
    there: list[Program], ahead: list[str]
) -> None:
    own = tree("a", 5)
    assert [one.id for one in programs_ahead(own, there)] == ahead
    waiting = replace(own, waits=True)
    assert [one.id for one in programs_ahead(own, [*there, waiting])] == ahead


# --- layout -----------------------------------------------------------------------------
# A layout reads what was stored before one of its fields came, and nothing that is newer than itself.


BYTE, DOUBLE = KINDS["u8"], KINDS["f64"]
GROWN = Layout(
    "GROWN",
    (
        NUMBER,
        LayoutField("flags", BYTE, 0),
        LayoutField("first", DOUBLE, 0),
        LayoutField("second", DOUBLE, -1, LAYOUT + 1),
        LayoutField("third", DOUBLE, 0),
        LayoutField("last", BYTE, 7, FIRST),
    ),
)


def by_older(number: int, stored: bytes) -> bytes:
    return b"".join(stored[one] if isinstance(one, slice) else one for one in GROWN.by_older(number))


@pytest.mark.parametrize("flags", [0, 1, 128])
def test_what_has_no_number_is_read(flags: int) -> None:
    stored = struct.pack("<Bdd", flags, 5, 6)
    assert GROWN.today(stored) == struct.pack("<BBdddB", LAYOUT, flags, 5, -1, 6, 7)
    assert GROWN.today(stored + b"tail") == struct.pack("<BBdddB", LAYOUT, flags, 5, -1, 6, 7) + b"tail"


def test_a_field_stands_at_its_default_where_an_older_layout_had_none() -> None:
    stored = struct.pack("<BBddB", FIRST, 3, 5, 6, 9)
    assert by_older(FIRST, stored + b"tail") == struct.pack("<BBdddB", LAYOUT, 3, 5, -1, 6, 9) + b"tail"
    newest = struct.pack("<BBdddB", LAYOUT, 3, 5, 4, 6, 9)
    assert by_older(LAYOUT + 1, newest) == newest


def test_what_is_of_today_is_left_as_it_is() -> None:
    stored = bytes([LAYOUT]) + b"whatever"
    assert GROWN.today(stored) is stored


@pytest.mark.parametrize("number", [LAYOUT + 1, 255])
def test_what_is_newer_is_not_guessed_at(number: int) -> None:
    with pytest.raises(UnknownLayout, match=f"GROWN of layout {number}"):
        GROWN.today(bytes([number]) + bytes(30))


def test_a_field_that_is_not_there_is_no_field() -> None:
    with pytest.raises(KeyError, match="GROWN has no field none"):
        GROWN.offset("none")
