"""Rules by file: a file is read again once it, or its rule, has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.house import SourceFile, of_files


def test_rule_reads_only_files_that_changed(tmp_path: Path) -> None:
    read = list[str]()

    def rule(file: SourceFile) -> Iterator[str]:
        read.append(file.name)
        yield f"{file.name}: {file.text}"

    def lines(first: str, version: str = "1") -> list[str]:
        files = [SourceFile("a", first), SourceFile("b", "y")]
        return of_files(rule, version, files, tmp_path / "rules" / "rule.json")

    assert lines("x") == ["a: x", "b: y"]
    assert lines("x") == ["a: x", "b: y"]
    assert read == ["a", "b"]
    assert lines("z") == ["a: z", "b: y"]
    assert read == ["a", "b", "a"]
    assert lines("z", version="2") == ["a: z", "b: y"]
    assert read == ["a", "b", "a", "a", "b"]
