#!/usr/bin/env python3
"""Compile the hot path to C: `python deploy/compile.py TARGET`.

Makes a copy of the packages in TARGET in which the modules every request passes through are
extension modules, built by mypyc from the very same sources. Nothing else changes: a module
that is not there compiled is interpreted, and without a C compiler Tollkeeper runs as it is.
Run what was built with TARGET on PYTHONPATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "persistence", "lua")
# Modules whose annotations msgspec reads, and those that run once a client, stay interpreted.
MODULES = {
    "gateway/http": (
        "answer", "charge", "clock", "connection", "exchange", "framing", "limits", "link", "plan", "ports",
        "proxy", "relay", "reply", "request", "request_ids", "server", "story", "tally", "traced", "upstream",
        "worker",
    ),
    "gateway/core": ("wait", "model", "call", "strict_json", "limits", "estimate", "sse", "trace"),
    "gateway/core/meter": ("__init__", "meter", "whole", "stream", "encoded", "generic", "gemini_array"),
    "gateway/counters": ("wire", "quota", "packing", "flags"),
}  # fmt: skip
_CONSTANT = re.compile(r"^(_[A-Z][A-Z0-9_]*) = (?!TypeVar)", re.MULTILINE)
_FUTURE = "from __future__ import annotations\n"


def main() -> int:
    """Build into the directory named; the exit status."""
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
    """What this machine lacks to compile; empty where nothing is."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's own headers (Python.h) are not installed"
    return ""


def build(target: Path) -> None:
    """Copy the packages to `target` and compile the hot path there."""
    target.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        shutil.rmtree(target / package, ignore_errors=True)
        shutil.copytree(
            ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
        )
    shutil.copy(ROOT / "pyproject.toml", target)
    files = [f"{folder}/{name}.py" for folder, names in MODULES.items() for name in names]
    for name in files:
        finalize(target / name)
    environ = os.environ | {"MYPYC_OPT_LEVEL": "3", "PYTHONPATH": str(target)}
    subprocess.run([sys.executable, "-m", "mypyc", *files], cwd=target, env=environ, check=True)  # noqa: S603  # our own words
    shutil.rmtree(target / "build", ignore_errors=True)
    shutil.rmtree(target / ".mypy_cache", ignore_errors=True)


def finalize(module: Path) -> None:
    """Say of its private constants that nothing sets them again: read from C, not from the module's names."""
    text = module.read_text(encoding="utf-8")
    final = _CONSTANT.sub(r"\1: _Final = ", text)
    if final != text:
        text = final.replace(_FUTURE, f"{_FUTURE}from typing import Final as _Final\n", 1)
        module.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
