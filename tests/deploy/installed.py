"""A wheel in an environment that has nothing else of this project, and `tollkeeper up` run from there.

The packages that it asks for are those of this environment, so that nothing is fetched; it sees no others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import urllib.request
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tests import numbers
from tests.waiting import HUNG_S, readable

ASKED = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}


def environ() -> dict[str, str]:
    """What a person's shell has: nothing that leads to this checkout."""
    left_out = ("TOLLKEEPER_", "PYTHON", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(left_out)}


def said_by(*words: str | Path, cwd: Path) -> str:
    """What a command prints; it fails with what it said."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd, env=environ(), capture_output=True, text=True, timeout=HUNG_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def install(wheel: Path, folder: Path) -> Path:
    """Where the programs of a new environment are, in which the wheel is installed."""
    said_by(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    words = ["install", "-q", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    said_by(sys.executable, "-m", "pip", "--python", programs / "python", *words, wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = said_by(programs / "python", "-c", where, cwd=folder).strip()
    embedded = numbers.packages_of("deploy/extras/up.lock")
    (Path(own) / "beside.pth").write_text(f"{base(folder / 'base', *embedded)}\n")
    return programs


def base(folder: Path, *more: str) -> Path:
    """A directory that has the packages of a gateway's install alone, and what else is named."""
    folder.mkdir()
    for name in (*numbers.base_packages(), *more):
        with suppress(PackageNotFoundError):  # of older Pythons
            files = distribution(name).files or ()
            for part in {file.parts[0] for file in files} - {"..", "__pycache__"}:
                (folder / part).symlink_to(Path(sysconfig.get_path("purelib")) / part)
    return folder


def place_of(programs: Path, module: str, folder: Path) -> Path:
    """From which file a module is loaded there."""
    words = f"import {module} as it; print(it.__file__)"
    return Path(said_by(programs / "python", "-c", words, cwd=folder).strip())


def up(programs: Path, folder: Path) -> dict[str, Any]:
    """What one run from there did: the facts it said, its answer to a call, its pages, its exit status."""
    words = [programs / "tollkeeper", "up", "--json", "--gateway-port", "0", "--admin-port", "0"]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*words, "--data-dir", "data"], stdout=subprocess.PIPE, stderr=stderr, cwd=folder, env=environ()
        )
    assert process.stdout is not None
    found: dict[str, Any] = {}
    try:
        ready = readable(process.stdout, HUNG_S)
        line = process.stdout.readline() if ready else b""
        assert line, (folder / "stderr").read_text()[-3000:]
        facts = json.loads(line)
        gateway, admin = facts["gateway_url"], facts["admin_url"]
        found["answer"] = json.loads(_read(f"{gateway}/v1/chat/completions", facts["api_key"], ASKED))
        found["openapi"] = json.loads(_read(f"{admin}/admin/v1/openapi.json", facts["admin_token"]))
        found["page"] = _read(f"{admin}/sign-in").decode()
    finally:
        process.send_signal(signal.SIGTERM)
        found["status"] = process.wait(HUNG_S)
        process.stdout.close()
    return found


def _read(url: str, token: str = "", body: Any = None) -> bytes:
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=HUNG_S) as answer:
        content: bytes = answer.read()
        return content
