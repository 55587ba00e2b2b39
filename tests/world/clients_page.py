"""Write `docs/clients/tried.md`: what each client sends, and what it does at each answer of the table."""

from __future__ import annotations

import re
from typing import Any

from tests.tree import ROOT
from tests.world import page
from tests.world.clients import CLIENTS
from tests.world.play_clients import CASE_S_MAX, CASES, LONG, TOOL, ClientCell, ClientRow
from tests.world.play_steps import TITLES as STEP_TITLES
from tests.world.play_steps import StepCell, StepRow

PAGE = ROOT / "docs" / "clients" / "tried.md"
PAGES = {
    "Claude Code": "claude-code", "Codex": "codex", "gemini-cli": "gemini-cli", "opencode": "opencode",
    "qwen-code": "qwen-code", "cline": "cline", "Continue cn": "continue", "pi": "pi", "aider": "aider",
    "Copilot CLI": "copilot", "langchain": "langchain", "litellm": "litellm", "ai-sdk": "ai-sdk",
}  # fmt: skip
HEAD = f"""# Clients it was tried with

Each row is a real program that sent one prompt through a whole Tollkeeper, in each case of a table.
`make world` runs these programs and writes this page. In all cases the [journal of calls](../calls.md) had a row
for each request with a key, and refused requests cost nothing.

A cell states the number of requests that a client sent, their time in seconds, and the client's end:

- **shown**: the refusal could be read, word for word; **silent**: it could not;
- **exit 1**: the client's exit status; **goes on**: it was stopped {CASE_S_MAX:.0f} seconds after its first request.

In the last six cases the upstream failed as its vendor does. In the earlier cases Tollkeeper itself refuses,
since a budget of money or a tenant's tokens are spent; `retry_after_max_s` limits `Retry-After` in two of them.
[What to set](../budgets.md#how-a-spent-amount-is-told) follows from these results.

"""
SENT = ("Client", "API", "Requests", "Its maximum", "Streams", "Asks for use", "Names its session")
AGENTS, SDKS = "## Coding agents", "## SDKs and frameworks"
SENDS = "## What they send"
STEPPING = "## Budgets with steps"
STEPS_HEAD = """Each agent has a [budget with a step](../steps.md) at 80 % that replaces its model by a cheaper model of the
same vendor. The upstream seals its models' thoughts, and answers 400 to a seal of another model, as vendors do.
One session begins before the step and goes on after it, others begin later. **asked** and **cheaper** are the
models that the upstream got; a refusal ends with the words *begin a new session*. Calls of gemini-cli and of
opencode by chat contain no seals here. gemini-cli names no session, so each of its calls is judged alone.
"""
TURNED = ("Client", "A tool is asked for", "60 kB are said")
TURNING = "## Tools and long prompts"
TURNS_HEAD = """In one case the model asks for a tool, which the client runs. In the other 60 kB are sent at once. A cell states the
longest request, and the sum of tokens that the upstream reported; the rows of these calls have the same sum.
**goes on**: the client was stopped after two minutes.
"""
TIME, STOPPED = re.compile(r" in \d+ s| of up to .*? tokens"), re.compile(r"^\d+.*goes on")


def write(rows: list[ClientRow], stepped: list[StepRow]) -> None:
    """Write the page with these rows, in place of earlier ones of the same clients."""
    kept = _kept()
    for row in stepped:
        kept[STEPPING][row.name] = _steps_line(row)
    for row in rows:
        if {case.title for case in CASES} <= {cell.title for cell in row.cells}:
            kept[SENDS][row.name] = _sent_line(row)
            kept[AGENTS if row.agent else SDKS][row.name] = _line(row)
        kept[TURNING][row.name] = _turns_line(row)
    titles = [case.title for case in CASES if case.title != "healthy"]
    parts = [HEAD + AGENTS, _table(("Client", *titles), kept[AGENTS])]
    parts += [SDKS, _table(("Client", *titles), kept[SDKS]), SENDS, _table(SENT, kept[SENDS])]
    parts += [TURNING, TURNS_HEAD, _table(TURNED, kept[TURNING])]
    parts += [STEPPING, STEPS_HEAD, _table(("Client", *STEP_TITLES), kept[STEPPING])]
    PAGE.write_text("\n\n".join(parts) + "\n")


def differences(row: ClientRow) -> list[str]:
    """Return the cells of a row that differ from those that the page has of its client."""
    kept, part = _kept(), AGENTS if row.agent else SDKS
    if row.name not in kept[SENDS]:
        return ["not on the page"]
    titles = (*(case.title for case in CASES if case.title != "healthy"), *SENT[1:], *TURNED[1:])
    old_lines = [kept[one][row.name] for one in (part, SENDS, TURNING)]
    new_lines = [_line(row), _sent_line(row), _turns_line(row)]
    was, now = (
        [one for line in lines for one in line.strip("| ").split(" | ")[1:]]
        for lines in (old_lines, new_lines)
    )
    return [
        f"{title}: {old} → {new}"
        for title, old, new in zip(titles, was, now, strict=True)
        if _plain(old) != _plain(new)
    ]


def _plain(cell: str) -> str:
    """Return a cell without times, sizes, and how far a client came that was stopped."""
    return STOPPED.sub("goes on", TIME.sub("", cell))


def counts() -> dict[str, int]:
    """Return how many cells the page has of each client."""
    kept = _kept().values()
    return {name: sum(part.get(name, "").count(" | ") for part in kept) for name in CLIENTS}


def _kept() -> dict[str, dict[str, str]]:
    """Return the lines that the page has, by part and name."""
    kept: dict[str, dict[str, str]] = {part: {} for part in (AGENTS, SDKS, SENDS, TURNING, STEPPING)}
    part = ""
    for line in PAGE.read_text().splitlines() if PAGE.is_file() else ():
        part = line if line in kept else part
        if part and line.startswith("| **"):
            kept[part][line.split("**")[1]] = line
    return kept


def _table(heads: tuple[str, ...], lines: dict[str, str]) -> str:
    ordered = [lines[name] for name in CLIENTS if name in lines]
    return page.table(heads, ordered).rstrip("\n")


def _named(row: ClientRow) -> str:
    page = PAGES.get(row.name)
    return f"**{row.name}** {row.version}" + (f", [page]({page}.md)" if page else "")


def _line(row: ClientRow) -> str:
    streams = bool(row.sends["streamed"])
    cells = [_fact(cell, streams=streams) for cell in row.cells[1 : len(CASES)]]
    return f"| {' | '.join((f'{_named(row)}, {row.date}', *cells))} |"


def _turns_line(row: ClientRow) -> str:
    cells = {cell.title: cell for cell in row.cells}
    tool, long = cells[TOOL], cells[LONG]
    asked = f"`{tool.tool}`, {_size(tool)}" if tool.tool else "offers none that reads"
    facts = [
        ", ".join(filter(None, (fact, cell.text and "answered", _end(cell))))
        for fact, cell in ((asked, tool), (_size(long), long))
    ]
    return f"| {' | '.join((f'{_named(row)}, {row.date}', *facts))} |"


def _steps_line(row: StepRow) -> str:
    cells = [_step_fact(row, cell) for cell in row.cells]
    name = f"**{row.name}** {row.version}, {row.date}: {row.asked}, {row.substitute}"
    return f"| {' | '.join((name, *cells))} |"


def _step_fact(row: StepRow, cell: StepCell) -> str:
    """Return which models a run reached, or how it was refused and whether the client showed that."""
    names = {row.asked: "asked", row.substitute: "cheaper"}
    models = ", ".join(dict.fromkeys(names.get(model, model) for model in cell.models))
    refused = cell.sentence and f"{cell.statuses[-1]}, {'shown' if cell.shown else 'silent'}"
    wrong = "" if cell.answered or cell.sentence else "WRONG: no answer"
    end = "goes on" if cell.code is None else "" if cell.code == 0 else f"exit {cell.code}"
    return ", ".join(filter(None, (models, refused, wrong, end)))


def _size(cell: ClientCell) -> str:
    requests = f"{cell.requests} requests" if cell.requests > 1 else "1 request"
    return f"{requests} of up to {cell.bytes / 1_000:,.0f} kB, {cell.input:,} tokens"


def _end(cell: ClientCell) -> str:
    end = "goes on" if cell.code is None else f"exit {cell.code}"
    return ", ".join(filter(None, (end, cell.wrong and f"WRONG: {cell.wrong}")))


def _fact(cell: ClientCell, *, streams: bool) -> str:
    """Return what came of a case, in a few words."""
    if "stream" in cell.title.removeprefix("upstream") and not streams:
        return "asks for no stream"
    spent = f"{cell.requests} in {cell.seconds:.0f} s" if cell.requests > 1 else str(cell.requests)
    shown = "shown" if cell.shown else "silent"
    if cell.title in {"stream cut", "stream ends early"}:
        shown = ""
    return ", ".join(filter(None, (spent, shown, _end(cell))))


def _sent_line(row: ClientRow) -> str:
    said: dict[str, Any] = row.sends
    healthy = row.cells[0]
    maxima = ", ".join(f"{one:,}" for one in said["maxima"]) or "none"
    paths = ", ".join(f"`{one.partition(' ')[2]}`" for one in said["paths"])
    sessions = ", ".join(f"`{one}`" for one in said["sessions"]) or "no"
    words = (
        _named(row), paths, str(healthy.requests), maxima, "yes" if said["streamed"] else "no",
        "yes" if said["usage"] else "no", sessions,
    )  # fmt: skip
    return f"| {' | '.join(words)} |"
