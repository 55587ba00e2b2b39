"""The scripts as luacheck reads them: `python -m tests.lua.lint`, a part of `make check`.

What is checked is the library as Redis gets it, where every name a file only uses is defined.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.counters.redis import scripts
from tests.deploy.programs import UNPACKED, program

PACKAGES = ("lua5.4", "lua-check", "lua-argparse", "lua-filesystem")
OPTIONS = (
    "--std", "lua51", "--read-globals", "redis", "struct", "bit", "cjson", "cmsgpack", "--no-max-line-length",
    "--codes", "--no-color", "--no-cache", "--formatter", "plain",
    "--ignore", "581", "582",  # how `has` is written out, and `not a ~= not b`, which newer versions doubt
)  # fmt: skip


def warnings(libraries: Mapping[str, str]) -> dict[str, list[str]]:
    """What luacheck says of each library by its name, a line each; skips where it cannot be had."""
    found: dict[str, list[str]] = {name: [] for name in libraries}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in libraries.items():
            Path(folder, name).write_text(text.partition("\n")[2])
        done = subprocess.run(
            [*_luacheck(), *libraries, *OPTIONS], cwd=folder, capture_output=True, text=True, check=False
        )
    assert done.returncode in {0, 1, 2}, done.stderr
    for line in done.stdout.splitlines():
        if line.strip():
            found[line.partition(":")[0]].append(line)
    return found


def _luacheck() -> list[str]:
    """The one installed here, else Debian's, which a Lua that is only unpacked runs."""
    if found := shutil.which("luacheck"):
        return [found]
    lua = program("lua5.4", *PACKAGES)
    folder = UNPACKED / "+".join(PACKAGES)
    shared, [library] = folder / "usr/share/lua", folder.glob("usr/lib/*/lua/5.4")
    path = ";".join(
        f"{shared}/{version}/{name}" for version in ("5.4", "5.1") for name in ("?.lua", "?/init.lua")
    )
    begun = f"package.path='{path}' package.cpath='{library}/?.so' require 'luacheck.main'"
    main = Path(folder / "luacheck.lua")
    main.write_text(begun)
    return [lua, str(main)]


def main() -> int:
    """Print what is wrong; the exit status."""
    try:
        [found] = warnings({"library": scripts.library().text}).values()
    except pytest.skip.Exception as skipped:
        sys.stdout.write(f"luacheck is left out: {skipped}\n")
        return 0
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
