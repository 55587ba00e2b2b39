"""Who is too old for what is stored, and how programs are counted."""

from __future__ import annotations

from typing import Literal

import pytest

from gateway.core.programs import OTHER, VERSIONS_TOLD_MAX, Program, Seen, Stored, counted


def program(
    role: Literal["gateway", "keeper"] = "gateway", version: str = "1.0", layout: int = 132, schema: str = ""
) -> Program:
    return Program("an id", role, version, layout, "a host", 0.0, schema)


@pytest.mark.parametrize(
    ("stored", "of", "said"),
    [
        (Stored(132, "0073", "0069"), program(), ""),
        (Stored(131, "0073", "0073"), program(), ""),
        (Stored(0, "", ""), program("keeper", schema="0073"), ""),
        (Stored(133, "0073", "0069"), program(), "layout 133, this program knows up to 132: run a newer one"),
        (Stored(132, "0073", "0069"), program("keeper", schema="0073"), ""),
        (Stored(132, "0074", "0069"), program("keeper", schema="0073"), ""),
        (Stored(132, "0074", "0073"), program("keeper", schema="0073"), ""),
        (Stored(132, "0072", "0072"), program("keeper", schema="0073"), ""),
        (
            Stored(132, "0074", "0074"), program("keeper", schema="0073"),
            "schema version 0074, this program knows 0073 at most: run a newer one",
        ),
        (Stored(132, "0074", ""), program("keeper", schema="0073"), "0073 at most"),
    ],
)  # fmt: skip
def test_who_is_older_than_what_is_stored_is_told_both_numbers(
    stored: Stored, of: Program, said: str
) -> None:
    assert said in stored.refused(of)
    assert bool(stored.refused(of)) is bool(said)


def test_programs_are_counted_by_role_and_version() -> None:
    ours = [program(), program(), program("keeper", "1.1"), program("keeper")]
    assert counted(Seen(one, 0.0) for one in ours) == [
        ["gateway", "1.0", 2], ["keeper", "1.0", 1], ["keeper", "1.1", 1],
    ]  # fmt: skip


def test_versions_beyond_so_many_are_others_and_none_is_left_out() -> None:
    common = [program(version=f"1.{number}") for number in range(VERSIONS_TOLD_MAX)]
    rare = [program(version=f"2.{number}") for number in range(7)]
    found = counted(Seen(one, 0.0) for one in [*common, *common, *rare])
    assert len(found) == VERSIONS_TOLD_MAX + 1
    assert ["gateway", OTHER, 7] in found
