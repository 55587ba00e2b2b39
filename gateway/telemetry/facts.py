"""Every metric: its name in a snapshot and, behind a prefix, in a scrape; its kind, help and labels."""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """One metric: a counter, a gauge or a histogram."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


FACTS = (
    Fact("requests", "counter", "Requests answered, refusals included.", ("route", "status", "reason")),
    Fact("request_seconds", "histogram", "Time from the request's first byte to the answer's last."),
    Fact("overhead_seconds", "histogram", "Time the gateway itself added to a request."),
    Fact(
        "upstream_seconds",
        "histogram",
        "Time from sending a request upstream to the answer's end.",
        ("upstream",),
    ),
    Fact("first_token_seconds", "histogram", "Time from a request's first byte to the first of a stream."),
    Fact("requests_in_flight", "gauge", "Requests that are being answered now."),
    Fact("client_connections", "gauge", "Connections of clients that are open."),
    Fact("tokens", "counter", "Tokens of settled calls.", ("service", "kind")),
    Fact("units", "counter", "Units of settled calls.", ("service",)),
    Fact("credits", "counter", "Credits of settled calls.", ("service",)),
    Fact(
        "cost",
        "counter",
        "What settled calls cost by the price book, in units of the currency.",
        ("service", "model", "currency"),
    ),
    Fact(
        "unpriced_calls",
        "counter",
        "Settled calls of which tokens or a tool have no price of their own.",
        ("service",),
    ),
    Fact("budget_refusals", "counter", "Calls that budgets refused.", ("reason", "unit", "interval")),
    Fact("budgets_exceeding", "counter", "Calls refused since they would take from too many budgets."),
    Fact("budgets_shared", "counter", "Calls that share an account: no place was left for one of their own."),
    Fact(
        "unknown_usage",
        "counter",
        "Settled calls whose report of use says something that is not documented here.",
        ("family",),
    ),
    Fact("settlements_estimated", "counter", "Calls settled by the gateway's own count."),
    Fact("settlements_failed", "counter", "Settlements that the counters did not acknowledge at once."),
    Fact(
        "upstream_failures",
        "counter",
        "Upstream connections or answers that failed.",
        ("upstream", "cause"),
    ),
    Fact("upstream_connections_open", "gauge", "Connections to upstreams.", ("upstream", "state")),
    Fact("upstream_lookup_failures", "counter", "Look-ups of an upstream's name that failed."),
    Fact(
        "upstream_cooling_seconds",
        "counter",
        "Seconds for which an upstream that had enough is left alone, added for each model.",
        ("upstream",),
    ),
    Fact(
        "upstream_cooled_calls",
        "counter",
        "Calls refused while their upstream is left alone.",
        ("upstream",),
    ),
    Fact("upstream_connections", "counter", "Connections made to upstreams."),
    Fact("worker_restarts", "counter", "Gateway workers started again by their supervisor.", ("why",)),
    Fact("client_disconnects", "counter", "Clients that hung up before their answer was complete."),
    Fact("connections_refused", "counter", "Client connections refused at the gateway's own limit."),
    Fact("buffered_bytes", "gauge", "Bytes of requests and answers kept for slow ends."),
    Fact("shed", "counter", "Calls and bodies refused because too much is kept already."),
    Fact("refused_calls_untold", "counter", "Refused calls that are counted and have no row of the journal."),
    Fact("refused_calls_uncounted", "counter", "Refused calls that no report counts: too many differ."),
    Fact("auth_failures", "counter", "Wrong credentials.", ("port", "reason")),
    Fact("issuers_unread", "gauge", "Workers that could not read the keys of an issuer.", ("issuer",)),
    Fact("spans", "counter", "Spans of traces, sent to the collector or dropped.", ("outcome",)),
    Fact("script_seconds", "histogram", "Time from sending a script to its answer.", ("script",)),
    Fact("counters_unverified", "gauge", "Workers whose Redis no keeper has verified since its last start."),
    Fact("counters_exchanged", "counter", "Times Redis was found with older data under the same process."),
    Fact("counters_breaker_open", "gauge", "Workers that ask Redis nothing: it is away or stalls."),
    Fact("partitions_away", "gauge", "Partitions of which a worker cannot ask, added for each worker."),
    Fact("partitions_refusing", "gauge", "Partitions whose Redis refuses calls.", ("reason",)),
    Fact("partitions_taking", "gauge", "Partitions whose Redis takes calls, added for each worker."),
    Fact("partitions_unverified", "gauge", "Partitions that nobody verified, added for each worker."),
    Fact("leases", "gauge", "Tenants that have a lease for while Redis is away."),
    Fact(
        "leases_left_out",
        "counter",
        "Calls of tenants without a lease, as their worker has as many as it keeps.",
    ),
    Fact("admitted_locally", "counter", "Calls admitted on a lease while Redis was away."),
    Fact("spool_entries", "gauge", "Settlements waiting in the local log for the counters."),
    Fact("settlement_log_bytes", "gauge", "Bytes of the workers' settlement logs."),
    Fact("settlements_spooled", "counter", "Settlements the local log keeps for the counters."),
    Fact("settlements_resubmitted", "counter", "Spooled settlements that the counters have by now."),
    Fact("settlements_recovered", "counter", "Acknowledged settlements sent again after a loss."),
    Fact("settlements_refused", "counter", "Settlements kept nowhere: their answers were cut."),
    Fact("settlements_unlogged", "counter", "Acknowledged settlements the local log had no room for."),
    Fact("settlements_dropped_early", "counter", "Acknowledged settlements a full local log kept too short."),
    Fact("lost_events", "counter", "Movements Redis acknowledged, forgot, and nobody brought back."),
    Fact("holds", "gauge", "Holds of calls in flight."),
    Fact("outbox_entries", "gauge", "Movements not yet in PostgreSQL."),
    Fact("outbox_oldest_seconds", "gauge", "Age of the oldest movement not yet in PostgreSQL."),
    Fact("waiting_entries", "gauge", "Movements of accounts in quarantine, which wait outside the outbox."),
    Fact("outbox_streams_broken", "gauge", "Partitions whose outbox cannot be read; the others go on."),
    Fact("partitions_flushed", "gauge", "Partitions of the outbox that this keeper flushes."),
    Fact("flush_rows", "counter", "Rows written by the flusher.", ("table",)),
    Fact("flush_seconds", "histogram", "Time of one flush, from read to acknowledge."),
    Fact("reclaimed_holds", "counter", "Holds ended by their deadline."),
    Fact("drift_tokens", "gauge", "Sum of absolute differences in tokens at the last reconciliation."),
    Fact("drift_credits", "gauge", "Sum of absolute differences in credits at the last reconciliation."),
    Fact("reconciliation_items", "gauge", "What the last comparison of all accounts found.", ("kind",)),
    Fact("quarantined_accounts", "gauge", "Accounts in quarantine until a person releases them."),
    Fact("dead_letters", "gauge", "Entries of the outbox that could not be read or stored."),
    Fact("programs", "gauge", "Gateway workers and keepers that run.", ("role", "version")),
    Fact("programs_refused", "gauge", "Programs that are too old for what is stored: they are not ready."),
    Fact("left_alone", "gauge", "What a newer version has stored and this one cannot read.", ("what",)),
    Fact(
        "loop_failures",
        "counter",
        "Passes of keepers' loops that failed, and items left.",
        ("loop", "of"),
    ),
    Fact("webhook_messages_waiting", "gauge", "Messages to webhooks, mails too, that are not delivered yet."),
    Fact("webhook_messages_oldest_seconds", "gauge", "Age of the oldest message to a webhook that waits."),
    Fact("invoices_overdue", "gauge", "Invoices that were to be paid before today and are not."),
    Fact("invoices_left", "gauge", "Organizations whose scheduled invoice was left.", ("reason",)),
    Fact("tenants_blocked_unpaid", "gauge", "Tenants that are blocked since an invoice is not paid."),
    Fact("handovers", "gauge", "Documents that Stripe is to have and has not.", ("state",)),
    Fact("handovers_oldest_seconds", "gauge", "Age of the oldest document that waits for Stripe."),
    Fact(
        "handover_events_remaining", "gauge", "Messages of Stripe of a day that leave something to a person."
    ),
    Fact("usage_feed_events", "gauge", "Usage events that a billing service has not.", ("state",)),
    Fact("usage_feed_oldest_seconds", "gauge", "Age of the oldest usage event that waits."),
    Fact("usage_feed_sent", "counter", "Usage events that a billing service took."),
    Fact("replica_lag_seconds", "gauge", "By how much the replica that reads go to is behind."),
    Fact("redis_memory_used_bytes", "gauge", "Memory Redis uses."),
    Fact("redis_memory_max_bytes", "gauge", "Memory Redis may use; 0 is no limit."),
    Fact(
        "redis_files_failing", "gauge", "Servers of Redis that could not write a file of theirs.", ("file",)
    ),
    Fact("redis_replicas", "gauge", "Replicas that follow Redis; of several servers the least."),
    Fact("redis_replica_lag_seconds", "gauge", "For how long a replica of Redis has said nothing."),
    Fact("clock_offset_seconds", "gauge", "How far our clock is ahead of another's.", ("of",)),
    Fact("certificate_expiry_timestamp_seconds", "gauge", "Until when a certificate is valid.", ("peer",)),
    Fact("configuration_stale", "gauge", "Processes that use an older configuration: the file is wrong."),
    Fact("tls_certificate_stale", "gauge", "Processes whose certificate files cannot be used.", ("port",)),
    Fact("tls_handshake_failures", "counter", "Connections whose TLS did not begin.", ("port", "reason")),
    Fact("admin_requests", "counter", "Answers of the admin port.", ("part", "status")),
    Fact("admin_request_seconds", "histogram", "Time of an answer of the admin port.", ("part",)),
    Fact("loop_lag_seconds", "histogram", "How late a process' event loop turned.", ("process",)),
    Fact("open_files", "gauge", "Files and sockets a process has open; of workers the most.", ("process",)),
    Fact("open_files_max", "gauge", "How many files and sockets a process may have open.", ("process",)),
    Fact("workers", "gauge", "Gateway workers that run on this machine."),
    Fact("worker_report_age_seconds", "gauge", "Age of the oldest report of a worker that runs."),
    Fact("disk_free_bytes", "gauge", "Room on the disk of a directory.", ("place",)),
    Fact("disk_size_bytes", "gauge", "Size of the disk of a directory.", ("place",)),
    Fact("reconciliation_timestamp_seconds", "gauge", "When counters and ledger were last compared."),
    Fact("postgresql_connections", "gauge", "Connections of a keeper to PostgreSQL.", ("state",)),
    Fact("postgresql_connections_max", "gauge", "Connections a keeper may have to PostgreSQL."),
    Fact("postgresql_waiting", "gauge", "Who waits in a keeper for a connection to PostgreSQL."),
    Fact("postgresql_failures", "counter", "What failed at PostgreSQL.", ("cause",)),
    Fact("webhook_attempts", "counter", "Attempts to deliver to webhooks, mails too.", ("outcome",)),
    Fact("backup_timestamp_seconds", "gauge", "When the last backup was taken that is noted."),
    Fact("backup_proof_timestamp_seconds", "gauge", "When a backup was last restored and found right."),
    Fact("archive_behind_seconds", "gauge", "For how long a month should be archived.", ("ledger",)),
    Fact("credential_expiry_timestamp_seconds", "gauge", "When the next credential ends.", ("kind",)),
    Fact("last_timestamp_seconds", "gauge", "When a counter that must wake somebody last grew.", ("event",)),
)

LAST = "last_timestamp_seconds"
# Facts about now, not sums since the start: they end with their worker.
GAUGES = frozenset(fact.name for fact in FACTS if fact.kind == "gauge") - {LAST}

# Counters that wake somebody as soon as they grow. Prometheus cannot see the growth of a counter whose first
# sample is above zero, so the alert reads when each last grew.
WAKING = (
    "worker_restarts", "counters_exchanged", "budgets_shared", "settlements_failed", "settlements_refused",
    "settlements_dropped_early", "connections_refused",
)  # fmt: skip
