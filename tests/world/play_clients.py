"""Play a client against the table of answers, before a whole Tollkeeper, and note what it sends and shows.

A client asks one thing in each case. A relay before Tollkeeper counts its requests; one behind it fails as a
vendor does. The journal of calls has a row for each request that came with a key; refused ones cost nothing.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.journey.stack import Stack
from tests.tree import ROOT
from tests.waiting import wait_until
from tests.world.clients import MODELS, PROMPT, Client, Seat, install_client, node_folder
from tests.world.programs import PLACE
from tests.world.relay import CUT, EVENT, POLITE, Fault, Relay, Request, event_sentence, relaying

# How long a client may go on behind its first request, in the table and in a turn; how long it takes to that.
CASE_S_MAX = 30.0
TURN_S_MAX = 120.0
BEGIN_S_MAX = 90.0
LOOK_S = 0.1
STOP_S_MAX = 10.0
# By so many letters of a sentence it is known in what a client shows.
SENTENCE_CHARS = 60
SETTLED_S_MAX = 60.0
UNKNOWN_KEY = "tk_" + "0" * 40
OPEN, DAY, DAY_402, SHORT, SHORT_402, TOTAL, TOKENS, MODEL, NOBODY = (
    "open", "day", "day-402", "short", "short-402", "total", "tokens", "model", "nobody",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One answer of the table: whose key is used, and how the upstream fails; or what is asked.

    With `tool` the model asks once for a tool that the client offers.
    """

    title: str
    account: str = OPEN
    fault: Fault | None = None
    prompt: str = PROMPT
    tool: bool = False
    seconds: float = CASE_S_MAX  # how long a client may go on behind its first request


CASES = (
    Case("healthy"),
    Case("401", NOBODY),
    Case("403 `model_not_allowed`", MODEL),
    Case("spent, 402", DAY_402),
    Case("spent, 402, told 1 s at most", SHORT_402),
    Case("spent, 429, resets tomorrow", DAY),
    Case("spent, 429, told 5 s at most", SHORT),
    Case("spent, 429, never resets", TOTAL),
    Case("tokens spent, 429", TOKENS),
    Case("upstream's 429, 2 s", fault=Fault(429, 2)),
    Case("upstream's 500", fault=Fault(500)),
    Case("upstream's 529 or 503", fault=Fault(529)),
    Case("stream cut", fault=Fault(end=CUT)),
    Case("stream ends early", fault=Fault(end=POLITE)),
    Case("error in the stream", fault=Fault(end=EVENT)),
)
TOOL, LONG = "asks for a tool", "60 kB"
TURNS = (
    Case(TOOL, tool=True, seconds=TURN_S_MAX),
    Case(LONG, prompt="The toll is paid at the gate. " * 2_000 + PROMPT, seconds=TURN_S_MAX),
)
TITLES = frozenset(case.title for case in (*CASES, *TURNS))
REFUSING = frozenset({DAY, DAY_402, SHORT, SHORT_402, TOTAL, TOKENS, MODEL})


@dataclass
class ClientCell:
    """What came of one case. `seconds` lie between first and last request; a `code` of None went on.

    `input` are the tokens that the upstream reported for all requests; `bytes` is the longest of them.
    """

    title: str
    requests: int
    seconds: float
    code: int | None
    shown: bool
    text: bool
    wrong: str = ""
    tail: str = ""
    tool: str = ""
    bytes: int = 0
    input: int = 0


@dataclass
class ClientRow:
    """All of one client: its cells, and what its requests say in the healthy case."""

    name: str
    version: str
    api: str
    agent: bool
    date: str
    sends: dict[str, Any] = field(default_factory=dict)
    cells: list[ClientCell] = field(default_factory=list)


class Accounts:
    """Organizations whose amounts are spent in each way, and keys of them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = self._stack = stack
        self._tenants = {OPEN: self._made({}), MODEL: 0}
        self.owner_id: int = stack.admin("GET", f"/tenants/{self._tenants[OPEN]}")[1]["organization_id"]
        self._tenants[MODEL] = self._tenants[OPEN]
        self._tenants[DAY] = self._made({}, "day")
        self._tenants[DAY_402] = self._made({"spent_status": 402}, "day")
        self._tenants[SHORT_402] = self._made({"spent_status": 402, "retry_after_max_s": 1}, "day")
        self._tenants[SHORT] = self._made({"retry_after_max_s": 5}, "day")
        self._tenants[TOTAL] = self._made({}, "total")
        self._tenants[TOKENS], key = stack.tenant(1_000, reset_interval="daily")
        self._spend(key)

    def _made(self, organization: dict[str, Any], interval: str = "") -> int:
        """Return a tenant of a new organization, whose budget of such an interval is spent."""
        stack = self._stack
        owner = stack.make("organizations", name=f"clients {time.monotonic_ns()}", **organization)["id"]
        plan = stack.make("token-plans", name=f"open {time.monotonic_ns()}", total_amount=None)["id"]
        tenant: int = stack.make("tenants", name="clients", organization_id=owner, plan_id=plan)["id"]
        if interval:
            said = {"organization_id": owner, "name": "research", "interval": interval}
            stack.make("budgets", unit="money", amount="0.01", **said)
            self._spend(stack.make("api-keys", tenant_id=tenant)["key"])
        return tenant

    def _spend(self, key: str) -> None:
        """Use up what a key may use: the demo's upstream reports so much for one call."""
        answer = self._stack.chat(key, "100000,100000", model="gpt-4o-mini")
        assert answer.status_code == 200, answer.text
        refused = lambda: self._stack.chat(key, model="gpt-4o-mini").status_code in {402, 429}  # noqa: E731  # one look
        wait_until(refused)

    def key_of(self, account: str) -> str:
        """Return a new key, or one that nobody has."""
        if account == NOBODY:
            return UNKNOWN_KEY
        models = {"models": ["text-embedding-3-small"]} if account == MODEL else {}
        made = self._stack.make("api-keys", tenant_id=self._tenants[account], **models)
        self._last = made["id"]
        return str(made["key"])

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return the journal's rows of the last key, once there are so many."""

        def found() -> list[dict[str, Any]] | None:
            _, body = self._stack.admin("GET", f"/calls?api_key_id={self._last}&limit=200")
            items: list[dict[str, Any]] = (body or {}).get("items") or []
            return items if len(items) >= count else None

        with suppress(AssertionError):
            said: list[dict[str, Any]] = wait_until(found, SETTLED_S_MAX)
            return said
        return []


@dataclass
class Place:
    """A whole Tollkeeper between two relays, and whose keys it knows."""

    accounts: Accounts
    front: Relay
    behind: Relay


@contextmanager
def _demo() -> Iterator[str]:
    """Run the demo upstream by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    demo = subprocess.Popen([sys.executable, "-m", "gateway", "demo-upstream", "--port", str(port)], cwd=ROOT)
    try:
        wait_until(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        demo.terminate()
        demo.wait(STOP_S_MAX)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@contextmanager
def place_of_clients() -> Iterator[Place]:
    """Run a Tollkeeper whose upstream is the demo's, behind a relay that can fail."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=PLACE)))
        behind = opened.enter_context(relaying(opened.enter_context(_demo())))
        stack = Stack(folder / "data", "--workers", "1", "--upstream", behind.url)
        opened.callback(stack.stop)
        front = opened.enter_context(relaying(stack.gateway_url))
        yield Place(Accounts(stack), front, behind)


def play_client(client: Client, place: Place, row: ClientRow, cases: tuple[Case, ...]) -> None:
    """Install a client, and ask by it in each of these cases that its row does not have."""
    install_client(client)
    cells = {cell.title: cell for cell in row.cells}
    for case in cases:
        if case.title in cells:
            continue
        cell, requests = _cell(client, case, place)
        cells[case.title] = cell
        print(f"  {client.name}, {case.title}: {cell}", flush=True)
        if case == CASES[0]:
            row.sends = _sends(requests)
        row.cells = [cells[one.title] for one in (*CASES, *TURNS) if one.title in cells]
        played(client).write_text(json.dumps(asdict(row)))


def _cell(client: Client, case: Case, place: Place) -> tuple[ClientCell, list[Request]]:
    key = place.accounts.key_of(case.account)
    place.front.requests.clear()
    place.behind.requests.clear()
    place.behind.fault = case.fault
    with tempfile.TemporaryDirectory(prefix="home-", dir=PLACE) as home:
        model = client.model or MODELS[client.api]
        seat = Seat(client.place, Path(home), place.front.url, key, model, case.prompt, case.tool)
        place.behind.file = seat.write("work/note.txt", "The toll is 7.\n") if case.tool else None
        code, said = run_client(client, seat, place.front, case.seconds)
    requests = [one for one in place.front.requests if one.method == "POST" and "count" not in one.path]
    times = [one.at_s for one in requests]
    sentences = {plain_text(one.sentence)[:SENTENCE_CHARS] for one in requests if one.sentence}
    if case.fault is not None and case.fault.end == EVENT:
        sentences = {plain_text(event_sentence(client.api))}
    cell = ClientCell(
        case.title,
        len(requests),
        round(max(times) - min(times), 1) if times else 0.0,
        code,
        any(one in plain_text(said) for one in sentences),
        "yousaid" in plain_text(said),
        tail=said[-1500:],
        tool=next((one.tool for one in place.behind.requests if one.tool), ""),
        bytes=max((one.bytes for one in requests), default=0),
        input=sum(one.input for one in place.behind.requests),
    )
    if case.account != NOBODY and requests:
        cell.wrong = _wrong(case, place.accounts.rows(len(requests)), requests, place.behind.requests)
    return cell, list(place.front.requests)


def _wrong(case: Case, rows: list[dict[str, Any]], requests: list[Request], answered: list[Request]) -> str:
    """Return how the journal differs from the requests and from the upstream's reports; empty where not."""
    if len(rows) != len(requests):
        return f"{len(requests)} requests, {len(rows)} rows"
    cost = sum(Decimal(row["cost"] or 0) for row in rows)
    refused = case.account in REFUSING or (case.fault is not None and case.fault.status)
    if refused and cost:
        return f"{cost} for requests that were refused"
    if not refused and case.fault is None and not cost:
        return "no cost"
    if not refused and case.fault is None:
        uses = [row["usage"] or {} for row in rows]
        read = sum(use.get(kind, 0) for use in uses for kind in ("input", "cache_read", "cache_write"))
        counts = read, sum(use.get("output", 0) for use in uses)
        reported = sum(one.input for one in answered), sum(one.output for one in answered)
        return "" if counts == reported else f"rows have {counts}, the upstream reported {reported}"
    return ""


def run_client(
    client: Client, seat: Seat, front: Relay, seconds: float, *, again: bool = False
) -> tuple[int | None, str]:
    """Return how a client ended, None where it was stopped, and all that it said; it may go on `again`."""
    words, more = client.start(seat)
    if again:
        place = next(place for place, word in enumerate(words) if Path(word).name == client.after)
        words[place + 1 : place + 1] = client.again
    kept = {name: value for name, value in os.environ.items() if name in {"LANG", "TZ"}}
    path = f"{node_folder()}{os.pathsep}{os.environ['PATH']}"
    environ = kept | {"PATH": path, "HOME": str(seat.home), "NO_COLOR": "1", "CI": "1"} | more
    work = seat.home / "work"
    work.mkdir(parents=True, exist_ok=True)
    with (seat.home / "said").open("w+b") as said:
        process = subprocess.Popen(
            words, cwd=work, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        code, begun = None, time.monotonic()
        while code is None and time.monotonic() < _end(front, begun, seconds):
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(LOOK_S)
        _end_all(seat.home)
        process.wait(STOP_S_MAX)
        said.seek(0)
        return code, said.read().decode(errors="replace")


def _end(front: Relay, begun: float, seconds: float) -> float:
    """Return until when a client may go on, by its first request or else by its start."""
    return front.requests[0].at_s + seconds if front.requests else begun + BEGIN_S_MAX


def _end_all(home: Path) -> None:
    """End each process of this home: a client, and what it leaves behind."""
    mark = f"HOME={home}\0".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in entry.read_bytes() + b"\0":
                os.kill(int(entry.parent.name), signal.SIGKILL)


def plain_text(text: str) -> str:
    """Return the letters and digits of a text alone, without what colours and breaks it."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).lower())


def _sends(requests: list[Request]) -> dict[str, Any]:
    """Return what healthy requests say of themselves."""
    posts = [one for one in requests if one.method == "POST"]
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    return {
        "paths": sorted({f"{one.method} {one.path}" for one in requests}),
        "models": sorted({str(one.body.get("model")) for one in posts if one.body.get("model")}),
        "maxima": sorted({one.body[name] for one in posts for name in names if one.body.get(name)}),
        "usage": any(one.body.get("stream_options") for one in posts),
        "streamed": any(one.body.get("stream") or "stream" in one.path.lower() for one in posts),
        "user": any("x-tollkeeper-user" in one.headers for one in posts),
        "sessions": sorted(
            {name for one in posts for name in one.headers if "session" in name or name == "traceparent"}
        ),
        "agent": next((one.headers.get("user-agent", "") for one in posts), ""),
    }


def played(client: Client) -> Path:
    """Return where the row of a client is kept."""
    return client.place / f"row-{client.name.replace(' ', '-')}.json"


def play_clients(
    wanted: list[Client], *, fresh: bool, cases: tuple[Case, ...] = (*CASES, *TURNS)
) -> list[ClientRow]:
    """Play clients in the cases that their rows do not have, or in all, and return the rows."""
    rows = [_kept(client, fresh=fresh) for client in wanted]
    titles = {case.title for case in cases}
    missing = [
        (client, row)
        for client, row in zip(wanted, rows, strict=True)
        if titles - {cell.title for cell in row.cells}
    ]
    if missing:
        with place_of_clients() as place:
            for client, row in missing:
                play_client(client, place, row, cases)
    return rows


def _kept(client: Client, *, fresh: bool) -> ClientRow:
    """Return the row of a client as far as it was played, in this version."""
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    row = ClientRow(client.name, client.version, client.api, client.agent, date)
    if played(client).is_file() and not fresh:
        said = json.loads(played(client).read_text())
        if said["version"] == client.version:
            row.date, row.sends = said["date"], said["sends"]
            row.cells = [ClientCell(**cell) for cell in said["cells"] if cell["title"] in TITLES]
    return row
