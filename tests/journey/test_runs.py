"""Runs: a caller opens one, children draw from it, many workers hold it, people see it, its end is final."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.journey.budgets import MODEL, Spender, cost, reasons
from tests.journey.stack import ANSWER_S_MAX
from tests.stage import Stage
from tests.waiting import wait_until

CALLERS, CALLS = 32, 500
LEVELS = 4


@pytest.fixture
def spender(stage: Stage) -> Spender:
    return Spender(stage)


def asked(spender: Spender, method: str, id_: str, key: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {key or spender.key}"}
    url = f"{spender.stack.gateway_url}/.tollkeeper/runs/{id_}"
    return plain_http.request(method, url, headers=headers, timeout=ANSWER_S_MAX)


def told(spender: Spender, id_: str) -> dict[str, Any]:
    found: dict[str, Any] = asked(spender, "GET", id_).raise_for_status().json()
    return found


def test_fifty_agents_on_four_levels_call_at_once_and_none_is_over_the_root(spender: Spender) -> None:
    root = Decimal("0.002")
    assert spender.chat(run=f"root; max={root}").status_code == 200
    fields = {"0": "root"}
    for number in range(1, 50):
        parent = "root" if number <= 3 else f"agent-{(number - 4) % (number // 2) + 1}"
        level = 1 + (1 if parent == "root" else told(spender, parent)["parents"].__len__() + 1)
        parent = parent if level < LEVELS else "root"
        fields[str(number)] = f"agent-{number}; max=0.001; parent={parent}"
        assert spender.chat("1,1", run=fields[str(number)]).status_code == 200
    with ThreadPoolExecutor(CALLERS) as pool:
        said = [list(fields.values())[number % 50].partition(";")[0] for number in range(CALLS)]
        answers = list(pool.map(lambda run: spender.chat("20,16", run=run), said))
    refused = [one for one in answers if one.status_code != 200]
    assert refused
    assert set(reasons(refused)) <= {"run_exceeded", "quota_held"}
    assert {one.status_code for one in refused} == {429}
    admitted = len(answers) - len(refused)
    spent = cost(20, 40) + 49 * cost(1, 1) + admitted * cost(20, 16)
    found = told(spender, "root")
    assert (Decimal(found["used"]), found["held"], found["calls"]) == (spent, "0", 50 + admitted)
    assert spent <= root
    assert spender.spent(50 + admitted) == spent  # one row each, by the journal's own prices


def test_a_run_is_seen_by_people_and_its_end_is_final(spender: Spender) -> None:
    assert spender.chat(run='"nightly-build-#7"; max=5.00; ttl=600').status_code == 200
    id_ = "nightly-build-#7"
    path = f"/runs?organization_id={spender.organization}"

    def seen() -> dict[str, Any]:
        (one,) = spender.stack.admin("GET", path)[1]["items"]
        row: dict[str, Any] = one
        return row

    wait_until(lambda: spender.stack.admin("GET", path)[1]["items"])
    row = seen()
    assert (row["id"], row["unit"], row["max"], row["status"]) == (id_, "money", "5.00", "open")
    wait_until(lambda: (Decimal(seen()["used"]), seen()["calls"]) == (cost(20, 40), 1))
    assert spender.stack.admin("GET", f"/runs/{row['number']}")[1]["id"] == id_
    assert asked(spender, "DELETE", "nightly-build-%237").status_code == 204
    ended = spender.chat(run=id_)
    assert (ended.status_code, ended.headers["x-tollkeeper-reason"]) == (409, "run_ended")
    assert ended.headers["x-should-retry"] == "false"
    wait_until(lambda: seen()["status"] == "ended")
    assert asked(spender, "GET", "of-nobody").status_code == 404
    stranger = Spender(spender.stack)
    assert asked(spender, "GET", "nightly-build-%237", stranger.key).status_code == 404


def test_policies_hold_wherever_a_call_names_its_run(stage: Stage) -> None:
    spender = Spender(stage, runs={"max": "5.00"})
    admin = stage.admin

    def changed(path: str, runs: dict[str, Any] | None) -> None:
        status, row = admin("PATCH", path, {"runs": runs})
        assert (status, row["runs"]) == (200, runs)

    def needs() -> bool:
        return reasons([spender.chat()]) == ["run_required"]

    places = f"/tenants/{spender.tenant}", f"/organizations/{spender.organization}"
    for id_, path in zip(("in-tenant", "in-organization"), places, strict=True):
        changed(path, {"max": "2.00", "max_calls": 3, "required": True})
        wait_until(needs)
        assert spender.chat(run=id_).status_code == 200
        found = told(spender, id_)
        assert (found["max"], found["max_calls"]) == ("2", 3)
        changed(path, None)
        spender.until(200)
    refused = spender.chat(run="a; max=5.01")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-tollkeeper-run")
    assert "has max=5.01, and runs of this API key have max=5 at most" in refused.text
    rotated = admin("POST", f"/api-keys/{spender.key_id}/rotate", {"overlap_s": 0})[1]
    assert rotated["runs"] == {"max": "5.00", "required": False}
    spender.key = rotated["key"]
    changed(f"/api-keys/{rotated['id']}", {"max": "1.00", "required": True})
    wait_until(needs)
    hold = {"service": "chat", "model": MODEL, "max_tokens": 5}
    url, headers = f"{stage.gateway_url}/.tollkeeper/holds", {"authorization": f"Bearer {spender.key}"}
    for named, status, reason in (
        ({}, 400, "run_required"), ({"run": "h; max=1.01"}, 400, "invalid_request"),
    ):  # fmt: skip
        answer = plain_http.post(url, json=hold | named, headers=headers, timeout=ANSWER_S_MAX)
        assert (answer.status_code, answer.headers["x-tollkeeper-reason"]) == (status, reason), answer.text


def test_a_field_that_is_wrong_is_refused_by_its_name_and_a_hold_is_extended_within_its_run(
    spender: Spender,
) -> None:
    for field, says in (("a; max=1e3", "max"), ("a; parent=none", "no open run"), ("a, b", "must be an id")):
        answer = spender.chat(run=field)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-tollkeeper-run")
        assert says in answer.text
    url = f"{spender.stack.gateway_url}/.tollkeeper/holds"
    headers = {"authorization": f"Bearer {spender.key}"}
    for limit, amounts, more in (
        ("max_tokens=100", {"max_tokens": 60}, 10_000), ("max=0.0001", {"max_tokens": 5}, 10_000),
        ("max=0.0001", {"amount": "0.00006"}, "0.00006"),
    ):  # fmt: skip
        run = f"held-{len(limit)}-{next(iter(amounts))}"
        said: dict[str, Any] = {"service": "chat", "model": MODEL, "run": f"{run}; {limit}"} | amounts
        taken = plain_http.post(url, json=said, headers=headers, timeout=ANSWER_S_MAX)
        assert taken.status_code == 201, taken.text
        before = told(spender, run)
        short = plain_http.post(f"{url}/{taken.json()['id']}/extend", json={"more": more}, headers=headers)
        assert (short.status_code, reasons([short])) == (429, ["budget_exceeded"]), short.text
        assert before == told(spender, run)
        assert 0 < Decimal(before["held"]) < Decimal(before["max"])
