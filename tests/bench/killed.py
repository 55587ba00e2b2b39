"""Holds whose gateway is killed: `python -m tests.bench.killed [KILLS, 1000 if it is not said]`.

A whole `tollkeeper up`. Each round takes holds, has half of them settled at once, and kills the worker with
SIGKILL meanwhile; then every hold is settled until that is acknowledged, twice. In the end it prints how many
were lost (charged nothing), and how many were charged more than once.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.journey.stack import Stack
from tests.journey.test_holds import Holder, stack_workers, until_settled
from tests.waiting import wait_until

KILLS, HOLDS, PAUSE_S = 1_000, 6, 0.002
ROWS_S_MAX = 600


def main(kills: int) -> int:
    """Kill as often, and count."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-killed-") as folder:
        stack = Stack(Path(folder))
        try:
            taken, charged = _killed(stack, kills)
        finally:
            stack.stop()
    lost = [id_ for id_ in taken if not charged[id_]]
    doubled = [id_ for id_, times in charged.items() if times > 1]
    print(
        f"killed {kills} times: {len(taken)} holds, {len(lost)} lost, {len(doubled)} doubled; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    return bool(lost or doubled)


def _killed(stack: Stack, kills: int) -> tuple[list[str], Counter[str]]:
    holder, taken = Holder(stack, 10**9), list[str]()
    with ThreadPoolExecutor(HOLDS) as pool:
        for number in range(kills):
            ids = [holder.take(ttl_s=3600)["id"] for _ in range(HOLDS)]
            going = [pool.submit(until_settled, holder, id_) for id_ in ids[: HOLDS // 2]]
            time.sleep(PAUSE_S * (number % 5))
            workers = stack_workers(stack)
            os.kill(workers[number % len(workers)], signal.SIGKILL)
            for one in [*going, *(pool.submit(until_settled, holder, id_) for id_ in ids)]:
                one.result()
            taken += ids
    wait_until(lambda: len(_charges(stack, holder)) >= len(taken), within_s=ROWS_S_MAX)
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    return taken, Counter(_charges(stack, holder))


def _charges(stack: Stack, holder: Holder) -> list[str]:
    found, cursor = list[str](), ""
    while True:
        path = f"/token-ledger?tenant_id={holder.tenant}&transaction_type=consume&limit=1000"
        page = stack.admin("GET", f"{path}&cursor={cursor}" if cursor else path)[1]
        found += [row["request_id"] for row in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            return found


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else KILLS))
