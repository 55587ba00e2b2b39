"""Run tests in two tiers, with servers and their data in memory where it has room.

Usage: python -m tests.suite [--tier quick|verify|night] [options of pytest]

`quick` is what each change is held to: all but `VERIFY`, whose files take minutes each. `night` is both with
all examples and steps, of a seed that is drawn, and the tests that run at night alone. Without a tier pytest
runs what its options name. A test that fails fails the run: no file is tried a second time.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from tests import search
from tests.check import RULES

ROOT = Path(__file__).resolve().parent.parent
# Of these folders each change is held to the named files; all others are of the second tier.
QUICK = {
    "journey": ("budgets", "credits", "first_call", "quota_cycle"),
    "admin/console": ("forms", "pages", "parts", "signing"),
    "admin/configuration": ("apply", "documents"),
}
# Matrices, random histories and what waits for clocks; other files of these folders are of the first tier.
LONG = {
    "admin": ("confined", "usage"),
    "background/verifying": ("admission_gate", "compared", "partitions", "reconciler", "rewinds"),
    "counters": ("fence", "idle", "idle_sharded", "admission/sharded", "redis/shards"),
    "http": ("over_tls", "readings", "shares", "slow_readers", "stopping"),
    "local": ("child",),
    "lua": ("calls",),
    "persistence": (
        "schedule", "worked_example", "ledger/writer_failures", "schema/call_retention",
        "schema/grants",
    ),
    "persistence/billing": (
        "due", "agreed", "amendments", "early_use", "every_history", "finance",
        "late_amendments", "payments", "postpaid", "taxed_histories", "terms",
    ),
    "run": ("bundled_prices", "second_costs"),
}  # fmt: skip
# Files and folders of the second tier: the longest first, since each is done by one process.
VERIFY = (
    "tests/model/test_scripts_at_length.py",
    "tests/contract/test_compiled.py",
    "tests/faults/test_rows_staged.py",
    "tests/faults/test_rows_real.py",
    "tests/faults/test_histories.py",
    "tests/deploy",
    *(
        f"tests/{folder}/{file.name}"
        for folder, quick in QUICK.items()
        for file in sorted((ROOT / "tests" / folder).glob("test_*.py"))
        if file.stem.removeprefix("test_") not in quick
    ),
    *(
        str(Path("tests", folder, name).with_name(f"test_{Path(name).name}.py"))
        for folder, names in LONG.items()
        for name in names
    ),
    *(file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("tests/admin/test_cli_*.py"))),
    *(file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob("tests/ops/test_doctor*.py"))),
    "tests/admin/test_described.py",
    "tests/features/archive",
    "tests/features/backup",
    "tests/features/test_features.py",
    "tests/features/provider_report/test_command.py",
    "tests/local/test_commands.py",
    "tests/local/test_real_up.py",
    "tests/model/test_whole.py",
    "tests/persistence/billing/test_work.py",
    "tests/run/supervisor",
    "tests/test_completion.py",
    "tests/test_extras.py",
    "tests/test_servers.py",
    "tests/test_site.py",
    "tests/bench",
)
# Databases are copied 20 times as fast in memory, where that much of it is free.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 8 * 2**30


def main(options: list[str]) -> int:
    """The exit code of pytest."""
    environment = ({"TMPDIR": str(MEMORY)} if has_room() else {}) | os.environ
    if "--tier" in options:
        at = options.index("--tier")
        tier = options[at + 1]
        options[at : at + 2] = TIERS[tier]
        if tier == "night":
            seed = environment.get("SEED") or str(secrets.randbelow(2**32))
            environment[search.SEED] = seed
            options.append(f"--hypothesis-seed={seed}")
            print(f"The same again: make nightly SEED={seed}", flush=True)
    program = [sys.executable, "-P", "-m", "pytest", *options]
    return subprocess.run(program, env=environment, check=False).returncode


TIERS = {"quick": [f"--ignore={path}" for path in (*VERIFY, *RULES)], "verify": list(VERIFY), "night": []}


def has_room() -> bool:
    """Whether programs and their data have room in memory."""
    if not MEMORY.is_dir() or os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:
        return False
    return shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
