"""Seeded mutants of the product, and the test that kills each: `python -m tests.mutants --seed 11`.

Each mutant is one changed operator, number or truth value of code, in a copy of the tree. Tests run until one
fails: those named like its module, those that name it, the rest of the folders of its part. `nothing` kills
what lacks a test, or means the same. `no time` says that the tests did not end in `--seconds`. What stands in
`--to` is kept, so that a run goes on. `--like FILE` tries the mutants of another run.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import psycopg
import pytest

from tests.conftest import postgres_bin, postgres_of
from tests.of import mirror_of, rank_of, texts_of_tests
from tests.suite import VERIFY
from tests.tree import ROOT

# Parts of the product, their files, and the folders of tests that hold their rules, the lowest first.
PARTS: Final = {
    "core": ("gateway/core/**/*.py", ("core", "http", "admin")),
    "http": ("gateway/http/**/*.py", ("http", "run", "journey")),
    "lua": ("lua/**/*.lua", ("lua", "counters", "background")),
    "persistence": ("persistence/**/*.py", ("persistence", "background", "admin", "features")),
    "sql": ("persistence/**/*.*", ("persistence", "background", "admin")),
    "counters": ("gateway/counters/**/*.py", ("counters", "lua", "background")),
}  # fmt: skip
SWAPS: Final = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "~=": "==", "<>": "=", "+": "-",
    "-": "+", "and": "or", "or": "and", "AND": "OR", "OR": "AND", "not in": "in", "not": "", "is not": "is",
    "is": "is not", "IS NULL": "IS NOT NULL", "IS NOT NULL": "IS NULL", "NOT EXISTS": "EXISTS",
    "LEFT JOIN": "JOIN", "DESC": "ASC", "max": "min", "min": "max", "greatest": "least", "least": "greatest",
    "True": "False", "False": "True", "true": "false", "false": "true",
}  # fmt: skip
_CHANGED: Final = (
    r"(?P<changed>IS (?:NOT )?NULL|NOT EXISTS|LEFT JOIN|is not|not in|(?:max|min|greatest|least)(?=\()"
    r"|\b(?:and|or|not|is|AND|OR|DESC|[Tt]rue|[Ff]alse)\b|(?<= )(?:[<>=!~]=|<>|[<>+-])(?= )"
    r"|(?<![\w.$])\d[\d_]*(?![\w.]))"
)
_TEXT: Final = r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""
# Comments and texts, which are passed over, and what is changed.
LANGUAGES: Final = {
    ".py": re.compile(rf'#[^\n]*|"""[\s\S]*?"""|{_TEXT}|{_CHANGED}'),
    ".lua": re.compile(rf"--[^\n]*|{_TEXT}|{_CHANGED}"),
    ".sql": re.compile(rf"--[^\n]*|'(?:''|[^'])*'|\"[^\"]*\"|\{{[^}}]*\}}|{_CHANGED}"),
}
SQL: Final = re.compile(r"\b(?:SELECT|FROM|WHERE|JOIN|SET|CASE|ORDER BY|GROUP BY|AND)\b")
BOUND: Final = re.compile(r"\w+_(?:max|min|kept|s|ms|bytes|copies)(?:: \w+)? = [\d_*.]+$", re.IGNORECASE)
# Seconds to end servers behind the tests.
END_S_MAX: Final = 20
FORK: Final = multiprocessing.get_context("fork")
# Tests that load what most others load.
LOADED: Final = ("tests/http/test_proxy.py", "tests/persistence/ledger", "tests/admin/test_prices.py")
OPTIONS: Final = ("-q", "-x", "-p", "no:cacheprovider")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A line of a file, and what stands there instead."""

    part: str
    file: str
    number: int
    before: str
    after: str


def draw(seed: int, parts: Sequence[str], root: Path) -> Iterator[Mutant]:
    """Return mutants of each part in turn, each part in an order of its own."""
    drawn = list[list[Mutant]]()
    for part in parts:
        files = sorted(file for file in root.glob(PARTS[part][0]) if file.suffix in LANGUAGES)
        drawn.append(list(chain.from_iterable(_mutants(part, file, root) for file in files)))
        random.Random(f"{seed} {part}").shuffle(drawn[-1])
    return chain.from_iterable(zip(*drawn, strict=False))


def _mutants(part: str, file: Path, root: Path) -> Iterator[Mutant]:
    text = file.read_text(encoding="utf-8")
    lines, ended = text.split("\n"), 0
    no_code = _no_code(text) if file.suffix == ".py" else set()
    for start, old in _places(text, file.suffix, is_sql=part == "sql"):
        number = text.count("\n", 0, start)
        column = start - (text.rfind("\n", 0, start) + 1)
        if number not in no_code and start >= ended:
            ended = start + len(old)
            new = SWAPS[old] if old in SWAPS else str(int(old) + 1)
            new = "~=" if file.suffix == ".lua" and new == "!=" else new
            line = lines[number]
            after = f"{line[:column]}{new}{line[column + len(old) :]}"
            yield Mutant(part, str(file.relative_to(root)), number, line, after)


def _places(text: str, suffix: str, *, is_sql: bool) -> Iterator[tuple[int, str]]:
    """Return where something is changed, and what; of Python with `is_sql` the statements in its texts."""
    for found in LANGUAGES[suffix].finditer(text):
        if is_sql and suffix == ".py":
            if found["changed"] is None and SQL.search(found[0]):
                inside = _places(found[0].strip('"'), ".sql", is_sql=True)
                shift = found.start() + len(found[0]) - len(found[0].lstrip('"'))
                yield from ((shift + start, old) for start, old in inside)
        elif found["changed"]:
            yield found.start(), found["changed"]


def _no_code(text: str) -> set[int]:
    """Return the lines of a module whose change is of no effect, or of words that people read."""
    found = set[int]()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Raise() | ast.Assert() | ast.Expr(ast.Constant()) | ast.keyword("strict"):
                apart: list[ast.AST] = [node]
            case ast.Assign() | ast.AnnAssign() if BOUND.match(ast.unparse(node)):
                apart = [node]
            case ast.ClassDef():
                apart = [*node.decorator_list, *node.keywords]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                apart = [*node.decorator_list]
            case _:
                apart = []
        for part in apart:
            found.update(range(part.lineno - 1, part.end_lineno))  # type: ignore[attr-defined]  # all have both
    return found


def tests_of(mutant: Mutant, root: Path) -> list[list[str]]:
    """Return groups of test files in the order in which they are tried, those of `make verify` last."""
    path = Path(mutant.file)
    folders = (mirror_of(path), *PARTS[mutant.part][1])
    ranks: dict[tuple[bool, int], list[str]] = {}
    for name, text in texts_of_tests(root).items():
        rank, near = rank_of(path, name, text), [name.startswith(f"tests/{folder}/") for folder in folders]
        if rank is None and True in near:
            rank = 3 + near.index(True)
        if rank is not None:
            ranks.setdefault((tier_of(name) == "verify", rank), []).append(name)
    return [ranks[rank] for rank in sorted(ranks)]


def kill(mutant: Mutant, root: Path, seconds: float, postgres: str) -> tuple[str, str]:
    """Return the test that fails for a mutant, and its error; the file is put back."""
    file = root / mutant.file
    whole = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = whole.split("\n")
    there = [number for number, line in enumerate(lines) if line == mutant.before]
    if not there:
        return "gone", ""
    lines[min(there, key=lambda number: abs(number - mutant.number))] = mutant.after
    file.write_text("\n".join(lines), encoding="utf-8")
    until = time.monotonic() + seconds
    try:
        for group in tests_of(mutant, root):
            found = _forked(group, root, until - time.monotonic(), postgres)
            if found[0]:
                return found
    finally:
        file.write_text(whole, encoding="utf-8")
    return "nothing", ""


def _forked(files: list[str], root: Path, seconds: float, postgres: str) -> tuple[str, str]:
    """Run tests in a process that has all libraries, and return the first that fails."""
    if seconds < 1:
        return "no time", files[0]
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_run, args=(files, root, int(seconds), postgres, theirs))
    process.start()
    theirs.close()
    found = "no time", files[0]
    with suppress(EOFError):  # it was killed, as what computes forever
        if ours.poll(seconds + END_S_MAX):
            found = ours.recv()
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return found


class _Watch:
    """The first test of a run that fails; its tests have the PostgreSQL of all runs."""

    failed, error = "", ""

    def __init__(self, postgres: str) -> None:
        self.postgres = postgres

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> str | None:
        if fixturedef.argname != "postgres":
            return None
        key = fixturedef.cache_key(request)
        fixturedef.cached_result = (self.postgres, key, None)  # type: ignore[arg-type]  # of any fixture
        return self.postgres

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed, self.error = report.nodeid, report.longreprtext[-400:]


def _run(files: list[str], root: Path, seconds: int, postgres: str, channel: Connection) -> None:
    _enter(root)
    watch = _Watch(postgres)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(seconds)
    code = pytest.main([*OPTIONS, *files], plugins=[watch])
    signal.alarm(0)
    # Interrupted; or with tests that cannot be loaded; else all passed, or there was none.
    ended = {2: "no time", 3: files[0], 4: files[0]}.get(code, "")
    channel.send((watch.failed or ended, watch.error))


def _enter(root: Path) -> None:
    """Make this process one of a tree, which says nothing and has loaded no module of it."""
    os.setsid()
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    os.chdir(root)
    os.environ.update(PYTHONPATH=str(root), TEST_WORKER="1")
    sys.path.insert(0, str(root))
    for name in list(sys.modules):
        if name.partition(".")[0] in {"tests", "gateway", "persistence"}:
            del sys.modules[name]


def load_libraries(root: Path) -> None:
    """Import here what tests import from elsewhere: each mutant's process has it already."""
    ours, theirs = FORK.Pipe(duplex=False)

    def collect() -> None:
        _enter(root)
        pytest.main([*OPTIONS, "--collect-only", *LOADED])
        files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
        theirs.send([name for name, file in files.items() if "-packages" in file])

    FORK.Process(target=collect).start()
    for name in ours.recv():
        with suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def tier_of(test: str) -> str:
    """Return which of `make test` and `make verify` has a test."""
    file = test.partition("::")[0]
    if file in {"gone", "nothing", "no time"}:
        return file
    return "verify" if any(file == name or file.startswith(f"{name}/") for name in VERIFY) else "test"


def main() -> None:
    """Print what kills each mutant, and keep that in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=240, help="that the tests of a mutant may take")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose tests are asked")
    parser.add_argument("--like", type=Path, help="what an earlier run wrote")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "mutants.json")
    options = parser.parse_args()
    options.to.parent.mkdir(exist_ok=True)
    rows: list[dict[str, object]] = json.loads(options.to.read_text()) if options.to.exists() else []
    done = set(_like(options.to)) if rows else set()
    no_copy = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__")
    with tempfile.TemporaryDirectory() as folder, postgres_of(postgres_bin()) as postgres:
        copy = shutil.copytree(options.tree, Path(folder) / "tree", ignore=no_copy)
        mutants = _like(options.like) if options.like else draw(options.seed, options.parts, copy)
        load_libraries(copy)
        for mutant in mutants:
            if len(rows) >= options.count:
                break
            if mutant in done:
                continue
            began = time.monotonic()
            killer, error = kill(mutant, copy, options.seconds, postgres)
            took = round(time.monotonic() - began)
            psycopg.connect(postgres).close()  # without it every test fails, for each mutant
            rows.append(asdict(mutant) | {"killed": killer, "error": error, "seconds": took})
            print(f"{mutant.file}:{mutant.number + 1}: {mutant.after.strip()[:70]} -> {killer}", flush=True)
            options.to.write_text(json.dumps(rows, indent=1))
    tiers = Counter(tier_of(str(row["killed"])) for row in rows)
    print(f"{len(rows)} mutants: {dict(tiers)}")


def _like(file: Path) -> Iterator[Mutant]:
    for row in json.loads(file.read_text()):
        yield Mutant(*(row[each.name] for each in fields(Mutant)))


if __name__ == "__main__":
    main()
