"""Each class of advisory locks has one owner, and stands in the list of all."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

PERSISTENCE = Path(__file__).parents[3] / "persistence"
LIST = PERSISTENCE / "schema" / "migrate.py"
_OWNED = re.compile(r"^ *# Advisory lock class (78\d\d): ", re.MULTILINE)
_TAKEN = re.compile(r"advisory(?:_xact)?_lock\((78\d\d)\b")
# Those that modules of one work take together; and archiving holds checkpoints still meanwhile.
_SHARED = {"7800", "7807"}


def test_each_class_of_advisory_locks_has_one_owner() -> None:
    taken = defaultdict(set)
    for path in PERSISTENCE.rglob("*.py"):
        for number in _TAKEN.findall(path.read_text()):
            taken[number].add(path.name)
    listed = (
        LIST.read_text().partition("Advisory lock classes of the project:")[2].partition("SCHEMA_LOCK")[0]
    )
    numbers = re.findall(r"\b78\d\d\b", listed)
    assert len(numbers) == len({*numbers})
    assert taken.keys() <= {*numbers}
    assert taken.keys() >= {"7800", "7808", "7809"}, "the pattern finds what takes a lock"
    several = {number: paths for number, paths in taken.items() if len(paths) > 1 and number not in _SHARED}
    assert not several


def test_what_is_said_of_a_class_is_about_the_one_that_is_taken() -> None:
    for path in PERSISTENCE.rglob("*.py"):
        text = path.read_text()
        assert {*_OWNED.findall(text)} <= {*_TAKEN.findall(text)}, path
