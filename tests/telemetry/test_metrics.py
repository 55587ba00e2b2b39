"""Metrics: merged over workers, never going back, in both formats."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from gateway.calls.charge import Counted
from gateway.core.histograms import COSTS_MAX, OTHER_MODELS
from gateway.http.tally import Tally
from gateway.telemetry import metrics as tallies
from gateway.telemetry import scrape
from gateway.telemetry.metrics import FACTS, GAUGES, LAST, PREFIX, WAKING
from tests.waiting import eventually

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def tally() -> Any:
    one = Tally()
    one.request("/v1/chat/completions", 200, "")
    one.request("/v1/chat/completions", 429, "quota_exceeded")
    one.request_seconds.observe(0.003)
    one.request_seconds.observe(400.0)
    one.charged(Counted("chat", 7, "m", "openai", True, 3, 4, 7, 1, 0, False, None, ""))
    one.upstream_connections = 2
    return json.loads(json.dumps({**one.snapshot(), "leases": 5}))


def samples(body: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in plain_text(body.decode())
        for sample in family.samples
    }


def test_snapshots_are_added_label_by_label_and_bucket_by_bucket() -> None:
    found = samples(scrape.render("", tallies.merge(tally(), tally()))[0])
    route = "route=/v1/chat/completions"
    assert found["tollkeeper_requests_total", "reason=", route, "status=200"] == 2
    assert found["tollkeeper_requests_total", "reason=quota_exceeded", route, "status=429"] == 2
    assert found["tollkeeper_tokens_total", "kind=total", "service=chat"] == 14
    assert found["tollkeeper_request_seconds_bucket", "le=0.005"] == 2
    assert found["tollkeeper_request_seconds_bucket", "le=300.0"] == 2
    assert found["tollkeeper_request_seconds_bucket", "le=+Inf"] == 4
    assert found["tollkeeper_request_seconds_count",] == 4
    assert found["tollkeeper_request_seconds_sum",] == pytest.approx(800.006)


def test_merge_keeps_a_server_away_that_any_worker_misses() -> None:
    one, another = ({"redis_away": [["redis-1:6379", away], ["redis-2:6379", 0]]} for away in (0, 1))
    found = samples(scrape.render("", tallies.merge(one, another))[0])
    assert found["tollkeeper_redis_away", "server=redis-1:6379"] == 1
    assert found["tollkeeper_redis_away", "server=redis-2:6379"] == 0


def test_merge_counts_a_refused_partition_of_several_processes_once() -> None:
    one, another = ({"partitions_refusing": [["OOM", refused]]} for refused in (20, 21))
    found = samples(scrape.render("", tallies.merge(one, another))[0])
    assert found["tollkeeper_partitions_refusing", "reason=OOM"] == 21


def test_collect_adds_ended_workers_on_a_full_disk(tmp_path: Path) -> None:
    ended = tmp_path / "1-ended.json"
    ended.write_text(json.dumps({"shed": 3}))
    (tmp_path / "retired.tmp").mkdir()  # what cannot be written
    assert [tallies.collect(tmp_path)["shed"] for _ in range(2)] == [3, 3]
    assert ended.exists()
    (tmp_path / "retired.tmp").rmdir()
    assert [tallies.collect(tmp_path)["shed"] for _ in range(2)] == [3, 3]
    assert not ended.exists()


def test_both_formats_are_served_by_accept_and_parse() -> None:
    snapshot = tally()
    snapshot["script_seconds"] = {"reserve": snapshot["request_seconds"]}
    snapshot |= {"flush_rows": [["token_ledger", 3]], "outbox_entries": 4, "spool_entries": 0}
    body, content_type = scrape.render("", snapshot)
    assert content_type.startswith("text/plain")
    found = samples(body)
    assert found["tollkeeper_script_seconds_count", "script=reserve"] == 2
    assert found["tollkeeper_flush_rows_total", "table=token_ledger"] == 3
    assert found["tollkeeper_outbox_entries",] == 4
    assert any(name[0] == "tollkeeper_build_info" for name in found)
    body, content_type = scrape.render(OPEN_METRICS, snapshot)
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert {"tollkeeper_requests", "tollkeeper_build"} <= {
        family.name for family in open_metrics(body.decode())
    }


def test_every_metric_of_the_contract_has_a_fact() -> None:
    names = {fact.name for fact in FACTS}
    assert {
        "requests", "request_seconds", "overhead_seconds", "tokens", "credits", "script_seconds", "holds",
        "outbox_entries", "outbox_oldest_seconds", "flush_rows", "flush_seconds", "settlements_estimated",
        "spool_entries", "drift_tokens", "drift_credits", "reclaimed_holds", "upstream_seconds",
    } <= names  # fmt: skip


@pytest.mark.parametrize(("accept", "read"), [("", plain_text), (OPEN_METRICS, open_metrics)])
def test_every_fact_of_a_snapshot_is_written_by_its_name_kind_help_and_labels(accept: str, read: Any) -> None:
    value = 'a "quoted" \\ value\n'
    snapshot: dict[str, Any] = {"bounds": [0.5, 2.0]}
    expected = {}
    for number, fact in enumerate(FACTS, 1):
        name, labels = PREFIX + fact.name, dict.fromkeys(fact.labels, value)
        if fact.kind == "histogram":
            counts = {"buckets": [number, 1, 2], "sum": 1.5}
            snapshot[fact.name] = {value: counts} if fact.labels else counts
            totals = zip(("0.5", "2.0", "+Inf"), (number, number + 1, number + 3), strict=True)
            written = [(f"{name}_bucket", {**labels, "le": bound}, total) for bound, total in totals]
            written += [(f"{name}_count", labels, number + 3), (f"{name}_sum", labels, 1.5)]
        else:
            snapshot[fact.name] = [[*labels.values(), number]] if labels else number
            written = [(name + "_total" * (fact.kind == "counter"), labels, number)]
        expected[name] = (fact.kind, fact.help, written)
    body, _ = scrape.render(accept, snapshot)
    families = {each.name: each for each in read(body.decode())}
    assert {"process_cpu_seconds", "process_open_fds", "python_gc_collections"} <= families.keys()
    assert {
        name: (family.type, family.documentation, [sample[:3] for sample in family.samples])
        for name, family in families.items()
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}build")
    } == expected


def test_nothing_measured_yet_is_a_valid_scrape() -> None:
    assert b"tollkeeper_build_info" in scrape.render("", {})[0]


@pytest.mark.parametrize("asked", ["version=2.0.0", "version=x", "escaping=allow-utf-8"])
def test_a_scraper_chooses_the_format_alone(asked: str) -> None:
    kind = scrape.content_type_of(f"application/openmetrics-text;{asked};q=0.6,*/*;q=0.2")
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert scrape.content_type_of(f"text/plain;{asked}") == "text/plain; version=0.0.4; charset=utf-8"


async def test_a_worker_leaves_its_snapshot_and_a_last_one_when_it_ends(tmp_path: Path) -> None:
    counted = {"settlements_estimated": 1}
    task = asyncio.create_task(tallies.publish(tmp_path / "metrics", lambda: counted))
    await eventually(lambda: tallies.collect(tmp_path / "metrics"))
    counted["settlements_estimated"] = 5
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert tallies.collect(tmp_path / "metrics")["settlements_estimated"] == 5


def test_workers_that_run_are_counted_with_the_age_of_the_oldest_report(tmp_path: Path) -> None:
    assert "workers" not in tallies.collect(tmp_path)
    report = tmp_path / f"{os.getpid()}-{tallies._start_time(os.getpid())}.json"
    report.write_text(json.dumps(tally()))
    os.utime(report, (time.time() - 3600,) * 2)
    found = tallies.collect(tmp_path)
    assert found["workers"] == 1
    assert 3600 <= found["worker_report_age_seconds"] < 7200
    os.utime(report)
    assert tallies.collect(tmp_path)["worker_report_age_seconds"] < 3600


def test_what_a_version_without_labels_has_counted_breaks_no_scrape(tmp_path: Path) -> None:
    now = tally()
    now["upstream_failures"] = [["openai", "refused", 3]]
    now["upstream_seconds"] = {"openai": now["request_seconds"]}
    older = now | {"upstream_failures": 7, "upstream_seconds": now["request_seconds"]}
    older["cost"] = [["chat", 7]]
    scrape.render("", older)
    for left, right in ((older, now), (now, older)):
        scrape.render("", tallies.merge(left, right))
    found = samples(scrape.render("", tallies.merge(older, now))[0])
    assert found["tollkeeper_upstream_failures_total", "cause=refused", "upstream=openai"] == 3
    assert found["tollkeeper_upstream_seconds_count", "upstream=openai"] == 2


def test_a_dead_worker_stays_counted_but_not_its_gauges(tmp_path: Path) -> None:
    (tmp_path / "999999999-1.json").write_text(json.dumps(tally()))
    first = tallies.collect(tmp_path)
    assert first["tokens"] == tally()["tokens"]
    assert "leases" not in first
    assert not (tmp_path / "999999999-1.json").exists()
    (tmp_path / "999999999-2.json").write_text(json.dumps(tally()))
    second = tallies.collect(tmp_path)
    assert ["chat", "total", 14] in second["tokens"]
    assert second["request_seconds"]["sum"] == 2 * first["request_seconds"]["sum"]


def test_every_gauge_ends_with_its_worker(tmp_path: Path) -> None:
    facts = {fact.name: [[*fact.labels, 1]] if fact.labels else 1 for fact in FACTS}
    (tmp_path / "999999999-1.json").write_text(json.dumps(facts))
    assert tallies.collect(tmp_path).keys() == {fact.name for fact in FACTS} - GAUGES


def test_a_reused_process_id_is_another_worker(tmp_path: Path) -> None:
    (tmp_path / f"{os.getpid()}-0.json").write_text(json.dumps(tally()))
    assert tallies.collect(tmp_path)["upstream_connections"] == 2
    assert "leases" not in tallies.collect(tmp_path)


def test_a_torn_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "999999999-1.json").write_text("{")
    assert tallies.collect(tmp_path) == {}


def test_histograms_of_another_version_do_not_spoil_the_counts() -> None:
    other = tally() | {"bounds": [1.0], "request_seconds": {"buckets": [1, 0], "sum": 0.1}}
    merged = tallies.merge(other, tally())
    assert merged["request_seconds"] == tally()["request_seconds"]
    assert ["chat", "total", 14] in merged["tokens"]


def test_there_is_no_directory_yet(tmp_path: Path) -> None:
    assert tallies.collect(tmp_path / "none") == {}


async def test_who_tells_of_workers_is_no_worker(tmp_path: Path) -> None:
    task = asyncio.create_task(tallies.publish(tmp_path, lambda: {"settlements_estimated": 1}, beside=True))
    await eventually(lambda: tallies.collect(tmp_path))
    never = [[name, 0.0] for name in WAKING]
    assert tallies.collect(tmp_path) == {"settlements_estimated": 1, LAST: never}
    worker = asyncio.create_task(tallies.publish(tmp_path, lambda: {"settlements_estimated": 2}))
    await eventually(lambda: tallies.collect(tmp_path).get("workers") == 1)
    for each in (task, worker):
        each.cancel()
    await asyncio.gather(task, worker, return_exceptions=True)
    assert tallies.collect(tmp_path)["settlements_estimated"] == 3


def test_when_a_counter_last_grew_outlives_its_worker_and_is_the_latest_of_all() -> None:
    now = [100.0]
    growth = tallies.LastGrowth(lambda: now[0])
    assert {at for _, at in growth.added({"settlements_refused": 0})[LAST]} == {0.0}
    first = growth.added({"settlements_refused": 3, "worker_restarts": [("died", 1), ("hung", 0)]})
    now[0] = 200.0
    second = growth.added({"settlements_refused": 3, "worker_restarts": [("died", 1), ("hung", 1)]})
    grew = {"settlements_refused": 100.0, "worker_restarts": 100.0}
    assert {name: at for name, at in first[LAST] if at} == grew
    both = tallies.merge(second, first)[LAST]
    assert {name: at for name, at in both if at} == grew | {"worker_restarts": 200.0}


async def test_a_worker_that_died_has_left_when_its_counters_grew(tmp_path: Path) -> None:
    (tmp_path / "1-0.json").write_text(json.dumps({"workers": 1, LAST: [["settlements_refused", 7.0]]}))
    for _ in range(2):
        assert tallies.collect(tmp_path) == {LAST: [["settlements_refused", 7.0]]}


def test_models_of_dead_workers_are_bounded_and_their_costs_are_not_lost(tmp_path: Path) -> None:
    for run in range(6):
        rows = [["chat", f"model-{run}-{number}", "USD", 1.0] for number in range(COSTS_MAX)]
        costs = [*rows, ["chat", OTHER_MODELS, "USD", 1200.0 - COSTS_MAX]]
        (tmp_path / f"999999999-{run}.json").write_text(json.dumps({"cost": costs}))
        found = tallies.collect(tmp_path)["cost"]
        assert sum(cost for *_, cost in found) == 1200 * (run + 1)
        assert len(found) == COSTS_MAX + 1
    assert tallies.collect(tmp_path)["cost"] == found
