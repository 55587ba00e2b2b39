"""The compiled hot path is held to the very tests of the interpreted one."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import search
from tests.deploy import installed
from tests.extensions import ask_for_compiler, compiled, compiler, loaded
from tests.search import is_night

ROOT = Path(__file__).resolve().parents[2]
RUN_S_MAX = 1800
# It derives a class of its own, which only another compiled one may do.
LEFT_OUT = "tests/http/server/test_request_driver.py"
FOLDERS = ("tests/core", "tests/counters", "tests/http")


@pytest.fixture(scope="module")
def tree() -> Path:
    """The packages with the hot path compiled."""
    made = compiled()
    assert list((made / "gateway" / "http").glob("proxy.*.so"))
    assert list((made / "gateway" / "core" / "calls").glob("_scan.*.so"))
    return made


def test_a_wheel_of_it_is_installed_and_runs(tree: Path, tmp_path: Path) -> None:
    said = installed.said_by(
        sys.executable, ROOT / "deploy" / "wheels.py", tmp_path / "wheels", "--tree", tree, cwd=tmp_path
    )
    wheel = Path(said.splitlines()[-1])
    assert "-cp3" in wheel.name
    programs = installed.install(wheel, tmp_path)
    proxy = installed.place_of(programs, "gateway.http.proxy", tmp_path)
    assert (proxy.suffix, proxy.is_relative_to(tmp_path / "venv")) == (".so", True)
    found = installed.up(programs, tmp_path)
    assert (bool(found["answer"]["choices"]), found["status"]) == (True, 0)


def held_to() -> list[str]:
    """Return the test files that import a module that is compiled; at night all tests of their packages."""
    if is_night():
        return [*FOLDERS, f"--ignore={LEFT_OUT}"]
    modules = {name.replace("/", ".") for name in compiler().IN_C}
    for package, names in compiler().MODULES.items():
        modules |= {f"{package.replace('/', '.')}.{name}" for name in names}
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("test_*.py"))]
    names = [path.relative_to(ROOT).as_posix() for path in files if modules & set(_imported(path))]
    return [name for name in names if name != LEFT_OUT]


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{one.name}" for one in node.names))


def test_compiled_hot_path_passes_the_tests_of_all_that_it_reads(tree: Path, tmp_path: Path) -> None:
    for one in (*tree.iterdir(), ROOT / "tests"):
        (tmp_path / one.name).symlink_to(one)
    run = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
            *("--processes", "2"),  # much of what they do is to wait
            *held_to(),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


def test_what_is_compiled_is_held_to_the_files_that_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(search.SEED, raising=False)  # a night holds it to all files
    held = held_to()
    assert "tests/core/metering/test_usage_in_c.py" in held
    assert "tests/features/test_focus.py" not in held


def test_build_is_kept_for_its_sources_and_flags(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    script = shutil.copy(ROOT / "deploy/compile.py", tmp_path / "deploy")
    program, folders = loaded("compile_elsewhere", Path(script)), list[Path]()
    ask_for_compiler()
    source = tmp_path / "a.c"
    for text, flags in (("1", ""), ("1", ""), ("1", "-O3"), ("2", ""), ("1", "")):
        source.write_text(text)
        assert program.kept("a", [source], flags, folders.append).is_dir()
    assert len(folders) == 3


def test_constants_are_final_for_the_compiler() -> None:
    """Alone and in rows; not what mypyc cannot keep, nor two names of one value."""
    text = (
        "from __future__ import annotations\n"
        "T = TypeVar('T')\nNEVER = float('inf')\n_A, B = 'a', 2\nC, D = range(2)\nSTEPS = (0.5, 1.0)\n"
        "CALLS_MAX = 3\n_HELD_MAX = 4\nWAIT_S = LOOK_S = 0.5\nlower = 1\n_TABLE = {\n    1: 'one',\n}\n"
        "GROWS = {}\nGROWS |= _TABLE\n"
    )
    assert compiler().with_final_constants(text) == (
        "from __future__ import annotations\nfrom typing import Final as _Final\n"
        "T = TypeVar('T')\nNEVER: _Final = float('inf')\n_A: _Final = 'a'\nB: _Final = 2\n"
        "C: _Final = 0\nD: _Final = 1\nSTEPS = (0.5, 1.0)\n"
        "CALLS_MAX: _Final = 3\n_HELD_MAX: _Final = 4\nWAIT_S = LOOK_S = 0.5\nlower = 1\n"
        "_TABLE: _Final = {1: 'one'}\nGROWS = {}\nGROWS |= _TABLE\n"
    )


def test_what_a_dataclass_begins_with_is_written_out_for_the_compiler() -> None:
    text = (
        "@dataclass(slots=True)\nclass Plain:\n    one: int\n    two: str | None = None\n\n"
        "    @property\n    def three(self) -> int:\n        return 3\n\n\n"
        "@dataclass(frozen=True, slots=True)\nclass Frozen:\n    one: int\n\n\n"
        "@dataclass(slots=True)\nclass Made:\n    one: list[int] = field(default_factory=list)\n\n\n"
        "@dataclass(slots=True)\nclass Shared:\n    one: frozenset[int] = frozenset()\n"
    )
    plainly = compiler().begun_plainly(text)
    space: dict[str, object] = {}
    exec("from dataclasses import dataclass, field\n" + plainly, space)  # what was written above
    plain = space["Plain"](1, two="b")  # type: ignore[operator]  # a class of the text
    assert (plain.one, plain.two, plain.three, repr(plain)) == (1, "b", 3, "Plain(one=1, two='b')")
    assert plain == space["Plain"](1, "b")  # type: ignore[operator]  # a class of the text
    assert plainly.count("init=False") == 2
    assert plainly.count("def __init__(self, one: int, two: str | None = None) -> None:") == 1


def test_types_are_asked_for_one_by_one_by_the_compiler() -> None:
    text = (
        "def plain(a, b):\n"
        "    return (isinstance(a, int | str), isinstance(b, (dict | list)), isinstance(a, dict), a | b)\n"
    )
    apart = compiler().with_types_apart(text)
    assert "isinstance(a, (int, str)), isinstance(b, ((dict, list))), isinstance(a, dict), a | b" in apart
