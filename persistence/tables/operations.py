"""How the system keeps itself honest: control writes, dead letters, quarantine, webhooks, audit."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from gateway.core.model import PARTITIONS
from persistence.tables.columns import (
    count,
    document,
    identity,
    line,
    metadata,
    moment,
    one_of,
    refers,
    signed,
)


def _partition(*, required: bool = True, primary_key: bool = False) -> Column[int]:
    bounds = CheckConstraint(f"partition BETWEEN 0 AND {PARTITIONS - 1}", name="partition")
    return Column(
        "partition", SmallInteger, bounds, nullable=not required, primary_key=primary_key, autoincrement=False
    )


# Every change that must reach the counters, as an intent. Null partition: concerns all of them.
control_write = Table(
    "control_write",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("position", BigInteger, Identity(), nullable=False, unique=True),
    _partition(required=False),
    line("account"),
    one_of("verb", ("recharge", "reset", "adjust", "block", "unblock", "plan", "credits", "define")),
    document("payload"),
    one_of("state", ("pending", "applied", "done", "refused"), default="pending"),
    document("result", default=None),
    moment("created_at", now=True),
    moment("applied_at"),
    moment("done_at"),
    Index(None, "account", "position"),
    Index("control_write_open_idx", "position", postgresql_where=text("state IN ('pending', 'applied')")),
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
    document("response", default=None),
    moment("created_at", now=True),
    moment("expires_at", required=True),
    PrimaryKeyConstraint("actor", "key"),
    Index(None, "expires_at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    identity(),
    line("actor"),
    refers("admin_token_id", "admin_token", index=False),
    line("action"),
    line("resource"),
    Column("resource_id", Text),
    document("before", default=None),
    document("after", default=None),
    Column("request_id", Text),
    moment("created_at", now=True),
    Index(None, "resource", "resource_id"),
    Index(None, "actor", "id"),
    Index(None, "created_at"),
)

# Who is signed in to the console: digests of the cookie and of the token it was had for.
console_session = Table(
    "console_session",
    metadata,
    identity(),
    Column("digest", Text, nullable=False, unique=True),
    Column("token_digest", Text, nullable=False),
    moment("created_at", now=True),
    moment("expires_at", required=True),
    Index(None, "expires_at"),
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
    count("epoch", required=False),
    count("token_seq", required=False),
    count("credit_seq", required=False),
    count("spend_seq", required=False),
    moment("created_at", now=True),
    moment("resolved_at"),
    Column("resolution", Text, CheckConstraint("resolution IN ('redriven', 'resolved')", name="resolution")),
    Column("resolved_by", Text),
    Column("resolved_reason", Text),
    UniqueConstraint("partition", "entry_id"),
    Index(None, "tenant_id", "token_seq"),
    Index(None, "organization_id"),
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
    one_of("kind", ("gap", "conflict", "unknown_account", "behind")),
    # The account this one waits for, where one entry moves both.
    Column("behind", Text),
    line("entry_id"),
    count("epoch", default=None),
    count("stored_seq", default=None),
    count("found_seq", default=None),
    line("reason"),
    # Where the account stood just before `found_seq`: balance, cycle, at_ms.
    document("stood", default=None),
    moment("created_at", now=True),
    moment("released_at"),
    Column("released_by", Text),
    Column("released_reason", Text),
    Column("resolution", Text, CheckConstraint("resolution IN ('judged', 'accepted')", name="resolution")),
    Index("quarantine_open_idx", "account", unique=True, postgresql_where=text("released_at IS NULL")),
)

# What each partition of the counters was last verified as.
partition_state = Table(
    "partition_state",
    metadata,
    _partition(primary_key=True),
    Column("run_id", Text),
    count("epoch"),
    Column("last_entry_id", Text),
    # Rows of it are gone, and its accounts are not compared yet.
    Column("older", Boolean, nullable=False, server_default=text("false")),
    moment("verified_at"),
    moment("updated_at", now=True),
)

# Workers a keeper knew last, by their seats: whom one that starts after a loss waits for.
gateway_worker = Table(
    "gateway_worker",
    metadata,
    Column("seat", Text, primary_key=True),
    moment("created_at", now=True),
)

# Movements that were acknowledged and could not be recovered, counted exactly.
lost_event = Table(
    "lost_event",
    metadata,
    identity(),
    line("account"),
    _partition(),
    count("epoch", default=None),
    count("first_seq", default=None),
    count("last_seq", default=None),
    document("detail"),
    moment("created_at", now=True),
    CheckConstraint("last_seq >= first_seq", name="seqs"),
)

# Evidence: movements the counters acknowledged and forgot, each brought by whoever sent it again.
recovered_event = Table(
    "recovered_event",
    metadata,
    line("account"),
    count("epoch", default=None),
    count("seq", default=None),
    _partition(),
    moment("created_at", now=True),
    moment("counted_at"),
    PrimaryKeyConstraint("account", "epoch", "seq"),
    Index("recovered_event_open_idx", "account", "epoch", postgresql_where=text("counted_at IS NULL")),
)

# What the counters forgot of an account's epoch: what is not recovered is lost, counted exactly.
redis_loss = Table(
    "redis_loss",
    metadata,
    line("account"),
    count("epoch", default=None),
    _partition(),
    count("first_seq", default=None),
    count("last_seq", default=None),
    count("recovered"),
    count("lost"),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    PrimaryKeyConstraint("account", "epoch"),
)

reconciliation = Table(
    "reconciliation",
    metadata,
    identity(),
    moment("started_at", required=True),
    moment("finished_at"),
    count("checked"),
    signed("drift_tokens"),
    signed("drift_credits"),
    count("pending"),
    document("items", default="[]"),
)

# Balances that were found changed by no movement, just behind `seq`, and put right when asked.
known_drift = Table(
    "known_drift",
    metadata,
    identity(),
    line("account"),
    count("seq", default=None),
    signed("difference"),
    Column("control_write_id", Uuid),
    moment("created_at", now=True),
    UniqueConstraint("account", "seq"),
)

webhook = Table(
    "webhook",
    metadata,
    identity(),
    # Null hears of every organization.
    refers("organization_id", "organization"),
    line("url"),
    document("events", default="[]"),
    Column("secret", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    moment("created_at", now=True),
    moment("updated_at", now=True),
    moment("deleted_at"),
)

webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    identity(),
    refers("webhook_id", "webhook", required=True),
    line("event"),
    document("payload"),
    one_of("state", ("pending", "delivered", "failed"), default="pending"),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("response_status", SmallInteger),
    Column("error", Text),
    moment("next_attempt_at", now=True),
    moment("created_at", now=True),
    moment("delivered_at"),
    # What happens once: the same name is not delivered to the same address again.
    line("occasion"),
    UniqueConstraint("webhook_id", "occasion"),
    Index("webhook_delivery_due_idx", "next_attempt_at", postgresql_where=text("state = 'pending'")),
)
