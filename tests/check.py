"""All that is checked without servers: style, types, layers, Lua, the rules of the house: `make check`.

Commits that do not have the form of CONTRIBUTING.md are named while no remote has them, and refuse nothing.

Each program runs whatever the others say, beside them. What it says of a tree that it passed is remembered by the
contents of all files, so a tree that is unchanged is not read a second time.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.tree import ROOT, files

# Tests of rules that hold for the text of the tree. `make test` has them from here alone.
RULES: Final = (
    "tests/counters/layouts/test_forms.py", "tests/persistence/test_money_guards.py", "tests/test_documents.py",
    "tests/test_layers.py", "tests/test_numbers.py", "tests/test_tidy.py", "tests/test_words.py",
)  # fmt: skip
PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "ruff check": ("ruff", "check", "."),
    "ruff format": ("ruff", "format", "--check", "."),
    "lint-imports": ("lint-imports",),
    "lua": ("python", "-m", "tests.lua.lint"),
    "mypy": ("mypy",),
    "rules of the house": ("python", "-m", "pytest", "-q", *RULES),
}
PASSED: Final = ROOT / "build" / "checked"
PASSED_MAX: Final = 50  # trees that are remembered
# Commits after this one have the form of CONTRIBUTING.md.
COMMITS_FROM: Final = "87f2d467"
COMMIT_FILES_MAX: Final = 10  # of a commit without a body
SUBJECT: Final = re.compile(r"[\w./-]+(?:, [\w./-]+)*: \S")


def commit_faults(subject: str, body: str, files: int) -> Iterator[str]:
    """Yield what a commit lacks of the form of CONTRIBUTING.md."""
    if not SUBJECT.match(subject):
        yield "no area: write `area: what changes for whom`"
    if "; " in subject:
        yield "two subjects: make two commits"
    if files > COMMIT_FILES_MAX and not body.strip():
        yield f"{files} files and no body: say why"


def wrong_commits() -> Iterator[str]:
    """Yield each commit that lacks something after `COMMITS_FROM`, and that no remote has: its message can be mended."""
    form = "--format=%x01%h%x00%s%x00%b%x00"
    log = ("git", "log", "--no-merges", "--numstat", form, f"{COMMITS_FROM}..", "--not", "--remotes")
    run = subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=False)
    for entry in run.stdout.split("\x01")[1:]:
        name, subject, body, files = entry.split("\0")
        count = sum(bool(line) for line in files.splitlines())
        yield from (f"{name} {subject}: {fault}" for fault in commit_faults(subject, body, count))


def digest(root: Path) -> str:
    """Return a hash of the place and the contents of a tree's files."""
    whole = hashlib.sha256(f"{root} {sys.version}".encode())
    for name, file in files(root):
        whole.update(f"\0{name}\0".encode() + file.read_bytes())
    return whole.hexdigest()


def main() -> int:
    """Run all programs on a tree that did not pass before; return 1 if one of them says no."""
    tree, began = digest(ROOT), time.monotonic()
    for commit in wrong_commits():
        print(f"warning: commit {commit}", flush=True)
    passed = PASSED.read_text().split() if PASSED.exists() else []
    if tree in passed:
        print("This tree has passed all checks before.")
        return 0
    runs = {
        name: subprocess.Popen(
            [str(ROOT / ".venv" / "bin" / program[0]), *program[1:]],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, program in PROGRAMS.items()
    }  # fmt: skip
    refused = []
    for name, run in runs.items():
        output, _ = run.communicate()
        print(f"{name}: {'refused' if run.returncode else 'passed'}", flush=True)
        if run.returncode:
            refused.append(name)
            print(output, flush=True)
    print(f"{time.monotonic() - began:.0f} s. Refused by: {', '.join(refused) or 'none'}.")
    if not refused:
        PASSED.parent.mkdir(exist_ok=True)
        PASSED.write_text("\n".join([*passed[1 - PASSED_MAX :], tree]))
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main())
