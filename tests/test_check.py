"""What `make check` remembers of a tree, and which commits it warns of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.check import COMMIT_FILES_MAX, RULES, commit_faults, digest
from tests.tree import ROOT


def test_digest_changes_with_a_file_its_name_and_the_place_alone(tmp_path: Path) -> None:
    digests = []
    for place, name, text in (("a", "x.py", "1"), ("a", "x.py", "2"), ("b", "x.py", "2"), ("c", "y.py", "2")):
        folder = tmp_path / place / "gateway"
        (folder / "__pycache__").mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        digests.append(digest(tmp_path / place))
        (folder / "__pycache__" / "x.pyc").write_text(text)
        assert digest(tmp_path / place) == digests[-1]
    assert len(set(digests)) == len(digests)


def test_rules_are_files_that_exist() -> None:
    assert all((ROOT / file).is_file() for file in RULES)


@pytest.mark.parametrize(
    ("subject", "body", "files", "faults"),
    [
        ("billing: hold changes to the allocation tests (5 s)", "", 3, 0),
        ("tests, docs: pages of limits", "Why.", COMMIT_FILES_MAX + 1, 0),
        ("docs/budgets.md: overrides", "", COMMIT_FILES_MAX, 0),
        ("Each call is charged once", "", 1, 1),
        ("docs: limits; tests: numbers", "", 1, 1),
        ("docs: limits", "\n", COMMIT_FILES_MAX + 1, 1),
        ("Limits; numbers", "", COMMIT_FILES_MAX + 1, 3),
    ],
)
def test_commit_without_area_subject_or_body_is_named(
    subject: str, body: str, files: int, faults: int
) -> None:
    assert len(list(commit_faults(subject, body, files))) == faults
