"""How the system keeps itself honest: control writes, dead letters, quarantine, webhooks, audit."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
)

from gateway.core.model import PARTITIONS
from persistence.tables.columns import document, identity, integer, line, metadata, moment, refers


def _partition(*, required: bool = True, primary_key: bool = False) -> Column[int]:
    bounds = CheckConstraint(f"partition BETWEEN 0 AND {PARTITIONS - 1}", name="partition")
    return Column(
        "partition", SmallInteger, bounds, nullable=not required, primary_key=primary_key, autoincrement=False
    )


# Every change that must reach the counters, as an intent. Null partition: concerns all of them.
control_write = Table(
    "control_write",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("position", BigInteger, Identity(), nullable=False, unique=True),
    _partition(required=False),
    line("account"),
    line("verb"),
    document("payload"),
    line("state"),
    document("result", required=False),
    moment("created_at", required=True),
    moment("applied_at"),
    moment("done_at"),
)

# First answers of POSTs that carried an Idempotency-Key, per actor.
idempotency_key = Table(
    "idempotency_key",
    metadata,
    line("actor"),
    line("key"),
    line("method"),
    line("path"),
    Column("body_digest", Text, nullable=False),
    # Null while the first request still runs.
    Column("status", SmallInteger),
    document("response", required=False),
    moment("created_at", required=True),
    moment("expires_at", required=True),
    PrimaryKeyConstraint("actor", "key"),
)

audit_log = Table(
    "audit_log",
    metadata,
    identity(),
    line("actor"),
    refers("admin_token_id", "admin_token"),
    line("action"),
    line("resource"),
    Column("resource_id", Text),
    document("before", required=False),
    document("after", required=False),
    Column("request_id", Text),
    moment("created_at", required=True),
)

# Who is signed in to the console: digests of the cookie and of the token it was had for.
console_session = Table(
    "console_session",
    metadata,
    identity(),
    Column("digest", Text, nullable=False, unique=True),
    Column("token_digest", Text, nullable=False),
    moment("created_at", required=True),
    moment("expires_at", required=True),
)

# Events the writer could not turn into rows, raw bytes kept: listed gaps of the accounts they name.
dead_letter = Table(
    "dead_letter",
    metadata,
    identity(),
    _partition(),
    line("entry_id"),
    Column("raw", LargeBinary, nullable=False),
    line("reason"),
    Column("organization_id", BigInteger),
    Column("tenant_id", BigInteger),
    integer("epoch", required=False),
    integer("token_seq", required=False),
    integer("credit_seq", required=False),
    integer("spend_seq", required=False),
    moment("created_at", required=True),
    moment("resolved_at"),
    Column("resolution", Text),
    Column("resolved_by", Text),
    Column("resolved_reason", Text),
    UniqueConstraint("partition", "entry_id"),
)

# Accounts whose events contradict what is stored: their entries wait in the outbox until release.
quarantine = Table(
    "quarantine",
    metadata,
    identity(),
    line("account"),
    _partition(),
    Column("organization_id", BigInteger, nullable=False),
    Column("tenant_id", BigInteger),
    line("kind"),
    # The account this one waits for, where one entry moves both.
    Column("behind", Text),
    line("entry_id"),
    integer("epoch"),
    integer("stored_seq"),
    integer("found_seq"),
    line("reason"),
    # Where the account stood just before `found_seq`: balance, cycle, at_ms.
    document("stood", required=False),
    moment("created_at", required=True),
    moment("released_at"),
    Column("released_by", Text),
    Column("released_reason", Text),
    Column("resolution", Text),
)

# What each partition of the counters was last verified as.
partition_state = Table(
    "partition_state",
    metadata,
    _partition(primary_key=True),
    Column("run_id", Text),
    integer("epoch"),
    Column("last_entry_id", Text),
    # Rows of it are gone, and its accounts are not compared yet.
    Column("older", Boolean, nullable=False),
    moment("verified_at"),
    moment("updated_at", required=True),
)

# Workers a keeper knew last, by their slots: whom one that starts after a loss waits for.
gateway_worker = Table(
    "gateway_worker",
    metadata,
    Column("worker_slot", Text, primary_key=True),
    moment("created_at", required=True),
)

# Movements that were acknowledged and could not be recovered, counted exactly.
lost_event = Table(
    "lost_event",
    metadata,
    identity(),
    line("account"),
    _partition(),
    integer("epoch"),
    integer("first_seq"),
    integer("last_seq"),
    document("detail"),
    moment("created_at", required=True),
)

# Evidence: movements the counters acknowledged and forgot, each brought by whoever sent it again.
recovered_event = Table(
    "recovered_event",
    metadata,
    line("account"),
    integer("epoch"),
    integer("seq"),
    _partition(),
    moment("created_at", required=True),
    moment("counted_at"),
    PrimaryKeyConstraint("account", "epoch", "seq"),
)

# What the counters forgot of an account's epoch: what is not recovered is lost, counted exactly.
redis_loss = Table(
    "redis_loss",
    metadata,
    line("account"),
    integer("epoch"),
    _partition(),
    integer("first_seq"),
    integer("last_seq"),
    integer("recovered"),
    integer("lost"),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    PrimaryKeyConstraint("account", "epoch"),
)

reconciliation = Table(
    "reconciliation",
    metadata,
    identity(),
    moment("started_at", required=True),
    moment("finished_at"),
    integer("checked"),
    integer("drift_tokens"),
    integer("drift_credits"),
    integer("pending"),
    document("items"),
)

# Balances that were found changed by no movement, just behind `seq`, and put right when asked.
known_drift = Table(
    "known_drift",
    metadata,
    identity(),
    line("account"),
    integer("seq"),
    integer("difference"),
    Column("control_write_id", Uuid),
    moment("created_at", required=True),
    UniqueConstraint("account", "seq"),
)

webhook = Table(
    "webhook",
    metadata,
    identity(),
    # Null hears of every organization.
    refers("organization_id", "organization"),
    line("url"),
    document("events"),
    Column("secret", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    moment("created_at", required=True),
    moment("updated_at", required=True),
    moment("deleted_at"),
)

webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    identity(),
    refers("webhook_id", "webhook", required=True),
    line("event"),
    document("payload"),
    line("state"),
    Column("attempts", Integer, nullable=False),
    Column("response_status", SmallInteger),
    Column("error", Text),
    moment("next_attempt_at", required=True),
    moment("created_at", required=True),
    moment("delivered_at"),
    # What happens once: the same name is not delivered to the same address again.
    line("occasion"),
    UniqueConstraint("webhook_id", "occasion"),
)
