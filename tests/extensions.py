"""Modules that are written in C, built and loaded for a test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tree import ROOT


def loaded(name: str, path: Path) -> ModuleType:
    """The module in that file, under no name that others import."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler() -> Any:
    """The program that compiles the hot path."""
    return loaded("compile_hot_path", ROOT / "deploy" / "compile.py")


def built(source: Path, folder: Path, flags: str = "") -> Any:
    """The module of a C file, built into the folder; any warning is an error. Skips without a compiler."""
    script = compiler()
    if script.lacking():
        pytest.skip("this machine has no C compiler or no Python.h")
    return loaded(source.stem, script.extension(source, folder, f"-Wall -Wextra -Werror {flags}"))
