"""Seeded mutants of the product, and the test that kills each: `python -m tests.mutants --seed 11`.

Each mutant is one changed operator or number, in a copy of the tree. Tests run until one fails: those that
name its module, the rest of the folder that mirrors it, the folders above. What nothing kills lacks a test,
or means the same. `--like FILE` tries the mutants of another run, perhaps of another checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from tests.suite import VERIFY
from tests.tree import ROOT

# Parts of the product, their files, and the folders of tests that hold their rules, the lowest first.
PARTS: Final = {
    "core": ("gateway/core/**/*.py", ("core", "http", "admin")),
    "http": ("gateway/http/**/*.py", ("http", "run", "journey")),
    "lua": ("lua/**/*.lua", ("lua", "counters", "background")),
    "persistence": ("persistence/**/*.py", ("persistence", "background", "admin", "features")),
    "sql": ("persistence/schema/*.sql", ("persistence", "background")),
    "counters": ("gateway/counters/**/*.py", ("counters", "lua", "background")),
}  # fmt: skip
SWAPS: Final = (
    (" < ", " <= "), (" <= ", " < "), (" > ", " >= "), (" >= ", " > "), (" == ", " != "), (" != ", " == "),
    (" ~= ", " == "), (" and ", " or "), (" or ", " and "), (" AND ", " OR "), (" + ", " - "), (" - ", " + "),
    (" is None", " is not None"), ("if not ", "if "), ("math.max(", "math.min("), ("max(", "min("),
    (" DESC", " ASC"), ("LEFT JOIN", "JOIN"), ("NOT EXISTS", "EXISTS"), ("return True", "return False"),
)  # fmt: skip
NUMBER: Final = re.compile(r"(?<![\w.\"'])(\d+)(?![\w.\"'])")
NO_CODE: Final = re.compile(r'^\s*(#|--|"""|from |import |"|\'|raise |assert |@)|^[A-Z_]+[:=]|"""')
# Seconds that the tests of a mutant may take.
SECONDS_MAX: Final = 240


@dataclass(frozen=True, slots=True)
class Mutant:
    """A line of a file, and what stands there instead."""

    part: str
    file: str
    number: int
    before: str
    after: str


def draw(chance: random.Random, root: Path) -> Mutant:
    """Return a mutant of a drawn part; its line is code, as far as its beginning says."""
    while True:
        part = chance.choice(sorted(PARTS))
        file = chance.choice(sorted(root.glob(PARTS[part][0])))
        lines = file.read_text(encoding="utf-8").split("\n")
        number = chance.randrange(len(lines))
        changes = [] if NO_CODE.search(lines[number]) else list(_changes(lines[number]))
        if file.suffix == ".lua":
            changes = [change.replace(" != ", " ~= ") for change in changes]
        if changes:
            return Mutant(part, str(file.relative_to(root)), number, lines[number], chance.choice(changes))


def _changes(line: str) -> Iterator[str]:
    code = re.split(r"\s(?:#|--)\s", line)[0]
    for before, after in SWAPS:
        if before in code:
            yield line.replace(before, after, 1)
    if found := NUMBER.search(code):
        yield f"{line[: found.start()]}{int(found[1]) + 1}{line[found.end() :]}"


def tests_of(mutant: Mutant, root: Path) -> list[list[str]]:
    """Return groups of test files in the order in which they are tried."""
    path = Path(mutant.file)
    module = ".".join(path.with_suffix("").parts)
    words = {module, f"{'.'.join(path.parts[:-1])} import {path.stem}"}
    folders = [root / "tests" / folder for folder in PARTS[mutant.part][1]]
    files = [sorted(folder.rglob("test_*.py")) for folder in folders]
    named = [file for file in sorted((root / "tests").rglob("test_*.py")) if _names(file, words, path)]
    groups = [named, *files]
    seen = set[Path]()
    found = list[list[str]]()
    for group in groups:
        found.append([str(file.relative_to(root)) for file in group if file not in seen])
        seen.update(group)
    return found


def _names(file: Path, words: set[str], path: Path) -> bool:
    text = file.read_text(encoding="utf-8")
    return any(word in text for word in words) or file.stem.removeprefix("test_") == path.stem


def kill(mutant: Mutant, root: Path) -> str:
    """Return the test that fails for a mutant, `nothing` where none does in time; the file is put back."""
    file = root / mutant.file
    whole = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = whole.split("\n")
    there = [number for number, line in enumerate(lines) if line == mutant.before]
    if not there:
        return "gone"
    lines[min(there, key=lambda number: abs(number - mutant.number))] = mutant.after
    file.write_text("\n".join(lines), encoding="utf-8")
    until = time.monotonic() + SECONDS_MAX
    try:
        for group in tests_of(mutant, root):
            left = until - time.monotonic()
            if group and left > 0 and (test := _failure(group, root, left)):
                return test
    finally:
        file.write_text(whole, encoding="utf-8")
    return "nothing"


def _failure(files: list[str], root: Path, seconds: float) -> str:
    options = ("-q", "-x", "--processes", "2", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", *options, *files]
    environment = os.environ | {"PYTHONPATH": str(root), "TEST_WORKER": "1"}
    try:
        ended = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return ""
    if ended.returncode == 0:
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    return found[1] if found else f"no collection: {ended.stdout[-200:]!r}"


def _tier(test: str) -> str:
    file = test.partition("::")[0]
    if file in {"gone", "nothing"}:
        return file
    return "verify" if any(file == name or file.startswith(f"{name}/") for name in VERIFY) else "test"


def main() -> None:
    """Print what kills each mutant, and keep that in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose tests are asked")
    parser.add_argument("--like", type=Path, help="what an earlier run wrote")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "mutants.json")
    options = parser.parse_args()
    options.to.parent.mkdir(exist_ok=True)
    chance, rows = random.Random(options.seed), list[dict[str, object]]()
    no_copy = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__")
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(options.tree, Path(folder) / "tree", ignore=no_copy)
        drawn = (draw(chance, copy) for _ in range(options.count))
        for mutant in _like(options.like) if options.like else drawn:
            killer = kill(mutant, copy)
            rows.append(asdict(mutant) | {"killed": killer})
            print(f"{mutant.file}:{mutant.number + 1}: {mutant.after.strip()[:70]} -> {killer}", flush=True)
            options.to.write_text(json.dumps(rows, indent=1))
    tiers = Counter(_tier(str(row["killed"])) for row in rows)
    print(f"{len(rows)} mutants: {dict(tiers)}")


def _like(file: Path) -> Iterator[Mutant]:
    for row in json.loads(file.read_text()):
        yield Mutant(*(row[each.name] for each in fields(Mutant)))


if __name__ == "__main__":
    main()
