"""Holds by the API after Redis was killed and came back empty: each is charged once, by any end in any order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.journey.test_holds import TOKENS, Holder
from tests.stage import Stage, staged
from tests.waiting import wait_until

CHAT = 7


@pytest.fixture(scope="module")
def forgetful(postgres: str) -> Iterator[Stage]:
    """A stage whose Redis has no file."""
    with staged(postgres) as stage:
        yield stage


def emptied(stage: Stage, holder: Holder) -> None:
    """Kill Redis, start it without its data, and wait until a call is answered."""
    stage.server.stop(signal.SIGKILL)
    stage.server.start()
    wait_until(lambda: stage.chat(holder.key).status_code == 200, within_s=60)


def charges(stage: Stage, holder: Holder, id_: str) -> list[int]:
    """What the journal has of a hold, in tokens."""
    calls = stage.admin("GET", f"/calls?tenant_id={holder.tenant}&limit=1000")[1]["items"]
    return [call["tokens"] for call in calls if call["request_id"] == id_ and call["tokens"]]


def test_lost_hold_is_charged_once_in_any_order_of_ends(forgetful: Stage) -> None:
    stage, holder = forgetful, Holder(forgetful, 100_000)
    lost, crowd, given_back, settled, late, released, unsure = (holder.take()["id"] for _ in range(7))
    gone = holder.take(ttl_s=1)["id"]  # charged as held, all 100
    first, other = holder.settle(settled), holder.settle(late)
    assert (first.json()["tokens"], other.json()["tokens"]) == (10, 10)
    assert holder.ask("DELETE", f"/{released}").status_code == 204
    wait_until(lambda: charges(stage, holder, gone) == [TOKENS])
    wait_until(lambda: charges(stage, holder, late) == [10])
    emptied(stage, holder)
    again = holder.settle(settled, output=500)
    assert (again.status_code, again.json()) == (200, first.json())
    taken = holder.settle(lost)
    assert (taken.status_code, taken.json()["tokens"], taken.json()["charged"]) == (200, 10, True)
    assert holder.settle(lost, output=500).json() == taken.json()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda output: holder.settle(crowd, output), range(8)))
    assert {one.status_code for one in answers} == {200}
    (used,) = {one.json()["tokens"] for one in answers}
    assert holder.ask("POST", f"/{given_back}/extend", {"ttl_s": 60}).status_code == 409
    assert [holder.ask("DELETE", f"/{given_back}").status_code for _ in range(2)] == [204, 204]
    for id_ in (given_back, released):
        assert holder.settle(id_).headers["x-tollkeeper-reason"] == "hold_ended"
    for id_ in (lost, settled, late):
        assert holder.ask("DELETE", f"/{id_}").status_code == 409
    assert holder.settle(gone).json()["tokens"] == 10  # it used less than was charged
    settled_tokens = {
        lost: [10],
        crowd: [used],
        settled: [10],
        late: [10],
        gone: [10],
        given_back: [],
        released: [],
    }
    wait_until(
        lambda: {id_: charges(stage, holder, id_) for id_ in settled_tokens} == settled_tokens, within_s=60
    )
    emptied(stage, holder)  # what was settled behind the first loss
    assert holder.settle(lost, output=500).json() == taken.json()
    assert holder.settle(unsure).json()["tokens"] == 10
    settled_tokens[unsure] = [10]
    wait_until(
        lambda: {id_: charges(stage, holder, id_) for id_ in settled_tokens} == settled_tokens, within_s=60
    )
    wait_until(lambda: stage.quota(holder.tenant)["tokens_held"] == 0)
    # Six holds, and a chat behind each loss.
    wait_until(lambda: stage.quota(holder.tenant)["tokens_used"] == 5 * 10 + used + 2 * CHAT)


def test_unknown_id_stays_unknown_and_another_tenants_lost_hold_as_well(forgetful: Stage) -> None:
    stage, holder, other = forgetful, Holder(forgetful, 1000), Holder(forgetful, 1000)
    taken = holder.take()["id"]
    emptied(stage, holder)
    wrong = taken[:-1] + ("0" if taken[-1] != "0" else "1")
    wait_until(lambda: other.settle(taken).headers["x-tollkeeper-reason"] == "hold_not_found")
    assert holder.settle(wrong).headers["x-tollkeeper-reason"] == "hold_not_found"
    assert holder.settle(taken).json()["tokens"] == 10
