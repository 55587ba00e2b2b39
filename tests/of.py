"""The tests of a module: `python -m tests.of FILE… [--run]`; `--change` names the files that were changed.

Nearest first: files of its folder's mirror named like it, files there that import it, then others of its name
or that import it. A module without these has all tests of its folder's mirror. A script has the files named
like it, a test itself. `--run` runs them and stops at the first failure.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tests.tree import ROOT, changed_files

# Folders of the product that their mirror in tests/ leaves out.
LEFT_OUT = frozenset({"gateway", "lib"})


def mirror_of(path: Path) -> str:
    """Return the folder of `tests/` in which the tests of a file of the product stand."""
    return "/".join(part for part in path.parts[:-1] if part not in LEFT_OUT)


def rank_of(path: Path, name: str, text: str) -> int | None:
    """Return how near the test file `name` with its `text` is to a file of the product; 0 is nearest.

    None if it is not near.
    """
    module = ".".join(path.with_suffix("").parts)
    package = re.escape(".".join(path.parts[:-1]))
    near = name.startswith(f"tests/{mirror_of(path)}/")
    like = path.stem.rstrip("s") in Path(name).stem
    imports = rf"\b{re.escape(module)}\b|\b{package} import (?:\([^)]*|[^\n(]*)\b{re.escape(path.stem)}\b"
    named = path.suffix == ".py" and re.search(imports, text) is not None
    order = (like and near, named and near, like or named)
    return order.index(True) if True in order else None


@cache
def texts_of_tests(root: Path) -> dict[str, str]:
    """Return the text of each test file, by its path below `root`."""
    files = sorted((root / "tests").rglob("test_*.py"))
    return {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in files}


def find_tests(files: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the test files of files of the product, the nearest first, each once."""
    ranked: dict[str, int] = {}
    for file in files:
        if file in texts_of_tests(root):
            ranked[file] = 0
        elif file.startswith(("gateway/", "persistence/", "lua/")):
            path, folder = Path(file), f"tests/{mirror_of(Path(file))}/"
            ranks = {name: rank_of(path, name, text) for name, text in texts_of_tests(root).items()}
            near = {name: rank for name, rank in ranks.items() if rank is not None}
            for name, rank in (near or {name: 2 for name in ranks if name.startswith(folder)}).items():
                ranked[name] = min(rank, ranked.get(name, rank))
    return sorted(ranked, key=lambda name: (ranked[name], name))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("tests.of", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--change", action="store_true", help="the files that differ from the last commit")
    parser.add_argument("--run", action="store_true", help="run the tests, up to the first failure")
    options = parser.parse_args()
    for file in options.files:
        if not (ROOT / file).is_file():
            parser.error(f"{file} is no file below {ROOT.name}/: name one from there, such as gateway/app.py")
    found = find_tests([*options.files, *(changed_files() if options.change else ())])
    print("\n".join(found) or "No test file is named like one of these, or imports one.", flush=True)
    if found and options.run:
        os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-x", *found])


if __name__ == "__main__":
    main()
