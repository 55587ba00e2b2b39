#!/usr/bin/env python3
"""Build the wheels of a release: `python deploy/wheels.py TARGET [--pure] [--tree COMPILED]`.

The pure wheel runs on any Python from 3.11 on. The compiled wheel also has the hot path as extension modules,
for the Python and machine that build it. Without a C compiler it is skipped with a message. `--tree` names a
tree that deploy/compile.py has built already.

Both contain all that `pip install` needs: scripts, migrations, templates and files of the console.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import compile as hot_path  # deploy/compile.py, in the same folder

ROOT = Path(__file__).resolve().parent.parent
# Files that a wheel is built from besides the packages.
BESIDE = ("pyproject.toml", "README.md", "LICENSE")
# A constant time for each file, so that the same sources make the same wheel.
FIRST_TIME = (1980, 1, 1, 0, 0, 0)


def main() -> int:
    """Build the wheels into the target directory, print their paths, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python deploy/wheels.py")
    parser.add_argument("target", type=Path, help="where they are put")
    parser.add_argument("--pure", action="store_true", help="the pure one alone")
    parser.add_argument("--tree", type=Path, help="what deploy/compile.py has made")
    asked = parser.parse_args()
    target = asked.target.resolve()
    target.mkdir(parents=True, exist_ok=True)
    wheel = pure(target)
    sys.stdout.write(f"{wheel}\n")
    missing = "" if asked.tree else hot_path.lacking()
    if missing:
        sys.stderr.write(f"no compiled wheel: {missing}\n")
    if asked.pure or missing:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree = asked.tree or Path(folder)
        if not asked.tree:
            hot_path.build(tree)
        sys.stdout.write(f"{compiled(wheel, tree, target)}\n")
    return 0


def pure(target: Path) -> Path:
    """Build the wheel of the plain sources, without compiled files, and return its path."""
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder)
        for package in hot_path.PACKAGES:
            left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
            shutil.copytree(ROOT / package, sources / package, ignore=left_out)
        for name in BESIDE:
            shutil.copy(ROOT / name, sources)
        commands = [sys.executable, "-m", "gateway.cli.admin.describing", "gateway/cli/admin/commands.json"]
        subprocess.run(commands, cwd=sources, check=True)  # noqa: S603  # our own words
        words = ["-q", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        subprocess.run(  # noqa: S603  # our own words
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                *words,
                "--wheel-dir",
                str(sources / "made"),
                str(sources),
            ],
            check=True,
        )
        [made] = (sources / "made").glob("*.whl")
        return Path(shutil.copy(made, target))


def compiled(wheel: Path, tree: Path, target: Path) -> Path:
    """Add the extension modules of a compiled tree to a pure wheel (PyPA, binary distribution format)."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    tag = f"{python}-{python}-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
    name, version = wheel.name.split("-")[:2]
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel) as pure_one:
        files = {one: pure_one.read(one) for one in pure_one.namelist() if not one.endswith("/")}
    files |= {one.relative_to(tree).as_posix(): one.read_bytes() for one in sorted(tree.rglob("*.so"))}
    said = files[f"{about}/WHEEL"].decode()
    said = said.replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    files[f"{about}/WHEEL"] = said.replace("Tag: py3-none-any", f"Tag: {tag}").encode()
    files[f"{about}/RECORD"] = _record(files, f"{about}/RECORD")
    made = target / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as whole:
        for one, content in files.items():
            entry = zipfile.ZipInfo(one, FIRST_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if one.endswith(".so") else 0o644) << 16
            whole.writestr(entry, content)
    return made


def _record(files: dict[str, bytes], own: str) -> bytes:
    """Return the RECORD file of a wheel: SHA-256 digest and size of each file, for installers to check.

    `own` is the name of this file, which has no digest.
    """
    said = io.StringIO()
    rows = csv.writer(said, lineterminator="\n")
    for name, content in files.items():
        if name != own:
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((own, "", ""))
    return said.getvalue().encode()


if __name__ == "__main__":
    sys.exit(main())
