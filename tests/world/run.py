"""Play real programs behind Tollkeeper, compare their counters with the ledger, write the page: `make world`.

Usage: python -m tests.world.run [--programs NAME,…] [--fresh] [--turns] [--drawn N] [--seed N] [--record]
       python -m tests.world.run --newest [--programs NAME,…]: newest releases, compared with the pages
       python -m tests.world.run --list, or --count

A row is a program: an engine, a client, or one of `meetings.py`. What was played is kept in build/world; a
run that was interrupted goes on with the programs that have no row yet. A page keeps the rows of programs
that are not named. Exit status 1 where a row differs from what its program counted, and is not flagged, or
has less than what passed. With --record the answers go to tests/recorded/world.txt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests.journey.stack import Stack
from tests.tree import ROOT
from tests.waiting import wait_until
from tests.world import clients_page, meetings_page, newest, page
from tests.world.calls import OK, Reply, ask, cached, read, written
from tests.world.clients import CLIENTS
from tests.world.meetings import MEETINGS, play_meetings, wrong_cells
from tests.world.play_clients import CASES, TURNS, ClientCell, ClientRow, play_clients
from tests.world.play_steps import STEPPED, play_steps
from tests.world.programs import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    PLACE,
    PROGRAMS,
    RERANK,
    SCORE,
    Counted,
    Program,
    Running,
    installed,
    running,
)
from tests.world.questions import ABORTED, ADAPTER, CACHED, CHOICES, DRAWN, MAXIMA, QUESTIONS, Question, drawn

SEED = 20_261
ROW_S_MAX = 1_500.0
SETTLED_S_MAX = 90.0
STRICT_TOKENS = 4_000
RECORDED = ROOT / "tests" / "recorded" / "world.txt"
# Clients whose types of requests the table of costs is drawn from.
SDKS = ("openai", "anthropic", "google-genai")
RIGHT, FLAGGED, REFUSED, WRONG, SAID = "right", "flagged", "refused", "WRONG", "as reported"


@dataclass
class Cell:
    """One question's fact, and whether the ledger has it right."""

    column: str
    title: str
    fact: str
    verdict: str


@dataclass
class Row:
    """All of one program: its cells, and what became of the drawn calls."""

    name: str
    version: str
    file: str
    date: str
    cells: list[Cell] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Play, write, and say what is wrong."""
    parser = argparse.ArgumentParser(prog="world")
    parser.add_argument("--programs", default="", help="names, separated by commas; all without")
    parser.add_argument("--fresh", action="store_true", help="play rows again that are there")
    parser.add_argument("--drawn", type=int, default=DRAWN, help="how many drawn calls a program has")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--record", action="store_true", help="write the answers that tests use")
    parser.add_argument("--turns", action="store_true", help="of clients: tools and long prompts alone")
    parser.add_argument("--newest", action="store_true", help="newest releases beside the pinned ones")
    parser.add_argument("--list", action="store_true", help="the programs there are")
    parser.add_argument("--count", action="store_true", help="how many cells the pages have")
    options = parser.parse_args()
    if options.count:
        counts = {name: len(page.cells(line)) for name, line in page.lines().items()}
        counts |= clients_page.counts() | {name: len(line) for name, line in meetings_page.lines().items()}
        print(
            *(f"{count:4} {name}" for name, count in counts.items()),
            f"{sum(counts.values()):4} in all",
            sep="\n",
        )
        return 0
    if options.list:
        print(*(f"{one.name}: {', '.join(one.packages)}" for one in PROGRAMS.values()), sep="\n")
        print(*(f"{one.name}: {one.package}" for one in CLIENTS.values()), sep="\n")
        print(*(f"{one.name}: {', '.join(one.packages)}" for one in MEETINGS.values()), sep="\n")
        return 0
    names = [one for one in options.programs.split(",") if one] or [*PROGRAMS, *CLIENTS, *MEETINGS]
    if unknown := set(names) - PROGRAMS.keys() - CLIENTS.keys() - MEETINGS.keys():
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    if options.newest:
        return newest.report(
            [one for one in names if one not in MEETINGS], partial(_compared_with_page, options=options)
        )
    if clients := [one for one in names if one in CLIENTS]:
        cases = TURNS if options.turns else (*CASES, *TURNS)
        played = play_clients([CLIENTS[one] for one in clients], fresh=options.fresh, cases=cases)
        stepped = play_steps([name for name in STEPPED if name in clients], fresh=options.fresh)
        clients_page.write(played, stepped)
        print(*(f"{row.name}: {cell.title}: {cell.wrong}" for row, cell in _wrong_cells(played)), sep="\n")
        if clients == names:
            return 1 if _wrong_cells(played) else 0
    ill: list[str] = []
    if meetings := [one for one in names if one in MEETINGS]:
        met = play_meetings(meetings, fresh=options.fresh)
        meetings_page.write(met)
        print(*(ill := wrong_cells(met)), sep="\n")
        if meetings == names:
            return 1 if ill else 0
    rows = [_row(PROGRAMS[one], options) for one in names if one in PROGRAMS]
    page.write(rows)
    for row in rows:
        print(f"{row.name}: {row.drawn}", *row.wrong, sep="\n")
    return 1 if ill or any(row.wrong for row in rows) else 0


def _compared_with_page(one: newest.Newest, options: argparse.Namespace) -> newest.Played:
    """Return what is wrong in the row of a newest release, and what differs from the page."""
    if isinstance(one, Program):
        newest.remove_others(one)
        row = _row(one, options)
        return row.wrong, page.differences(row)
    (played,) = play_clients([one], fresh=options.fresh)
    wrong = [f"{cell.title}: {cell.wrong}" for _, cell in _wrong_cells([played])]
    return wrong, clients_page.differences(played) + _news(one)


def _news(client: newest.Newest) -> list[str]:
    """Return what differs of an SDK from the table of costs, and from the list of operations."""
    python = client.place / "venv" / "bin" / "python"
    if client.name not in SDKS:
        return []
    lines = list[str]()
    for program in ("costs.py", "operations.py"):
        words = [python, ROOT / "deploy" / program, "--check"]
        lines += subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout.splitlines()
    return lines


def _row(program: Program, options: argparse.Namespace) -> Row:
    """Return the row of a program, played where it is not there in this version."""
    kept = program.place / "row.json"
    if kept.is_file() and not (options.fresh or options.record):
        said = json.loads(kept.read_text())
        row = Row(**said | {"cells": [Cell(**cell) for cell in said["cells"]]})
        if row.version == program.version:
            return row
    print(f"{program.name}: playing", file=sys.stderr)
    kept.unlink(missing_ok=True)
    installed(program)
    row = _play(program, options)
    kept.write_text(json.dumps(asdict(row)))
    return row


def _wrong_cells(rows: list[ClientRow]) -> list[tuple[ClientRow, ClientCell]]:
    return [(row, cell) for row in rows for cell in row.cells if cell.wrong]


def _play(program: Program, options: argparse.Namespace) -> Row:
    with running(program) as started, tempfile.TemporaryDirectory(dir=PLACE) as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(_configuration(program)))
        environ = {program.variable: started.url, **dict(program.environ)}
        environ |= {name.upper().replace("-", "_"): value for name, value in started.headers.items()}
        environ["LITELLM_API_KEY"] = environ.get("LITELLM_MASTER_KEY", "")
        stack = Stack(Path(folder, "data"), "--config", str(config), **environ)
        try:
            _add_service(stack, RERANK)
            return _World(started, stack, options).play()
        finally:
            stack.stop()


def _add_service(stack: Stack, key: str) -> None:
    _, body = stack.admin("GET", "/business-models")
    models = {one["name"]: one["id"] for one in (body or {})["items"]}
    fields = {"credits": 0, "service_type": "Pay-As-You-Go", "business_model_id": models["Subscription"]}
    stack.make("services", name=key, key=key, **fields)


def _configuration(program: Program) -> dict[str, Any]:
    """Return the shipped configuration, and one route that gives up an answer whose client left."""
    said: dict[str, Any] = yaml.safe_load((ROOT / f"deploy/providers/{program.file}.yaml").read_text())
    said["include_default_routes"] = True
    name = program.stops.split("/")[2]
    route = {"path": program.stops, "upstream": program.file, "service": name, "family": "openai"}
    route |= {"meter": f"openai_{name}", "on_disconnect": "abort"}
    said["routes"] = [*said.get("routes", ()), route]
    return said


class _World:
    """One program, a Tollkeeper before it, and its callers by the admission of their plan."""

    def __init__(self, program: Running, stack: Stack, options: argparse.Namespace) -> None:
        self._program, self._stack, self._options = program, stack, options
        self._sent = program.headers
        self._own_key = dict(program.program.environ).get("LITELLM_MASTER_KEY", "none")
        self._keys = {
            plan: stack.tenant(total, admission=plan)[1]
            for plan, total in (("available", 10_000_000), ("strict", STRICT_TOKENS))
        }
        made = program.program
        if ADAPTER in made.can:
            owner, _ = stack.tenant(10_000_000)
            key = stack.make("api-keys", tenant_id=owner, models=[f"{made.file}/{ADAPTER}"])
            self._keys[ADAPTER] = key["key"]
            price = {"currency": "USD", "input": "1", "output": "2", "effective_from": "2026-01-01T00:00:00Z"}
            stack.make("prices", model=f"{made.file}/{ADAPTER}", **price)
        self._row = Row(made.name, made.version, made.file, f"{datetime.now(UTC):%Y-%m-%d}")
        self._until = time.monotonic() + ROW_S_MAX
        self._recorded: list[str] = []

    def play(self) -> Row:
        """Ask all that the program has, then what is drawn."""
        made = self._program.program
        for question in QUESTIONS:
            if question.api in made.apis and question.needs in {"", *made.can}:
                self._row.cells.append(self._asked(question))
        counts: Counter[str] = Counter()
        for question in drawn(self._options.seed, made.apis, self._options.drawn):
            if time.monotonic() > self._until:
                break
            verdict, why, _ = self._compared(question)
            counts[verdict] += 1
            if verdict == WRONG:
                self._row.wrong.append(f"{question.title} {json.dumps(question.body)[:300]}: {why}")
        self._row.drawn = dict(counts)
        if self._options.record:
            _record(made, self._recorded)
        return self._row

    def _asked(self, question: Question) -> Cell:
        """What the program says by itself, and what the ledger makes of the same call."""
        own, key = self._model(question).partition("/")[2], self._own_key
        if question.column == CACHED:
            ask(self._program.url, key, own, question, self._sent)
        before = self._still()
        said = ask(self._program.url, key, own, question, self._sent)
        made = self._made(question, before)
        silent = question.column == CACHED and made.cached and not cached(said.reports[-1])
        if question.record and said.status in OK and not silent:
            row, body = self._row, json.dumps({"model": own} | question.body)
            head = f"@@ {row.name} {row.version}, {row.date} | {row.file} | {question.api} | {body}"
            passed = said.passed if said.streamed else made.output
            counts = f"{made.input} {made.output} {made.cached} {passed}"
            self._recorded.append(f"{head} | {counts}\n{said.body.decode().rstrip()}\n\n")
        verdict, why, fact = self._compared(question)
        if verdict == WRONG:
            self._row.wrong.append(f"{question.title}: {why}")
        return Cell(question.column, question.title, _fact(question, said, made) + fact, verdict)

    def _compared(self, question: Question) -> tuple[str, str, str]:
        """Ask through the gateway; the verdict on its row, why, and a fact of it."""
        before, model = self._program.counted(), self._model(question)
        url, key = self._stack.gateway_url, self._keys[question.plan]
        with ThreadPoolExecutor(question.times) as threads:
            futures = [threads.submit(ask, url, key, model, question) for _ in range(question.times)]
            told = [one.result() for one in futures]
        rows = [wait_until(partial(self._found, one), SETTLED_S_MAX) for one in told]
        if self._program.program.characters and (wanted := characters(question) * question.times):
            return judged_by_report(told, rows, wanted)
        return judged(question, told, rows, self._made(question, before))

    def _model(self, question: Question) -> str:
        """Return a caller's name of the model that answers a question."""
        made = self._program.program
        if question.model:
            return f"{made.file}/{question.model}"
        return f"{made.file}/{made.rank_model}" if made.rank_model and question.api == RERANK else made.model

    def _made(self, question: Question, before: Counted) -> Counted:
        """Return what was counted since, a prompt once for all choices of it."""
        made, times = self._still().since(before), 1
        if self._program.program.each_choice and question.api in {CHAT, COMPLETIONS}:
            times = question.body.get("n") or 1
        return made._replace(input=made.input // times)

    def _found(self, told: Reply) -> dict[str, Any] | None:
        _, body = self._stack.admin("GET", f"/calls?request_id={told.request_id}")
        items = (body or {}).get("items") or [None]
        found: dict[str, Any] | None = items[0]
        return found

    def _still(self) -> Counted:
        """The counters once they stand still, as they do a moment after a call."""
        seen: list[Counted] = [self._program.counted()]

        def still() -> Counted | None:
            seen.append(self._program.counted())
            return seen[-1] if len(seen) > 3 and len(set(seen[-3:])) == 1 else None

        found: Counted = wait_until(still, SETTLED_S_MAX)
        return found


def judged(
    question: Question, told: list[Reply], rows: list[dict[str, Any]], made: Counted
) -> tuple[str, str, str]:
    """Return the verdict on the rows of calls that an engine counted together, why, and a fact of them.

    A row without a flag is the engine's count to the token; with one it is at least what passed.
    """
    uses = [row["usage"] or {} for row in rows]
    read = sum(use.get(kind, 0) for use in uses for kind in ("input", "cache_read", "cache_write"))
    output = sum(use.get("output", 0) for use in uses)
    why = f"engine {made.input} ({made.cached} cached) + {made.output}, rows {read} + {output}"
    cost = sum(Decimal(row["cost"] or 0) for row in rows)
    if question.model and cost != Decimal(made.input + 2 * made.output) / 10**6:
        return WRONG, f"{why} for {cost} USD", ""
    if all(one.status not in OK for one in told):
        return (REFUSED if not read + output else WRONG), why, ""
    if not any(row["estimated"] for row in rows):
        refused = [one.status for one in told if one.status not in OK]
        fact = f", {len(refused)} of {len(told)} refused with {refused[0]}" if refused else ""
        return (RIGHT if (read, output) == (made.input, made.output) else WRONG), why, fact
    passed = sum(one.passed for one in told) if all(one.streamed for one in told) else made.output
    fact = f", row {output} of {made.output}" if question.column in {ABORTED, CHOICES} else ""
    return (FLAGGED if output >= passed else WRONG), f"{why}, {passed} passed", fact


def characters(question: Question) -> int:
    """Return how many characters a call has that a model of embeddings or rankings reads."""
    body = question.body
    texts = body.get("documents", body.get("input", ""))
    texts = [texts] if isinstance(texts, str) else texts
    return sum(len(text) + len(body.get("query", "")) for text in texts)


def judged_by_report(told: list[Reply], rows: list[dict[str, Any]], wanted: int) -> tuple[str, str, str]:
    """Return the verdict on rows of a program that reports characters: they have these."""
    charged = sum((row["usage"] or {}).get("input", 0) for row in rows)
    why = f"{wanted} characters, rows {charged}"
    if all(one.status not in OK for one in told):
        return (REFUSED if not charged else WRONG), why, ""
    return (SAID if charged == wanted and not any(row["estimated"] for row in rows) else WRONG), why, ""


def _fact(question: Question, said: Reply, made: Counted) -> str:
    """Return what an answer of the program itself says, in a few words."""
    if said.status not in OK:
        return f"{said.status} {f'`{said.error}`' if said.error else ''}".strip()
    if question.leaves is not None:
        return f"made {made.output} after {said.passed} passed"
    if not said.reports:
        return "no report"
    usage = said.reports[-1]
    if question.api in {EMBEDDINGS, RERANK, SCORE}:
        return "in the answer" if read(usage) == made.input else f"{read(usage)} for {made.input} tokens"
    if question.column == CACHED:
        return f"{cached(usage)} of {made.input} said"
    if question.column == CHOICES:
        reported = sum(map(written, said.reports))
        if said.choices == 1 and reported == made.output:
            return "one choice made"
        last = written(usage)  # of all, where each chunk has one too
        return "the sum" if made.output in {reported, last} else f"{reported} of {made.output} made"
    if said.streamed:
        marked = b"[DONE]" in said.body or question.api not in {CHAT, COMPLETIONS}
        ends = "" if marked else ", no `[DONE]`"
        return f"in {said.places[-1]}{ends}"
    if written(usage) != made.output:
        return f"{written(usage)} of {made.output} said"
    return f"{made.output} made" if question.column == MAXIMA else "in the answer"


def _record(program: Program, answers: list[str]) -> None:
    """Put the answers of a program in place of its earlier ones."""
    kept = RECORDED.read_text() if RECORDED.is_file() else ""
    others = [one for one in kept.split("@@ ")[1:] if not one.startswith(f"{program.name} ")]
    RECORDED.write_text("".join([*(f"@@ {one}" for one in others), *answers]))


if __name__ == "__main__":
    sys.exit(main())
