"""The long form: random histories until the time is up, `python -m tests.model --seconds 900`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from persistence.schema import migrate
from tests.bench.flush import postgres
from tests.conftest import ValkeyServer
from tests.model.test_whole import run

EXAMPLES_A_SEED = 10


def main() -> int:
    """Print each seed that held; stop at the first that does not."""
    parser = argparse.ArgumentParser(prog="tests.model", description=__doc__)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    parser.add_argument("--no-shrink", action="store_true", help="show the first history that fails as it is")
    options = parser.parse_args()
    ends, number, histories = time.monotonic() + options.seconds, options.seed, 0
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        migrate.upgrade(url)
        server = ValkeyServer(Path(folder), "--appendonly", "yes", "--appendfsync", "always")
        server.start()
        try:
            while time.monotonic() < ends:
                run(server, url, number, EXAMPLES_A_SEED, shrink=not options.no_shrink)
                histories += EXAMPLES_A_SEED
                print(f"SEED={number}: held; {histories} histories", flush=True)
                number += 1
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
