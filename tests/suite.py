"""Run tests in two tiers; what fails among thousands of neighbours is tried again without them, and told.

Usage: python -m tests.suite [--tier quick|verify] [options of pytest]

`quick` is what each change is held to: all but `VERIFY`, whose files take minutes each. Without a tier pytest
runs what its options name.

The tests share two cores, and real servers, sockets and clocks. So a test may fail once for its neighbours'
sake. Where no more than `UNSTEADY_MAX` fail, their files have to pass `TRIES` times running, whole: then the
run is green and names them as unsteady, below what they said. What is there each time stays red, and so does
what the tests of one file do to each other, and a run of which more failed. An unsteady test is a fault all
the same: of the test, or a race of the product. Mend it first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Of these folders each change is held to the named files; all others are of the second tier.
QUICK = {
    "journey": ("billing", "budgets", "credits", "first_call", "quota_cycle", "services"),
    "admin/console": ("forms", "pages", "parts", "signing"),
    "admin/configuration": ("apply", "documents", "round_trip", "schema"),
}
# Files and folders of the second tier: the longest first, since each is done by one process.
VERIFY = (
    "tests/contract/test_compiled.py",
    "tests/faults/test_rows_others.py",
    "tests/faults/test_rows_processes.py",
    "tests/faults/test_rows_redis.py",
    "tests/deploy",
    *(
        f"tests/{folder}/{file.name}"
        for folder, quick in QUICK.items()
        for file in sorted((ROOT / "tests" / folder).glob("test_*.py"))
        if file.stem.removeprefix("test_") not in quick
    ),
    *(file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("tests/admin/test_cli_*.py"))),
    *(file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("tests/ops/test_doctor*.py"))),
    "tests/admin/test_described.py",
    "tests/admin/test_hostile_money.py",
    "tests/features/archive",
    "tests/features/backup",
    "tests/local/test_commands.py",
    "tests/local/test_real_up.py",
    "tests/model/test_whole.py",
    "tests/persistence/billing/test_work.py",
    "tests/run/supervisor",
    "tests/test_completion.py",
    "tests/test_site.py",
    "tests/bench",
)
UNSTEADY_MAX = 3
TRIES = 2
# Databases are copied 20 times as fast in memory, where that much of it is free.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 8 * 2**30


def main(options: list[str]) -> int:
    """The exit code of pytest, or 0 where all that failed was unsteady."""
    if "--tier" in options:
        at = options.index("--tier")
        options[at : at + 2] = TIERS[options[at + 1]]
    with tempfile.TemporaryDirectory() as folder:
        code = _pytest(*options, "-o", f"cache_dir={folder}")
        record = Path(folder, "v", "cache", "lastfailed")
        failed = sorted(json.loads(record.read_text())) if record.is_file() else []
    whole = not any(option.startswith(("-x", "--exitfirst", "--maxfail")) for option in options)
    if code != pytest.ExitCode.TESTS_FAILED or not whole or not 0 < len(failed) <= UNSTEADY_MAX:
        return code
    files = sorted({one.partition("::")[0] for one in failed})
    print(f"\n{len(failed)} failed; each file again, {TRIES} times:", *files, sep="\n  ", flush=True)
    for _ in range(TRIES):
        for file in files:
            if again := _pytest("-q", "--no-header", "-p", "no:cacheprovider", file):
                return again
    print("\nUNSTEADY, to be mended first:", *failed, sep="\n  ", flush=True)
    return 0


TIERS = {"quick": [f"--ignore={path}" for path in VERIFY], "verify": list(VERIFY)}


def _pytest(*options: str) -> int:
    program = [sys.executable, "-P", "-m", "pytest", *options]
    there = {"TMPDIR": str(MEMORY)} if _roomy() else {}
    return subprocess.run(program, env=there | os.environ, check=False).returncode


def _roomy() -> bool:
    """Whether programs and their data have room in memory."""
    if not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
