"""The rules for Prometheus, tried by promtool: each alert fires when it should, and not when all is well."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.programs import program, run
from tests.test_documents import anchors
from tests.tree import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOK = ROOT / "docs" / "operate" / "alerts.md"
FORMER = ROOT / "deploy" / "README.md"  # rules that were copied from 1.0.0 link it
KEEPER, GATEWAY = 'job="tollkeeper-keeper"', 'job="tollkeeper-gateway"'
DAY = 86_400

WELL = {
    f"up{{{GATEWAY},instance='a'}}": "1x100",
    f"up{{{GATEWAY},instance='b'}}": "1x100",
    f"up{{{KEEPER},instance='k1'}}": "1x100",
    f"up{{{KEEPER},instance='k2'}}": "1 0x8 1x91",  # the spare may be away for a while
    f"tollkeeper_build_info{{{GATEWAY},instance='a'}}": "1x100",
    f"tollkeeper_build_info{{{GATEWAY},instance='b'}}": "1x100",
    f"tollkeeper_build_info{{{KEEPER},instance='k1'}}": "1x100",
    f"tollkeeper_build_info{{{KEEPER},instance='k2'}}": "1 stale _x7 1x91",
    "tollkeeper_last_timestamp_seconds{instance='a',event='worker_restarts'}": "-7200x100",
    "tollkeeper_programs_refused": "0 2x8 0x91",  # an upgrade that came to its end
    "tollkeeper_outbox_oldest_seconds": "2 0 1 0 3x96",
    "tollkeeper_outbox_entries": "12 0 5 0 3x96",
    "tollkeeper_outbox_streams_broken": "0x100",
    "tollkeeper_flush_seconds_count": "0+9x100",
    "tollkeeper_last_timestamp_seconds{event='lost_events'}": "-7200x100",
    "tollkeeper_last_timestamp_seconds{instance='a',event='holds_forgotten'}": "-7200x100",
    "tollkeeper_lost_events_pending": "0 3 0x98",  # a recovery, while gateways bring what they have
    "tollkeeper_drift_tokens": "0x100",
    "tollkeeper_drift_credits": "0x100",
    "tollkeeper_quarantined_accounts": "0x100",
    "tollkeeper_dead_letters": "0x100",
    "tollkeeper_invoices_left{reason='conflict'}": "0 3x20 0x80",  # soon made good
    "tollkeeper_webhook_messages_oldest_seconds": "0 0+60x14 0x86",  # heard at last
    "tollkeeper_handover_events_remaining": "0x100",
    "tollkeeper_redis_away{instance='a',server='redis-1:6379'}": "0x100",
    "tollkeeper_redis_away{instance='a',server='redis-2:6379'}": "0x100",
    "tollkeeper_last_timestamp_seconds{instance='a',event='counters_exchanged'}": "-7200x100",
    "tollkeeper_last_timestamp_seconds{instance='a',event='settlements_dropped_early'}": "-7200x100",
    "tollkeeper_shed_total{instance='a'}": "0+1x100",
    "tollkeeper_auth_failures_total{port='gateway',reason='unknown'}": "0+20x100",
    "tollkeeper_auth_failures_total{port='gateway',reason='revoked'}": "0+20x100",
    "tollkeeper_auth_failures_total{port='admin',reason='missing'}": "0+2x100",
    "tollkeeper_last_timestamp_seconds{event='settlements_failed'}": "-7200x100",
    "tollkeeper_last_timestamp_seconds{event='budgets_shared'}": "-7200x100",
    "tollkeeper_last_timestamp_seconds{event='settlements_refused'}": "-7200x100",
    "tollkeeper_last_timestamp_seconds{event='script_errors'}": "-7200x100",
    "tollkeeper_spool_entries{instance='a'}": "0 3 0 0x97",
    "tollkeeper_requests_total{status='200',reason=''}": "0+6000x100",
    "tollkeeper_requests_total{status='429',reason='quota_exceeded'}": "0+600x100",
    "tollkeeper_requests_total{status='502',reason=''}": "0+60x100",
    "tollkeeper_upstream_failures_total{upstream='openai',cause='refused'}": "0+60x100",
    "tollkeeper_upstream_answers_total{upstream='openai',status='2xx'}": "0+6000x100",
    "tollkeeper_upstream_answers_total{upstream='openai',status='403'}": "0+60x100",
    "tollkeeper_upstream_credentials_missing{upstream='cloud'}": "0x100",
    "tollkeeper_capacity_refused_calls_total{upstream='openai'}": "0+1x100",
    "tollkeeper_cost_total{service='chat',model='m',currency='USD'}": "0+5x100",
    "tollkeeper_partitions_unverified{instance='a'}": "0 64 64 0x97",  # Redis has restarted
    "tollkeeper_leases_left_out_total{instance='a'}": "7x100",
    "tollkeeper_replica_lag_seconds": "0 60 0x98",
    "tollkeeper_jobs_oldest_seconds": f"{20 * 3_600}x100",
    "tollkeeper_tls_handshake_failures_total{port='gateway',reason='protocol'}": "0+60x100",
    "tollkeeper_backup_missing_seconds": "0x100",
    "tollkeeper_worker_report_age_seconds{instance='a'}": "1 2 1x98",
    "tollkeeper_loop_lag_seconds_bucket{instance='a',process='gateway',le='0.01'}": "0+240x100",
    "tollkeeper_loop_lag_seconds_bucket{instance='a',process='gateway',le='+Inf'}": "0+240x100",
    "tollkeeper_disk_free_bytes{instance='a',place='data'}": "50x100",
    "tollkeeper_disk_size_bytes{instance='a',place='data'}": "100x100",
    "tollkeeper_open_files{instance='a',process='gateway'}": "700x100",
    "tollkeeper_open_files_max{instance='a',process='gateway'}": "1024x100",
    "tollkeeper_reconciliation_timestamp_seconds": "0+60x100",
    "tollkeeper_postgresql_waiting": "0 4x5 0x94",  # soon over
    "tollkeeper_backup_timestamp_seconds": "0x100",
    "tollkeeper_backup_proof_timestamp_seconds": "0x100",
    "tollkeeper_archive_behind_seconds{ledger='call'}": f"{13 * DAY}x50 0x50",  # archived at last
    "tollkeeper_ledger_head_age_seconds": "0+60x59 0+60x40",
    "tollkeeper_admin_requests_total{part='api',status='503'}": "3x100",
    "tollkeeper_upstream_cooling_seconds_total{instance='a',upstream='openai'}": "0+20x100",
    "tollkeeper_overhead_seconds_bucket{le='0.01'}": "0+6000x100",
    "tollkeeper_overhead_seconds_bucket{le='+Inf'}": "0+6000x100",
    "tollkeeper_last_timestamp_seconds{instance='a',event='connections_refused'}": "-7200x100",
    "tollkeeper_reclaimed_holds_total{of='call'}": "0+1x100",
    "tollkeeper_reclaimed_holds_total{of='hold'}": "0+60x100",  # callers leave theirs to the deadline
    "tollkeeper_partitions_refusing{instance='a',reason='LOADING'}": "_ 64 stale",  # it has begun
    "tollkeeper_redis_files_failing{file='append_only'}": "0x100",
    "tollkeeper_redis_replica_lag_seconds": "1 0 40 1x97",
    "tollkeeper_clock_offset_seconds{instance='a',of='redis'}": "0 -0.3x99",
    "tollkeeper_redis_memory_used_bytes": "500x100",
    "tollkeeper_redis_memory_max_bytes": "1000x100",
    "tollkeeper_certificate_expiry_timestamp_seconds{peer='redis'}": f"{90 * DAY}x100",
    "tollkeeper_tls_certificate_stale{port='gateway'}": "0x100",
    "tollkeeper_configuration_stale": "0x100",
    "tollkeeper_issuers_unread{issuer='https://issuer.example'}": "0x100",
    "tollkeeper_left_alone{what='hold'}": "0x100",
    "tollkeeper_reconciliation_items{kind='contradiction'}": "0x100",
    "tollkeeper_reconciliation_items{kind='unasked'}": "1x100",
    "tollkeeper_reconciliation_items{kind='lag'}": "5x100",
    # one bad minute of PostgreSQL is no item that fails for ever
    "tollkeeper_loop_failures_total{loop='calendar',of='item'}": "7x5 9x95",
    "tollkeeper_credential_expiry_timestamp_seconds{kind='api_key'}": f"{30 * DAY}x100",
}


@dataclass(frozen=True)
class Fault:
    """What is different from `WELL` (None: not there), and after how many minutes the alert stands."""

    minutes: int
    series: dict[str, str | None]
    alerts: int = 1


def down(job: str, *instances: str) -> dict[str, str | None]:
    """Return the series of targets that no longer answer their scrape after a minute."""
    return {
        f"{name}{{{job},instance='{instance}'}}": values
        for instance in instances
        for name, values in (("up", "1 0x99"), ("tollkeeper_build_info", "1 stale _x98"))
    }


FAULTS = {
    "GatewayDown": Fault(4, down(GATEWAY, "a")),
    "WorkerRestarted": Fault(
        6, {"tollkeeper_last_timestamp_seconds{instance='a',event='worker_restarts'}": "-7200 60x99"}
    ),
    "GatewaysGone": Fault(4, down(GATEWAY, "a", "b")),
    "KeeperDown": Fault(4, down(KEEPER, "k1", "k2")),
    "KeeperOneDown": Fault(15, down(KEEPER, "k2")),
    "ProgramsRefused": Fault(15, {"tollkeeper_programs_refused": "0 1x99"}),
    "OutboxOld": Fault(6, {"tollkeeper_outbox_oldest_seconds": "0+60x100"}),
    "OutboxStreamsBroken": Fault(5, {"tollkeeper_outbox_streams_broken": "0 1x99"}),
    "FlushStalled": Fault(12, {"tollkeeper_flush_seconds_count": "9x100"}),
    "EventsLost": Fault(10, {"tollkeeper_last_timestamp_seconds{event='lost_events'}": "-7200 60x99"}),
    "EventsMissing": Fault(5, {"tollkeeper_lost_events_pending": "0 7x99"}),
    "LedgerDrift": Fault(5, {"tollkeeper_drift_credits": "0 7x99"}),
    "RowsContradict": Fault(5, {"tollkeeper_reconciliation_items{kind='contradiction'}": "0 3x99"}),
    "AccountsQuarantined": Fault(5, {"tollkeeper_quarantined_accounts": "0 1x99"}),
    "DeadLetters": Fault(5, {"tollkeeper_dead_letters": "0 1x99"}),
    "LeftAlone": Fault(5, {"tollkeeper_left_alone{what='hold'}": "0 1x99"}),
    "LoopFailing": Fault(40, {"tollkeeper_loop_failures_total{loop='calendar',of='item'}": "7x5 8+1x95"}),
    "InvoicesLeft": Fault(70, {"tollkeeper_invoices_left{reason='not_agreed'}": "0 2x99"}),
    "HandoversLeft": Fault(10, {"tollkeeper_handovers{state='failed'}": "0 1x99"}),
    "UsageFeedLeft": Fault(10, {"tollkeeper_usage_feed_events{state='failed'}": "0 1x99"}),
    "WebhooksFailing": Fault(25, {"tollkeeper_webhook_messages_oldest_seconds": "0+60x100"}),
    "BreakerOpen": Fault(5, {"tollkeeper_redis_away{instance='a',server='redis-2:6379'}": "0 1x99"}),
    "CountersUnavailable": Fault(
        8, {"tollkeeper_requests_total{status='503',reason='counters_unavailable'}": "0+6x100"}
    ),
    "RedisRefuses": Fault(
        5,
        {
            "tollkeeper_partitions_refusing{instance='a',reason='OOM'}": "_ 64x98",
            "tollkeeper_partitions_refusing{instance='a',reason='MISCONF'}": "_ 64x98",
        },
        alerts=2,
    ),
    "RedisFilesFailing": Fault(5, {"tollkeeper_redis_files_failing{file='append_only'}": "0 1x99"}),
    "RedisReplicaBehind": Fault(15, {"tollkeeper_redis_replica_lag_seconds": "0 60x99"}),
    "ClockWrong": Fault(6, {"tollkeeper_clock_offset_seconds{instance='a',of='redis'}": "0 -7200x99"}),
    "CountersExchanged": Fault(
        5, {"tollkeeper_last_timestamp_seconds{instance='a',event='counters_exchanged'}": "-7200 60x99"}
    ),
    "HoldsForgotten": Fault(
        5, {"tollkeeper_last_timestamp_seconds{instance='a',event='holds_forgotten'}": "-7200 60x99"}
    ),
    "SettlementsDroppedEarly": Fault(
        5,
        {"tollkeeper_last_timestamp_seconds{instance='a',event='settlements_dropped_early'}": "-7200 60x99"},
    ),
    "Overloaded": Fault(10, {"tollkeeper_shed_total{instance='a'}": "0+60x100"}),
    "WrongCredentials": Fault(
        20,
        {
            "tollkeeper_auth_failures_total{port='gateway',reason='unknown'}": "0+90x100",
            "tollkeeper_auth_failures_total{port='admin',reason='unknown'}": "0+10x100",
        },
        alerts=2,
    ),
    "BudgetPlacesTaken": Fault(
        5, {"tollkeeper_last_timestamp_seconds{event='budgets_shared'}": "-7200 60x99"}
    ),
    "SettlementsFailed": Fault(
        5, {"tollkeeper_last_timestamp_seconds{event='settlements_failed'}": "-7200 60x99"}
    ),
    "SettlementsRefused": Fault(
        5, {"tollkeeper_last_timestamp_seconds{event='settlements_refused'}": "-7200 60x99"}
    ),
    "ScriptsFailing": Fault(5, {"tollkeeper_last_timestamp_seconds{event='script_errors'}": "-7200 60x99"}),
    "SpoolWaiting": Fault(6, {"tollkeeper_spool_entries{instance='a'}": "0 3x99"}),
    "ErrorRatio": Fault(15, {"tollkeeper_requests_total{status='502',reason=''}": "0+600x100"}),
    "RouteFailing": Fault(
        15,
        {
            "tollkeeper_requests_total{route='/v1/embeddings',status='502',reason=''}": "0+6x100",
            "tollkeeper_requests_total{route='/v1/embeddings',status='200',reason=''}": "0+2x100",
        },
    ),
    "ErrorBudgetBurning": Fault(
        70, {"tollkeeper_requests_total{status='503',reason='overloaded'}": "0+150x100"}
    ),
    "ErrorBudgetLeaking": Fault(
        95, {"tollkeeper_requests_total{status='503',reason='overloaded'}": "0+14x100"}
    ),
    # Beside another one with 25 times its calls.
    "UpstreamFailing": Fault(
        15, {"tollkeeper_upstream_failures_total{upstream='own',cause='timeout'}": "0+240x100"}
    ),
    "UpstreamRefusesUs": Fault(
        10, {"tollkeeper_upstream_answers_total{upstream='own',status='401'}": "0+6x100"}
    ),
    "UpstreamCredentialsMissing": Fault(
        5, {"tollkeeper_upstream_credentials_missing{upstream='cloud'}": "0 2x99"}
    ),
    "CapacityFull": Fault(30, {"tollkeeper_capacity_refused_calls_total{upstream='openai'}": "0+60x100"}),
    "CallsUnpriced": Fault(40, {"tollkeeper_unpriced_calls_total{service='chat'}": "0+6x100"}),
    "PartitionsUnverified": Fault(10, {"tollkeeper_partitions_unverified{instance='a'}": "0 1x99"}),
    "LeasesLeftOut": Fault(40, {"tollkeeper_leases_left_out_total{instance='a'}": "0+6x100"}),
    "ReplicaBehind": Fault(15, {"tollkeeper_replica_lag_seconds": "0 60x99"}),
    "JobsOld": Fault(15, {"tollkeeper_jobs_oldest_seconds": f"0 {27 * 3_600}x99"}),
    "TlsRefused": Fault(
        20, {"tollkeeper_tls_handshake_failures_total{port='gateway',reason='refused_by_client'}": "0+60x100"}
    ),
    "BackupMissing": Fault(10, {"tollkeeper_backup_missing_seconds": f"0 {37 * 3_600}x99"}),
    "WorkerSilent": Fault(5, {"tollkeeper_worker_report_age_seconds{instance='a'}": "1 1 0+60x98"}),
    "LoopLate": Fault(
        20,
        {
            "tollkeeper_loop_lag_seconds_bucket{instance='a',process='gateway',le='1.0'}": "0+245x100",
            "tollkeeper_loop_lag_seconds_bucket{instance='a',process='gateway',le='+Inf'}": "0+245x100",
        },
    ),
    "DiskFull": Fault(9, {"tollkeeper_disk_free_bytes{instance='a',place='data'}": "4x100"}),
    "OpenFilesHigh": Fault(6, {"tollkeeper_open_files{instance='a',process='gateway'}": "0 900x99"}),
    "PostgresqlBusy": Fault(30, {"tollkeeper_postgresql_waiting": "0 0 3x98"}),
    "BackupOld": Fault(30, {"tollkeeper_backup_timestamp_seconds": f"{-2 * DAY}x100"}),
    "BackupUnproven": Fault(60, {"tollkeeper_backup_proof_timestamp_seconds": f"{-9 * DAY}x100"}),
    "ArchiveBehind": Fault(
        30, {"tollkeeper_archive_behind_seconds{ledger='token_ledger'}": f"{15 * DAY}x100"}
    ),
    "LedgerHeadOld": Fault(30, {"tollkeeper_ledger_head_age_seconds": f"{4 * 3_600}x100"}),
    "NotReconciled": Fault(30, {"tollkeeper_reconciliation_timestamp_seconds": "0x100"}),
    "AdminFailing": Fault(20, {"tollkeeper_admin_requests_total{part='api',status='503'}": "0+2x100"}),
    "UpstreamLimited": Fault(
        30, {"tollkeeper_upstream_cooling_seconds_total{instance='a',upstream='openai'}": "0+40x100"}
    ),
    "OverheadHigh": Fault(
        20,
        {
            "tollkeeper_overhead_seconds_bucket{le='0.1'}": "0+6100x100",
            "tollkeeper_overhead_seconds_bucket{le='+Inf'}": "0+6200x100",
        },
    ),
    "ConnectionsRefused": Fault(
        4, {"tollkeeper_last_timestamp_seconds{instance='a',event='connections_refused'}": "-7200 200x99"}
    ),
    "HoldsReclaimed": Fault(40, {"tollkeeper_reclaimed_holds_total{of='call'}": "0+60x100"}),
    "RedisMemoryHigh": Fault(8, {"tollkeeper_redis_memory_used_bytes": "850x100"}),
    "RedisMemoryFull": Fault(4, {"tollkeeper_redis_memory_used_bytes": "990x100"}),
    "CertificateExpiring": Fault(
        20, {"tollkeeper_certificate_expiry_timestamp_seconds{peer='chat'}": f"{13 * DAY}x100"}
    ),
    "CertificateEnds": Fault(
        2, {"tollkeeper_certificate_expiry_timestamp_seconds{peer='redis'}": f"{1 * DAY}x100"}
    ),
    "IssuerUnread": Fault(15, {"tollkeeper_issuers_unread{issuer='https://issuer.example'}": "0 1x99"}),
    "ConfigurationWrong": Fault(5, {"tollkeeper_configuration_stale": "0 1x99"}),
    "CertificateUnusable": Fault(5, {"tollkeeper_tls_certificate_stale{port='gateway'}": "0 1x99"}),
    "CredentialExpiring": Fault(
        2, {"tollkeeper_credential_expiry_timestamp_seconds{kind='admin_token'}": f"{6 * DAY}x100"}
    ),
}


@cache
def alerts() -> dict[str, dict[str, Any]]:
    """Every alert by its name without prefix."""
    return {
        rule["alert"].removeprefix("Tollkeeper"): rule
        for file in (MONITORING / "rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def tried(folder: Path, *cases: tuple[str, dict[str, str], int, int]) -> str:
    """Let promtool try alerts (name, series, minutes, how many fire)."""
    by_series: dict[tuple[tuple[str, str], ...], list[dict[str, Any]]] = {}  # evaluated once for all of them
    for name, series, minutes, firing in cases:
        expected = {
            "expr": f'count(ALERTS{{alertname="Tollkeeper{name}",alertstate="firing"}})',
            "eval_time": f"{minutes}m",
            "exp_samples": [{"labels": "{}", "value": firing}] if firing else [],
        }
        by_series.setdefault(tuple(series.items()), []).append(expected)
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series],
            "promql_expr_test": expected_of,
        }
        for series, expected_of in by_series.items()
    ]
    rules = [str(path) for path in sorted((MONITORING / "rules").glob("*.yml"))]
    file = folder / "tests.yml"
    file.write_text(json.dumps({"rule_files": rules, "evaluation_interval": "1m", "tests": tests}))
    return run(program("promtool", "prometheus"), "test", "rules", str(file))


def test_rules_and_configuration_are_valid() -> None:
    promtool = program("promtool", "prometheus")
    rules = [str(path) for path in (MONITORING / "rules").glob("*.yml")]
    assert "SUCCESS" in run(promtool, "check", "rules", "--lint-fatal", *rules)
    assert "SUCCESS" in run(promtool, "check", "config", str(MONITORING / "prometheus.yml"))


def test_every_alert_is_tried() -> None:
    assert alerts().keys() == FAULTS.keys()


def test_each_alert_fires_on_its_fault(tmp_path: Path) -> None:
    cases = []
    for name, fault in FAULTS.items():
        series = WELL | fault.series
        there = {each: values for each, values in series.items() if values is not None}
        cases.append((name, there, fault.minutes, fault.alerts))
    tried(tmp_path, *cases)


FIRST = 4


def test_each_alert_fires_where_the_first_sample_is_of_the_fault(tmp_path: Path) -> None:
    """A process may fail before it was ever scraped: no alert waits for a series to have been well before."""
    cases = []
    for name, fault in FAULTS.items():
        if any(each.startswith("up{") for each in fault.series):
            continue  # what was never there is no process that is gone
        series = WELL | {each: _late(values) for each, values in fault.series.items() if values is not None}
        cases.append((name, series, fault.minutes + FIRST, fault.alerts))
    tried(tmp_path, *cases)


def _late(values: str) -> str:
    """The fault alone, above zero from its first sample on."""
    wrong = values.rsplit(maxsplit=1)[-1]
    return f"_x{FIRST} " + (f"500{wrong.removeprefix('0')}" if wrong.startswith("0+") else wrong)


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    tried(tmp_path, *((name, WELL, minutes, 0) for name in FAULTS for minutes in (3, 30, 90)))


ABSENT = {"KeeperDown", "GatewaysGone"}


def test_where_nothing_is_scraped_that_alone_is_told(tmp_path: Path) -> None:
    tried(tmp_path, *((name, {"unrelated": "1x100"}, 60, int(name in ABSENT)) for name in FAULTS))


@pytest.mark.parametrize(("name", "job"), [("GatewaysGone", GATEWAY), ("KeeperDown", KEEPER)])
def test_who_is_gone_from_discovery_is_missed_and_another_namespace_hides_nobody(
    tmp_path: Path, name: str, job: str
) -> None:
    staging = both(job, "staging", "1x100", "1x100")
    gone = both(job, "production", "1x10 stale _x89", "1x10 stale _x89")
    down = both(job, "production", "1x10 0x90", "1x10 stale _x89")
    theirs = both(job, "production", "1x10 1x90", "1x10 stale _x89")
    tried(
        tmp_path,
        (name, gone | staging, 25, 1),
        (name, down | staging, 25, 1),
        (name, gone, 25, 1),
        (name, theirs | staging, 25, 1),
        (name, both(job, "production", "1x100", "1x100") | staging, 25, 0),
    )


def both(job: str, namespace: str, up: str, told: str) -> dict[str, str]:
    """Return whether a target answers, and whether with our metrics."""
    place = f"{{{job},namespace='{namespace}'}}"
    return {f"up{place}": up, f"tollkeeper_build_info{place}": told}


def test_a_target_that_answers_with_other_metrics_is_told(tmp_path: Path) -> None:
    other = WELL | {f"tollkeeper_build_info{{{GATEWAY},instance='a'}}": "_x100"}
    tried(tmp_path, ("GatewayDown", other, 4, 1))


def test_breaker_open_names_each_server_of_redis(tmp_path: Path) -> None:
    places = ("redis-2:6379", "redis-3:6379")
    faults = {f"tollkeeper_redis_away{{instance='a',server='{place}'}}": "0 1x99" for place in places}
    tried(tmp_path, ("BreakerOpen", WELL | faults, 5, 2))
    assert "{{ $labels.server }}" in alerts()["BreakerOpen"]["annotations"]["summary"]


def test_a_flush_in_another_namespace_hides_no_stall(tmp_path: Path) -> None:
    series = {
        "tollkeeper_outbox_entries{namespace='production'}": "7x100",
        "tollkeeper_flush_seconds_count{namespace='production'}": "9x100",
        "tollkeeper_outbox_entries{namespace='staging'}": "7x100",
        "tollkeeper_flush_seconds_count{namespace='staging'}": "0+9x100",
    }
    tried(tmp_path, ("FlushStalled", series, 15, 1))


def test_whatever_is_added_up_is_added_up_by_its_place() -> None:
    """Else what is well in one namespace hides what is not in another."""
    without = [
        f"{rule['expr']}"
        for path in (MONITORING / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if re.search(r"\b(sum|max|min|group|count|avg)\b(?! by \(cluster, namespace, job)", rule["expr"])
    ]
    assert without == []


def test_a_backup_that_was_never_proven_is_told_and_nothing_where_none_is_taken(tmp_path: Path) -> None:
    never = WELL | {"tollkeeper_backup_proof_timestamp_seconds": None}
    there = {name: values for name, values in never.items() if values is not None}
    none = {name: values for name, values in WELL.items() if "backup" not in name}
    tried(
        tmp_path,
        ("BackupUnproven", there, 60, 1),
        ("BackupUnproven", none, 60, 0),
        ("BackupOld", none, 60, 0),
    )


def test_a_budget_that_is_used_up_in_five_days_wakes_somebody_too(tmp_path: Path) -> None:
    """0.8 % is too little for the window of an hour, and a budget of a month in four days."""
    slowly = WELL | {"tollkeeper_requests_total{status='503',reason='overloaded'}": "0+55x100"}
    over = WELL | {"tollkeeper_requests_total{status='503',reason='overloaded'}": "0+55x40 2200x60"}
    tried(tmp_path, ("ErrorBudgetBurning", slowly, 70, 1), ("ErrorBudgetBurning", over, 95, 0))


def test_a_message_of_stripe_that_leaves_something_is_told(tmp_path: Path) -> None:
    left = WELL | {"tollkeeper_handover_events_remaining": "0 1x99"}
    tried(tmp_path, ("HandoversLeft", left, 10, 1))


def test_an_upstream_whose_answers_are_errors_fails_whatever_its_connections_do(tmp_path: Path) -> None:
    series = WELL | {
        "tollkeeper_upstream_answers_total{upstream='own',status='5xx'}": "0+8x100",
        "tollkeeper_upstream_answers_total{upstream='own',status='2xx'}": "0+2x100",
    }
    tried(tmp_path, ("UpstreamFailing", series, 15, 1))


def test_one_wrong_key_of_several_is_told_and_a_caller_without_a_right_is_not(tmp_path: Path) -> None:
    answers = "tollkeeper_upstream_answers_total{{upstream='own',status='{}'}}".format
    series = WELL | {answers("2xx"): "0+80x100", answers("401"): "0+20x100"}
    forbidden = WELL | {answers("2xx"): "0+80x100", answers("403"): "0+20x100"}
    tried(tmp_path, ("UpstreamRefusesUs", series, 15, 1), ("UpstreamRefusesUs", forbidden, 15, 0))


def test_settlements_that_no_log_has_are_told_as_those_that_were_dropped(tmp_path: Path) -> None:
    last = "tollkeeper_last_timestamp_seconds{instance='a',event='settlements_unlogged'}"
    tried(tmp_path, ("SettlementsDroppedEarly", WELL | {last: "-7200 60x99"}, 5, 1))


def test_a_loop_that_is_well_again_is_told_no_longer_than_three_minutes(tmp_path: Path) -> None:
    away = WELL | {"tollkeeper_loop_failures_total{loop='calendar',of='pass'}": "0+20x40 800x60"}
    tried(tmp_path, ("LoopFailing", away, 39, 1), ("LoopFailing", away, 44, 0))


def test_where_one_role_alone_is_to_be_its_files_are_left_out_for_the_other() -> None:
    def absent(file: str) -> set[str]:
        rules = (MONITORING / "rules" / file).read_text()
        return set(re.findall(r'absent_over_time\(up\{job="(\S+?)"', rules))

    assert absent("alerts.yml") == set()
    assert (absent("gateways.yml"), absent("keepers.yml")) == ({"tollkeeper-gateway"}, {"tollkeeper-keeper"})


def test_an_item_that_a_loop_leaves_every_hour_is_told(tmp_path: Path) -> None:
    failures = "tollkeeper_loop_failures_total{loop='checkpoints',of='item'}"
    hourly, twice_once = {failures: "0x5 1x60 2x60 3x60 4x60"}, {failures: "0x5 2x240"}
    tried(
        tmp_path,
        *(("LoopFailing", WELL | hourly, minutes, 1) for minutes in (110, 130, 150, 190)),
        *(("LoopFailing", WELL | twice_once, minutes, 0) for minutes in (30, 80, 130, 190)),
    )


def test_no_limit_of_memory_is_no_alert(tmp_path: Path) -> None:
    endless = WELL | {"tollkeeper_redis_memory_max_bytes": "0x100"}
    tried(tmp_path, *((name, endless, 30, 0) for name in ("RedisMemoryHigh", "RedisMemoryFull")))


def test_promtool_would_tell_of_an_alert_that_does_not_fire(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="FAILED"):
        tried(tmp_path, ("DeadLetters", WELL, 30, 1))


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_alert_says_what_to_do(name: str) -> None:
    alert = alerts()[name]
    place, _, heading = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / place == RUNBOOK
    assert heading == f"tollkeeper{name}".lower()
    assert heading in anchors(RUNBOOK.read_text())
    assert heading in anchors(FORMER.read_text())
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]


def test_the_runbook_has_no_heading_for_an_alert_that_is_gone() -> None:
    headings = re.findall(r"^#+ Tollkeeper(\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts())
