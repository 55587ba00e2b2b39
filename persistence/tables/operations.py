"""How the system keeps itself honest: control writes, dead letters, quarantine, webhooks, audit."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    FetchedValue,
    Identity,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
    Uuid,
)

from persistence.tables.columns import (
    days,
    decimals,
    documents,
    flags,
    identity,
    integers,
    moments,
    refers,
    small_integers,
    table,
    texts,
    uuids,
)


def by_whom(word: str) -> list[str]:
    """Who decided: the token, and the person where a provider of identities has said who that was."""
    return [f"{word}_{name}?" for name in ("by", "issuer", "identity", "person")]


# Every change that must reach the counters, as an intent. Null partition: concerns all of them.
control_write = table(
    "control_write",
    Column("id", Uuid, primary_key=True),
    Column("position", BigInteger, Identity(), nullable=False, unique=True),
    small_integers("partition?"),
    texts("account", "verb", "state"),
    documents("payload", "result?"),
    moments("created_at", "applied_at?", "done_at?"),
)

# First answers of POSTs that carried an Idempotency-Key, per actor.
idempotency_key = table(
    "idempotency_key",
    texts("actor", "key", "method", "path", "body_digest"),
    # Null while the first request still runs.
    small_integers("status?"),
    documents("response?"),
    moments("created_at", "expires_at"),
    PrimaryKeyConstraint("actor", "key"),
)

# By months, each entry by its moment.
audit_log = table(
    "audit_log",
    Column("id", BigInteger, Identity(), nullable=False),
    texts("actor", "action", "resource", "resource_id?", "request_id?"),
    refers("admin_token_id?", "admin_token"),
    documents("before?", "after?"),
    Column("created_at", DateTime(timezone=True), server_default=FetchedValue(), nullable=False),
    # What the token might do, and the organization whose row it was.
    texts("role?"),
    integers("organization_id?"),
    # Who it was, where a provider of identities has said so: which, who that is there, and the name.
    texts("issuer?", "identity?", "person?"),
    PrimaryKeyConstraint("id", "created_at"),
)

# Rows that files of configuration said: the fields they said, and whether applying them made the row. By the
# name that is applied under, and the organization whose caller did: 0 is of all.
applied_row = table(
    "applied_row",
    integers("owner"),
    texts("name", "resource"),
    integers("row_id"),
    # `said` is what files called it.
    documents("fields", "said?"),
    flags("made"),
    moments("applied_at"),
    PrimaryKeyConstraint("owner", "name", "resource", "row_id"),
)

# Events the writer could not turn into rows, raw bytes kept: listed gaps of the accounts they name.
dead_letter = table(
    "dead_letter",
    identity(),
    small_integers("partition"),
    texts("entry_id", "reason"),
    Column("raw", LargeBinary, nullable=False),
    integers("organization_id?", "tenant_id?", "epoch?", "token_seq?", "credit_seq?", "spend_seq?"),
    moments("created_at", "resolved_at?"),
    texts("resolution?", *by_whom("resolved"), "resolved_reason?"),
    UniqueConstraint("partition", "entry_id"),
)

# Accounts whose events contradict what is stored: their entries wait in the outbox until release.
quarantine = table(
    "quarantine",
    identity(),
    texts("account", "kind", "entry_id", "reason"),
    small_integers("partition"),
    integers("organization_id", "tenant_id?", "epoch", "stored_seq", "found_seq"),
    # The account this one waits for, where one entry moves both.
    texts("behind?"),
    # Where the account stood just before `found_seq`: balance, cycle, at_ms.
    documents("stood?"),
    moments("created_at", "released_at?"),
    texts(*by_whom("released"), "released_reason?", "resolution?"),
)

# What each partition of the counters was last verified as.
partition_state = table(
    "partition_state",
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    texts("run_id?", "last_entry_id?"),
    integers("epoch"),
    # Rows of it are gone, and its accounts are not compared yet.
    flags("older"),
    moments("verified_at?", "updated_at"),
    # As what it was compared last: its data had all that was defined up to a position.
    texts("compared_run_id?"),
    integers("compared_epoch?", "compared_position?"),
)

# Keepers that are there, and the partitions whose counters each of them reaches; who flushes which.
keeper = table(
    "keeper",
    Column("id", Uuid, primary_key=True),
    texts("place", "schema_version?"),
    Column("reached", ARRAY(SmallInteger), nullable=False),
    moments("until"),
)
keeper_partition = table(
    "keeper_partition",
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    uuids("keeper_id"),
)

# Workers a keeper knew last, by their numbers: whom one that starts after a loss waits for.
gateway_worker = table("gateway_worker", Column("worker_slot", Text, primary_key=True), moments("created_at"))

# How far each gateway worker's batches of refused calls are stored.
refused_batch = table(
    "refused_batch",
    Column("worker", Uuid, primary_key=True),
    integers("number"),
    moments("stored_at"),
)

# Movements that were acknowledged and could not be recovered, counted exactly.
lost_event = table(
    "lost_event",
    identity(),
    texts("account"),
    small_integers("partition"),
    integers("epoch", "first_seq", "last_seq"),
    documents("detail"),
    moments("created_at"),
)

# Evidence: movements the counters acknowledged and forgot, each brought by whoever sent it again.
recovered_event = table(
    "recovered_event",
    texts("account"),
    integers("epoch", "seq"),
    small_integers("partition"),
    moments("created_at", "counted_at?"),
    PrimaryKeyConstraint("account", "epoch", "seq"),
)

# What the counters forgot of an account's epoch: what is not recovered is lost, counted exactly.
redis_loss = table(
    "redis_loss",
    texts("account"),
    small_integers("partition"),
    integers("epoch", "first_seq", "last_seq", "recovered", "lost"),
    moments("created_at", "updated_at"),
    PrimaryKeyConstraint("account", "epoch"),
)

reconciliation = table(
    "reconciliation",
    identity(),
    moments("started_at", "finished_at?"),
    integers("checked", "drift_tokens", "drift_credits", "pending"),
    documents("items"),
)

# Balances that were found changed by no movement, just after `seq`, and put right when asked.
known_drift = table(
    "known_drift",
    identity(),
    texts("account"),
    integers("seq", "difference"),
    uuids("control_write_id?"),
    moments("created_at"),
    UniqueConstraint("account", "seq"),
)

# What an account came to by the end of a month, from one seq to another.
account_checkpoint = table(
    "account_checkpoint",
    texts("account"),
    integers("first_seq", "last_seq", "version"),
    days("month"),
    integers("movements"),
    decimals("amount"),
    integers("since_seq?"),
    moments("created_at"),
    PrimaryKeyConstraint("account", "last_seq", "version"),
)

# Whose archive it is, the months that are in it, and what stands here for movements that are there alone.
archive_identity = table("archive_identity", Column("id", Uuid, primary_key=True), moments("created_at"))

archived_month = table(
    "archived_month",
    texts("ledger"),
    days("month"),
    texts("url", "file"),
    integers("rows", "kept", "bytes"),
    texts("sha256"),
    moments("archived_at", "dropped_at?"),
    PrimaryKeyConstraint("ledger", "month"),
)

# Backups of this database that were taken here, and when one was restored beside it and found right.
backup_run = table(
    "backup_run",
    identity(),
    texts("file", "sha256"),
    moments("taken_at", "proved_at?"),
    integers("bytes"),
)

archived_run = table(
    "archived_run",
    texts("account"),
    integers("first_seq", "last_seq"),
    days("month"),
    integers("epoch", "cycle?", "amount", "balance?", "carried", "taken"),
    moments("at"),
    PrimaryKeyConstraint("account", "last_seq"),
)

webhook = table(
    "webhook",
    identity(),
    # Null hears of every organization.
    refers("organization_id?", "organization"),
    texts("url", "secret"),
    documents("events"),
    # Staff wrote its URL: whom they name in it has agreed with them.
    flags("enabled", "ours"),
    moments("created_at", "updated_at", "deleted_at?"),
    # How many mails, and messages to try it, there were in this hour.
    Column("hourly", Integer, nullable=False),
    moments("hour?"),
)

# Addresses that an organization's people wanted mail sent to: whether, and when, who reads it has agreed. The
# digest is that of the link which they were asked by, and which ends it again.
mail_consent = table(
    "mail_consent",
    refers("organization_id", "organization"),
    texts("address", "mailbox", "digest?"),
    moments("asked_at", "expires_at?", "given_at?"),
    PrimaryKeyConstraint("organization_id", "address"),
    UniqueConstraint("digest"),
)

webhook_delivery = table(
    "webhook_delivery",
    identity(),
    refers("webhook_id", "webhook"),
    texts("event", "state", "error?"),
    documents("payload"),
    Column("attempts", Integer, nullable=False),
    small_integers("response_status?"),
    moments("next_attempt_at", "created_at", "delivered_at?"),
    # What happens once: the same name is not delivered to the same address again.
    texts("occasion"),
    UniqueConstraint("webhook_id", "occasion"),
)
