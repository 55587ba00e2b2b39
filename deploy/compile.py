#!/usr/bin/env python3
"""Compile the hot path to C: `python deploy/compile.py TARGET`.

Copies the packages to TARGET and builds extension modules there: mypyc compiles the Python modules that every
request passes through, and a C compiler those that are written in C. Behaviour does not change. All other
modules are interpreted, and each module in C has a replacement in Python, so Tollkeeper also runs without a C
compiler.

Run the result with TARGET on PYTHONPATH. Each build is kept in `build/c`, so that tests, measurements, wheels and
`make compile` compile the same sources once.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "persistence", "lua")
KEPT = ROOT / "build" / "c"
KEPT_MAX = 6  # builds of one name: more than there are flags of it
# Modules whose annotations msgspec reads, and modules that run once per client, are not compiled.
MODULES = {
    "gateway/calls": ("admit", "aim", "answers", "charge", "claim", "permit", "ports", "prices", "rating", "steps", "terms"),
    "gateway/core": (
        "circuit_breaker", "histograms", "http_limits", "lru", "model", "shares", "traces", "unreported_failures",
        "wait", "wait_hints",
    ),
    "gateway/core/accounts": ("call_budgets", "limits"),
    "gateway/core/billing": ("price_book", "sellers", "service_tiers", "stand_ins", "token_prices"),
    "gateway/core/calls": (
        "aim", "alphabets", "call", "claims", "estimate", "models", "output_limits", "parsing", "tariff", "tool_uses",
        "use_request",
    ),
    "gateway/core/families": ("controlled", "family", "hearing", "objects", "references", "tools"),
    "gateway/core/families/anthropic": ("calls",),
    "gateway/core/families/gemini": ("array", "calls"),
    "gateway/core/families/openai": ("calls", "chat", "reports"),
    "gateway/core/metering": ("content", "eventstream", "meter", "meters", "reading", "stream"),
    "gateway/counters/admission": (
        "account_limit", "cache", "callers", "catalogue", "counters", "key_changes", "live_holds", "lookup_queue",
        "releases", "sharded",
    ),
    "gateway/counters/layouts": ("accounts", "packing"),
    "gateway/counters/leases": ("allowance",),
    "gateway/counters/redis": ("calls", "connection"),
    "gateway/counters/settlement_log": ("log",),
    "gateway/http": (
        "admission", "admitted_call", "forward", "model_lists", "ports", "proxy", "relay", "reply", "tally",
        "turns",
    ),
    "gateway/http/protocol": ("answer", "framing", "request", "request_ids"),
    "gateway/http/routing": ("cors", "head", "openings", "routed_head", "routes", "worker_bindings"),
    "gateway/http/server": ("buffers", "connection", "exchange", "server", "traced"),
    "gateway/http/upstream": ("pool",),
}  # fmt: skip
IN_C = (
    "gateway/core/_joined", "gateway/core/calls/_scan", "gateway/core/calls/_text",
    "gateway/core/metering/_usage", "gateway/http/protocol/_heads",
)  # fmt: skip
# mypyc indents by hundreds of columns, and gcc would check that for a minute. Only Python loads the result,
# by module name, so all other symbols are hidden and called directly.
_FLAGS = (
    "-Wno-misleading-indentation", "-fvisibility=hidden", "-fno-semantic-interposition", "-fno-plt",
)  # fmt: skip
# Code that only errors reach, three quarters of all C, is placed apart, so that the rest is close together.
_RARE = """\
typedef struct _object PyObject;
#define RARE __attribute__((cold)) void
RARE CPy_AddTraceback(const char *, const char *, int, PyObject *);
RARE CPy_AttributeError(const char *, const char *, const char *, const char *, int, PyObject *);
RARE CPy_TypeError(const char *, PyObject *);
RARE CPy_TypeErrorTraceback(const char *, const char *, int, PyObject *, const char *, PyObject *);
RARE CPyError_OutOfMemory(void);
"""
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
_PLAIN = "dataclass(slots=True)"
_FUTURE = "from __future__ import annotations\n"


def main() -> int:
    """Build into the directory named by the first argument, and return the exit status."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python deploy/compile.py TARGET\n")
        return 2
    missing = lacking()
    if missing:
        sys.stderr.write(f"cannot compile: {missing}\n")
        return 1
    build(Path(sys.argv[1]).resolve())
    return 0


def lacking() -> str:
    """Return a message that names what this machine needs to compile; empty if it has all."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's own headers (Python.h) are not installed"
    return ""


def build(target: Path) -> None:
    """Copy the packages to `target`, with the hot path compiled."""
    made = compiled()
    for package in PACKAGES:
        shutil.rmtree(target / package, ignore_errors=True)
    shutil.copytree(made, target, dirs_exist_ok=True)


def compiled(level: str = "") -> Path:
    """Return the folder of the packages with the hot path compiled; compile it if it is not kept.

    `level` is what gcc makes of mypyc's C, 0 to 3. Without it `MYPYC_OPT_LEVEL` says so, else it is 3.
    """
    level = level or os.environ.get("MYPYC_OPT_LEVEL", "3")
    # The compiler reads the types of interpreted modules too.
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    sources = [path for path in files if path.is_file() and path.suffix not in {".so", ".pyd", ".pyc"}]
    flags = f"{os.environ.get('CFLAGS')} -O{level} mypy {metadata.version('mypy')}"
    return kept(
        "hot_path", [*sources, ROOT / "pyproject.toml"], flags, lambda folder: _compile(folder, level)
    )


def kept(name: str, sources: Iterable[Path], flags: str, build: Callable[[Path], object]) -> Path:
    """Return the folder of a build of these sources and flags; run `build` on an empty folder if none is kept.

    A build that is not complete has no name, so processes may build beside each other.
    """
    tools = f"{sys.version} {sysconfig.get_config_vars('CFLAGS', 'LDSHARED')} {_compiler_version()}"
    key = hashlib.sha256(f"{tools} {flags}".encode())
    for path in (Path(__file__).resolve(), *sorted(sources)):
        key.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    made = KEPT / f"{name}-{key.hexdigest()[:16]}"
    if not made.is_dir():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT, prefix=".") as folder:
            begun = Path(folder, name)
            begun.mkdir()
            build(begun)
            with suppress(OSError):  # another process was quicker
                begun.rename(made)
        for old in sorted(KEPT.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)[:-KEPT_MAX]:
            shutil.rmtree(old, ignore_errors=True)
    return made


def _compiler_version() -> str:
    command = [*shlex.split(sysconfig.get_config_var("CC") or "cc"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  # our own words


def _compile(target: Path, level: str) -> None:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
        )
    shutil.copy(ROOT / "pyproject.toml", target)
    files = [f"{folder}/{name}.py" for folder, names in MODULES.items() for name in names]
    for name in files:
        finalize(target / name)
    flags = os.environ.get("CFLAGS") or sysconfig.get_config_var("CFLAGS") or ""
    rare = target / "rare.h"
    rare.write_text(_RARE, encoding="utf-8")
    environ = os.environ | {
        "PYTHONPATH": str(target), "MYPYC_OPT_LEVEL": level,
        "CFLAGS": " ".join((flags, *_FLAGS, "-include rare.h")).strip(),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "mypyc", *files], cwd=target, env=environ, check=True)  # noqa: S603  # our own words
    rare.unlink()
    for name in IN_C:
        extension(ROOT / f"{name}.c", (target / name).parent, flags)
    shutil.rmtree(target / "build", ignore_errors=True)
    shutil.rmtree(target / ".mypy_cache", ignore_errors=True)


def extension(source: Path, folder: Path, flags: str = "") -> Path:
    """Build the C source of one module into `folder`, and return the path of the shared library."""
    words = [
        *shlex.split(sysconfig.get_config_var("LDSHARED") or "cc -shared"),
        *shlex.split(sysconfig.get_config_var("CCSHARED") or "-fPIC"),
        *shlex.split(flags),
        # Python's headers cast objects to the expected type after a check, which gcc would warn about.
        *("-O3", "-fvisibility=hidden", "-Wno-array-bounds", f"-I{sysconfig.get_path('include')}"),
    ]
    made = folder / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([*words, str(source), "-o", str(made)], check=True)  # noqa: S603  # our own words
    return made


def finalize(module: Path) -> None:
    """Rewrite the source of `module` in ways that only help a compiler.

    Constants become `Final`, so C code reads them directly. Mutable dataclasses get a plain `__init__`, which
    is compiled too. `isinstance` gets tuples of types: a union such as `int | str` would be created at each
    call.
    """
    text = with_final_constants(module.read_text(encoding="utf-8"))
    module.write_text(with_types_apart(begun_plainly(text)), encoding="utf-8")


def with_final_constants(text: str) -> str:
    """Return the source with its constants marked `Final`.

    Constants have upper-case names and are assigned once at the top level, alone or several in one statement.
    """
    lines, tree = text.splitlines(), ast.parse(text).body
    later = {ast.unparse(one.target) for one in tree if isinstance(one, ast.AugAssign)}
    for node in reversed(tree):
        if not isinstance(node, ast.Assign) or _called(node.value) == "TypeVar":
            continue
        stated = [] if later & {name for name, _ in _assigned(node)} else _assigned(node)
        if stated and all(_CONSTANT.fullmatch(name) for name, _ in stated):
            lines[node.lineno - 1 : node.end_lineno] = [f"{name}: _Final = {value}" for name, value in stated]
    final = "\n".join(lines) + "\n"
    return final.replace(_FUTURE, f"{_FUTURE}from typing import Final as _Final\n", 1)


def _assigned(node: ast.Assign) -> list[tuple[str, str]]:
    """Return (name, value) for each name in an assignment; none if values are not clear from the source."""
    target, value = node.targets[-1], node.value
    if isinstance(target, ast.Name) and len(node.targets) == 1:
        return [] if _is_row_of_floats(value) else [(target.id, ast.unparse(value))]
    names = [ast.unparse(one) for one in target.elts] if isinstance(target, ast.Tuple) else []
    if _called(value) == "range":
        return [(name, str(number)) for number, name in enumerate(names)]
    if isinstance(value, ast.Tuple) and len(value.elts) == len(names):
        return list(zip(names, map(ast.unparse, value.elts), strict=True))
    return []


def _is_row_of_floats(value: ast.expr) -> bool:
    """Return whether an expression is a tuple with a float.

    mypyc stores such a tuple in a C struct, which cannot express that it is not set.
    """
    parts = value.elts if isinstance(value, ast.Tuple) else []
    return any(isinstance(one, ast.Constant) and isinstance(one.value, float) for one in parts)


def _called(value: ast.AST) -> str:
    """Return the name of the function that the expression calls; empty if it is no call."""
    return ast.unparse(value.func) if isinstance(value, ast.Call) else ""


def begun_plainly(text: str) -> str:
    """Return the source with an explicit `__init__` in each `@dataclass(slots=True)`."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if not isinstance(node, ast.ClassDef) or [*map(ast.unparse, node.decorator_list)] != [_PLAIN]:
            continue
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
        if any(one.value is not None and _called(one.value) == "field" for one in fields):
            continue  # made again each time
        stated = [ast.unparse(one) for one in fields]
        names = [ast.unparse(one.target) for one in fields]
        lines[fields[-1].end_lineno : fields[-1].end_lineno] = [
            "",
            f"    def __init__(self, {', '.join(stated)}) -> None:",
            *(f"        self.{name} = {name}" for name in names),
        ]
        at = node.decorator_list[0].lineno - 1
        lines[at] = lines[at].replace("slots=True", "slots=True, init=False")
    return "\n".join(lines) + "\n"


def with_types_apart(text: str) -> str:
    """Return the source with `isinstance(x, A | B)` written as `isinstance(x, (A, B))`, if on one line."""
    lines = text.splitlines()
    calls = [one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Call)]
    for types in sorted([one.args[1] for one in calls if _called(one) == "isinstance"], key=_place)[::-1]:
        line, start, end = lines[types.lineno - 1], types.col_offset, types.end_col_offset
        if isinstance(types, ast.BinOp) and types.lineno == types.end_lineno and line.isascii():
            apart = f"({ast.unparse(types).replace(' | ', ', ')})"
            lines[types.lineno - 1] = f"{line[:start]}{apart}{line[end:]}"
    return "\n".join(lines) + "\n"


def _place(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


if __name__ == "__main__":
    sys.exit(main())
