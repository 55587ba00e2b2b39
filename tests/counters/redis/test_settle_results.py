"""Results of `settle`: the unusual ones are counted each, faults are logged once an interval by request."""

from __future__ import annotations

import pytest

from gateway.core.model import SettleResult
from gateway.counters.layouts.packing import CODE, GONE, SETTLED
from gateway.counters.redis.settle_results import LOG_INTERVAL_S, SettleResults
from gateway.telemetry.metrics import FACTS


def test_results_are_counted_by_cause() -> None:
    results = SettleResults(lambda: 0.0)
    unheld = SETTLED.pack(SettleResult.UNHELD, *range(1, 9))
    assert results.read(SETTLED.pack(SettleResult.DONE, *range(1, 9)), "r") is SettleResult.DONE
    assert results.read(CODE.pack(SettleResult.UNVERIFIED), "r") is SettleResult.UNVERIFIED
    assert [results.read(unheld, "r") for _ in range(2)] == [SettleResult.DONE] * 2
    gone = SettleResult.RECLAIMED, SettleResult.UNKNOWN, SettleResult.UNKNOWN_ACCOUNT, SettleResult.RAISED
    for result in gone:
        assert results.read(GONE.pack(result, 1, 2), "r") is result
    expected = {"reclaimed": 1, "unknown": 1, "unknown_account": 1, "raised": 1, "unheld": 2}
    assert dict(results.snapshot()) == expected
    assert [fact.labels for fact in FACTS if fact.name == "settlements_unmatched"] == [("result",)]


def test_results_that_are_faults_are_logged_once_an_interval_with_their_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    results = SettleResults(lambda: now)
    for number in range(3):
        results.read(SETTLED.pack(SettleResult.UNHELD, *range(1, 9)), f"unheld {number}")
        results.read(GONE.pack(SettleResult.UNKNOWN, 1, 2), f"unknown {number}")
        results.read(GONE.pack(SettleResult.UNKNOWN_ACCOUNT, 1, 2), f"account {number}")
    now = LOG_INTERVAL_S
    results.read(SETTLED.pack(SettleResult.UNHELD, *range(1, 9)), "unheld 3")
    logged = [(record.message, vars(record)["request_id"]) for record in caplog.records]
    assert logged == [
        ("an account held less than was given back", "unheld 0"),
        ("a hold's account is not stored", "account 0"),
        ("an account held less than was given back", "unheld 3"),
    ]
