"""How far each contender passes its limit when calls arrive at one instant, and what it forgets when killed.

All have a limit worth `--worth` calls. First `--calls` connections are opened, then each sends its call:
what is admitted beyond the limit passed it. Then, anew, half of the limit's worth is called at once. As soon
as all are answered, the gateway is killed (SIGKILL) and comes back, and calls follow one after the other up
to the first refusal: what is admitted beyond the limit was forgotten. Their Redis, where they have one, goes
on. Counts, no times.
Usage: python -m tests.bench.admitted [--calls 500] [--worth 20] [--rounds 3] [--litellm] [--page PAGE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.limited import COST_NANO, DELAY_S, INPUT, KINDS, OUTPUT, Kind, Limited, demo_upstream, kill
from tests.bench.machine import BenchError, Placement, install_tools
from tests.bench.page import PAGE, publish
from tests.bench.stage import OUT, Stage, say

ANSWER_S_MAX = 180.0
OK, REFUSED = 200, 429


@dataclass(frozen=True, slots=True)
class Round:
    """Calls, by contender: `admitted` of those that came together; `forgotten` of those `answered` before the
    kill; `failed`, neither answered nor refused, of both.
    """

    contender: str
    admitted: int
    answered: int
    forgotten: int
    failed: int


def main() -> int:
    """Measure each contender; 0 if all asked for were, and no call failed."""
    options = _options()
    OUT.mkdir(parents=True, exist_ok=True)
    wanted = [one for one in options.only.split(",") if one] or [
        one for one in KINDS if one != "litellm" or options.litellm
    ]
    rounds: list[Round] = []
    missing: dict[str, str] = {}
    try:
        if unknown := sorted(set(wanted) - set(KINDS)):
            raise BenchError(f"unknown contender {', '.join(unknown)}; known: {', '.join(KINDS)}")
        install_tools(say)
        with upstream() as asked:
            for number in range(1, options.rounds + 1):
                for name in [one for one in wanted if one not in missing]:
                    say(f"round {number}/{options.rounds}  {name} …")
                    try:
                        rounds.append(measure(asked, name, KINDS[name], options.calls, options.worth))
                        say(f"  {asdict(rounds[-1])}")
                    except (BenchError, OSError) as error:
                        missing[name] = str(error)
                        say(f"  left out: {error}")
    except BenchError as error:
        say(f"admitted: {error}")
        return 1
    found = as_markdown(rounds, missing, options.calls, options.worth)
    (OUT / "admitted.json").write_text(json.dumps([asdict(one) for one in rounds], indent=2) + "\n")
    (OUT / "admitted.md").write_text(found)
    print(found)
    if missing or any(one.failed for one in rounds):
        return 1
    if options.page and not options.only:
        publish(options.page, "admitted", found)
    return 0


@contextlib.contextmanager
def upstream() -> Iterator[Stage]:
    """The demo upstream that all contenders of a run ask."""
    with stage(None) as asked:
        demo_upstream(asked, asked.folder / "upstream")
        yield asked


@contextlib.contextmanager
def stage(asked: Stage | None) -> Iterator[Stage]:
    """Where the programs of one half run; they ask the same upstream."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-admitted-") as folder:
        Path(folder).chmod(0o755)
        found = Stage(Path(folder), Placement.of_this_machine(), say)
        found.upstream_port = asked.upstream_port if asked else 0
        try:
            yield found
        finally:
            found.stop()


def measure(asked: Stage, name: str, kind: Kind, calls: int, worth: int) -> Round:
    """One round of one contender, which is started anew for each half."""
    with stage(asked) as mine:
        together = Counter(asyncio.run(burst(kind.start(mine, worth), calls)))
    with stage(asked) as mine:
        before, after = killed(kind.start(mine, worth), worth // 2, worth)
    failed = sum((together + before + after).values()) - sum(
        each[status] for each in (together, before, after) for status in (OK, REFUSED)
    )
    return Round(name, together[OK], before[OK], max(0, before[OK] + after[OK] - worth), failed)


def killed(limited: Limited, calls: int, worth: int) -> tuple[Counter[int], Counter[int]]:
    """Statuses of calls at once, and of those that come one by one after the gateway was killed."""
    before = Counter(asyncio.run(burst(limited, calls)))
    kill(limited.pids)
    limited.again()
    return before, Counter(asyncio.run(until_refused(limited, 2 * worth)))


async def burst(limited: Limited, calls: int) -> list[int]:
    """Statuses of calls that are all sent before any is answered; 0 of one that broke."""
    lines = [await asyncio.open_connection("127.0.0.1", limited.port) for _ in range(calls)]
    for _, writer in lines:
        writer.write(limited.message)
    return await asyncio.gather(*(_status(reader, writer) for reader, writer in lines))


async def until_refused(limited: Limited, calls: int) -> list[int]:
    """Statuses of calls one after the other, up to the first that is not answered."""
    found: list[int] = []
    while len(found) < calls and (not found or found[-1] == OK):
        line = await asyncio.open_connection("127.0.0.1", limited.port)
        found.append(await _status(*line, limited.message))
    return found


async def _status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes = b"") -> int:
    writer.write(message)
    try:
        answer = await asyncio.wait_for(reader.read(), ANSWER_S_MAX)
    except (OSError, TimeoutError):
        return 0
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0
    return 0 if status == OK and b'"usage"' not in body else status


def as_markdown(rounds: Sequence[Round], missing: dict[str, str], calls: int, worth: int) -> str:
    """The table, least and most of the rounds; what was measured."""
    times = max(Counter(one.contender for one in rounds).values(), default=0)
    head = (
        f"{calls} calls at one instant against a limit worth {worth}. Each call states a maximum, uses "
        f"{INPUT} + {OUTPUT} tokens ({_money(1)}) and is answered by the same demo upstream after "
        f"{DELAY_S:g} s. *Forgotten* is of calls that were answered in full when the gateway was killed "
        f"(SIGKILL); their Redis goes on. Who admits less than the limit is worth holds more than calls turn "
        f"out to use, until they end. Least and most of all rounds ({times}), one worker each."
    )
    lines = [
        "| contender | limit | admitted | passed by | forgotten after a kill |",
        "|---|---|---:|---:|---:|",
    ]
    for name, kind in KINDS.items():
        of = [one for one in rounds if one.contender == name]
        if not of:
            continue
        admitted = [one.admitted for one in of]
        passed = max(0, max(admitted) - worth)
        lost, answered = [one.forgotten for one in of], max(one.answered for one in of)
        money = f", {_money(max(lost))}" if kind.in_money and any(lost) else ""
        cells = (
            kind.title, kind.limit, _span(admitted), _calls(passed, in_money=kind.in_money),
            f"{_span(lost)} of {answered}{money}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {KINDS[one.contender].title}: **{one.failed} calls failed**" for one in rounds if one.failed]
    notes += [f"- left out: {KINDS[name].title}: {why}" for name, why in missing.items()]
    return "\n".join([head, "", *lines, "", *notes]) + "\n"


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _calls(count: int, *, in_money: bool) -> str:
    return f"{count} calls, {_money(count)}" if count and in_money else f"{count} calls" if count else "0"


def _money(calls: int) -> str:
    return f"{calls * COST_NANO / 10**9:.6f} USD"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="admitted")
    parser.add_argument("--calls", type=int, default=500, help="at one instant")
    parser.add_argument("--worth", type=int, default=20, help="calls that the limit is worth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="comma-separated contenders: " + ", ".join(KINDS))
    parser.add_argument("--litellm", action="store_true", help="LiteLLM too (a large installation)")
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
