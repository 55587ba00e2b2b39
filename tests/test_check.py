"""What `make check` remembers of a tree."""

from __future__ import annotations

from pathlib import Path

from tests.check import RULES, digest
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
