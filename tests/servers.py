"""A PostgreSQL that stays between runs of single test files.

`make servers` starts it, `make servers-stop` ends it. It belongs to this checkout and to the files of its
schema: a run whose files differ does not use it. Each process of tests has databases of its own, and drops
those of processes that have ended. Data is in memory where that has room. A restart of the machine leaves
nothing of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

STATE: Final = ROOT / "build" / "servers.json"
# The migrated database from which others are cloned.
TEMPLATE: Final = "template_kept"
# Names of the databases of a process of tests, and of what is kept for its replicas, with its id.
_OWN: Final = re.compile(r"(?:template_|shared_|admin|standby_|t|m)(\d+)(?:_\d+)?")
START_S_MAX: Final = 60.0


def key_of(root: Path) -> str:
    """Return a hash of a checkout's place and of the files of its schema."""
    digest = hashlib.sha256(str(root).encode())
    for file in sorted((root / "persistence" / "schema").rglob("*.*")):
        if file.suffix != ".pyc":
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def kept(key: str, state: Path = STATE) -> str | None:
    """Return the URL of the server that was started with this key and still runs, else None."""
    stored = _stored(state)
    return str(stored["url"]) if stored.get("key") == key and _runs(stored) else None


def drop_left(url: str) -> None:
    """Drop the databases of processes of tests that have ended, and what is kept for their replicas."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as admin:
        for (name,) in admin.execute("select datname from pg_database").fetchall():
            own = _OWN.fullmatch(name)
            if own is not None and not Path(f"/proc/{own[1]}").exists():
                admin.execute(f"drop database if exists {name} with (force)".encode())
        for (slot,) in admin.execute(
            "select slot_name from pg_replication_slots where not active"
        ).fetchall():
            own = _OWN.fullmatch(slot)
            if own is not None and not Path(f"/proc/{own[1]}").exists():
                admin.execute("select pg_drop_replication_slot(%s)", [slot])


def start(state: Path = STATE) -> str:
    """Start a server that goes on behind this command, unless one that fits is there; return its URL."""
    key = key_of(ROOT)
    url = kept(key, state)
    if url is None:
        stop(state)
        words = [sys.executable, "-m", "tests.servers", "stay", "--state", str(state)]
        subprocess.Popen(words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
        wait_until(lambda: kept(key, state) is not None, START_S_MAX)
        url = kept(key, state)
    assert url is not None
    return url


def stop(state: Path = STATE) -> bool:
    """End the server that `start` started; return whether there was one."""
    stored = _stored(state)
    if not _runs(stored):
        return False
    os.kill(int(str(stored["pid"])), signal.SIGTERM)
    wait_until(lambda: not _runs(stored), HUNG_S)
    return True


def stay(state: Path) -> None:
    """Run a server until SIGTERM; write where it is once its template is migrated."""
    from persistence.schema import migrate
    from tests.conftest import postgres_bin, postgres_of
    from tests.databases import make_database
    from tests.suite import MEMORY, has_room

    tempfile.tempdir = str(MEMORY) if has_room() else None
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    key = key_of(ROOT)
    with postgres_of(postgres_bin()) as url:
        migrate.upgrade(make_database(url, TEMPLATE))
        state.parent.mkdir(exist_ok=True)
        written = state.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps({"key": key, "url": url, "pid": os.getpid()}))
        written.replace(state)
        signal.sigwait({signal.SIGTERM})


def _stored(state: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        stored = json.loads(state.read_text())
        if isinstance(stored, dict):
            return stored
    return {}


def _runs(stored: dict[str, object]) -> bool:
    """Return whether the process of a state runs `stay`: another process may have its id by now."""
    with suppress(OSError):
        return b"tests.servers\0stay" in Path(f"/proc/{stored.get('pid')}/cmdline").read_bytes()
    return False


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("tests.servers", description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=("start", "stop", "stay"))
    parser.add_argument("--state", type=Path, default=STATE)
    options = parser.parse_args()
    began = time.monotonic()
    if options.verb == "stay":
        stay(options.state)
    elif options.verb == "start":
        print(f"{start(options.state)}, after {time.monotonic() - began:.1f} s")
    else:
        print("It has ended." if stop(options.state) else "None runs.")


if __name__ == "__main__":
    main()
