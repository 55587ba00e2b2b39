"""Play coding agents behind a budget with a step, before an upstream that refuses the seal of another model.

A model thinks and seals its thoughts as its vendor does; whoever sends these to another model gets a 400. One
session begins before the step and goes on behind it; others begin at 85 %, at 100 %, and once the budget was reset.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import ROUND_DOWN, Decimal
from http import HTTPStatus
from pathlib import Path

from tests import plain_http
from tests.waiting import wait_until
from tests.world.clients import CLIENTS, Client, Seat, install_client
from tests.world.play_clients import (
    OPEN,
    SENTENCE_CHARS,
    TURN_S_MAX,
    Place,
    place_of_clients,
    plain_text,
    run_client,
)
from tests.world.programs import PLACE
from tests.world.relay import model_of

# The model that each client asks for, and the one that its step names.
STEPPED = {
    "Claude Code": ("claude-sonnet-4-5", "claude-haiku-4-5"),
    "Codex": ("gpt-5-codex", "gpt-5-mini"),
    "gemini-cli": ("gemini-2.5-pro", "gemini-2.5-flash"),
    "opencode": ("gpt-4o", "gpt-4o-mini"),
    "opencode messages": ("claude-sonnet-4-5", "claude-haiku-4-5"),
}
AMOUNT, AT = Decimal(1_000), 0.8
# What the upstream reports for each call: input, output.
USAGE = "100000,1000"
# So many calls of others come before the step: what is left of the budget behind it has room for a call.
OTHER_CALLS = 30
BEGINS, RUNS, OTHERS = "begins at 0 %", "goes on at 85 %", "begins at 85 %"
SPENT, SPENT_OTHERS, SPENT_NEW = "goes on at 100 %", "begun at 85 %, goes on at 100 %", "begins at 100 %"
RESET, RESET_NEW = "goes on after the reset", "begins after the reset"
TITLES = (BEGINS, OTHERS, RUNS, SPENT, SPENT_OTHERS, SPENT_NEW, RESET, RESET_NEW)


@dataclass
class StepCell:
    """What came of one run: the models that the upstream was asked for, and what the client showed."""

    title: str
    models: list[str]
    statuses: list[int]
    code: int | None
    answered: bool
    sentence: str
    shown: bool
    tail: str = ""


@dataclass
class StepRow:
    """All runs of one client."""

    name: str
    version: str
    date: str
    asked: str
    substitute: str
    cells: list[StepCell]


class _Budget:
    """A budget of one model with a step. What it has used stays, its amount moves."""

    def __init__(self, place: Place, client: Client, key: str) -> None:
        self._stack, self._key, self._name = place.accounts.stack, key, f"{client.name} before the wall"
        self.asked, self.substitute = STEPPED[client.name]
        made = self._stack.make(
            "budgets", organization_id=place.accounts.owner_id, name=self._name,
            unit="money", amount=str(AMOUNT), interval="month", model=self.asked, hold="likely",
            steps=[{"at": AT, "models": {self.asked: self.substitute}}],
        )  # fmt: skip
        self._id = made["id"]

    def set_used(self, part: Decimal) -> None:
        """Have its use be so large a part of its amount."""
        amount = (self._used() / part).quantize(Decimal("0.000001"), ROUND_DOWN)
        status, body = self._stack.admin("PATCH", f"/budgets/{self._id}", {"amount": str(amount)})
        assert status == 200, body
        wait_until(lambda: Decimal(self._shown()["limit"]) == amount)

    def reset(self) -> None:
        """Begin at 0 again, with an amount that lasts."""
        for method, path, body in (
            ("PATCH", f"/budgets/{self._id}", {"amount": str(AMOUNT)}),
            ("POST", f"/budgets/{self._id}/reset", None),
        ):
            status, answer = self._stack.admin(method, path, body)
            assert status == 200, answer
        wait_until(lambda: Decimal(self._shown()["limit"]) == AMOUNT and not Decimal(self._shown()["used"]))

    def _shown(self) -> dict[str, str]:
        """Return the budget as its gateway has it in force."""
        answer = plain_http.get(
            f"{self._stack.gateway_url}/.tollkeeper/usage", headers={"authorization": f"Bearer {self._key}"}
        )
        budgets: list[dict[str, str]] = [row for row in answer.json()["limits"] if row["name"] == self._name]
        return budgets[0]

    def _used(self) -> Decimal:
        """Return its use, once no call is in flight."""

        def at_rest() -> Decimal | None:
            status, body = self._stack.admin("GET", f"/budgets/{self._id}")
            is_resting = status == 200 and body["held"] is not None and not Decimal(body["held"])
            return Decimal(body["used"]) if is_resting and Decimal(body["used"]) else None

        used: Decimal = wait_until(at_rest)
        return used


def play_steps(names: list[str], *, fresh: bool) -> list[StepRow]:
    """Play these clients, those without a row of this version, and return all rows."""
    rows = {name: None if fresh else _kept(CLIENTS[name]) for name in names}
    if None in rows.values():
        with place_of_clients() as place:
            place.behind.usage, place.behind.seals = USAGE, True
            for name in names:
                rows[name] = rows[name] or _row(CLIENTS[name], place)
    return [row for row in rows.values() if row is not None]


def _row(client: Client, place: Place) -> StepRow:
    install_client(client)
    key = place.accounts.key_of(OPEN)
    budget = _Budget(place, client, key)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    row = StepRow(client.name, client.version, date, budget.asked, budget.substitute, [])
    with tempfile.TemporaryDirectory(prefix="home-", dir=PLACE) as folder:
        homes = {name: Path(folder, name) for name in ("first", "second", "third", "fourth")}
        seats = {
            name: Seat(client.place, home, place.front.url, key, budget.asked) for name, home in homes.items()
        }

        def play(title: str, name: str, *, again: bool = False) -> None:
            row.cells.append(_cell(client, place, seats[name], title, again=again))
            print(f"  {client.name}, {row.cells[-1]}", flush=True)

        play(BEGINS, "first")
        for _ in range(OTHER_CALLS):
            assert place.accounts.stack.chat(key, USAGE, model=budget.asked).status_code == HTTPStatus.OK
        budget.set_used(Decimal("0.85"))
        play(OTHERS, "second")
        play(RUNS, "first", again=True)
        budget.set_used(Decimal(1))
        play(SPENT, "first", again=True)
        play(SPENT_OTHERS, "second", again=True)
        play(SPENT_NEW, "third")
        budget.reset()
        play(RESET, "first", again=True)
        play(RESET_NEW, "fourth")
    _place_of(client).write_text(json.dumps(asdict(row)))
    return row


def _cell(client: Client, place: Place, seat: Seat, title: str, *, again: bool) -> StepCell:
    for relay in (place.front, place.behind):
        relay.requests.clear()
    code, said = run_client(client, seat, place.front, TURN_S_MAX, again=again)
    refused = [request for request in place.front.requests if request.status >= HTTPStatus.BAD_REQUEST]
    sentence = refused[-1].sentence if refused else ""
    answered = [request for request in place.behind.requests if request.method == "POST"]
    return StepCell(
        title, [model_of(request) for request in answered],
        [request.status for request in place.front.requests if request.method == "POST"], code,
        "yousaid" in plain_text(said), sentence,
        bool(sentence) and plain_text(sentence)[:SENTENCE_CHARS] in plain_text(said), said[-1_500:],
    )  # fmt: skip


def _place_of(client: Client) -> Path:
    return client.place / f"steps-{client.name.replace(' ', '-')}.json"


def _kept(client: Client) -> StepRow | None:
    """Return the row of a client as it was played in this version."""
    if not _place_of(client).is_file():
        return None
    kept = json.loads(_place_of(client).read_text())
    if kept["version"] != client.version:
        return None
    return StepRow(**kept | {"cells": [StepCell(**cell) for cell in kept["cells"]]})
