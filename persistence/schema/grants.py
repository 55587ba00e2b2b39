"""Who may do what in PostgreSQL: the owner changes the schema, a keeper is the writer, the reader reads.

Writer and reader are roles named after the database, since a server shares its roles among databases. What is
not named here nobody gets: a table of a later version has its line in `WRITES`, and each migrate grants and
revokes what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from persistence.complaint import origin
from persistence.ledger.invariants import INVARIANTS

WRITER, READER = "writer", "reader"
EVERYBODY = ""
# A longer name would be cut off by PostgreSQL, and be that of another database's role too.
NAME_BYTES_MAX = 63
# What keeps a role from being made: it is there since a moment ago, or this user may not.
DUPLICATE, UNIQUE, FORBIDDEN = "42710", "23505", "42501"

APPEND, KEEP, CLEAR = ("INSERT",), ("INSERT", "UPDATE"), ("INSERT", "UPDATE", "DELETE")
# Only added to, and deleted once it is old.
FADE = ("INSERT", "DELETE")
# What a keeper writes. Ledgers, prices, the audit log and what was found missing are only added to.
WRITES: dict[str, tuple[str, ...]] = {
    "token_ledger": APPEND, "credit_posting": APPEND, "credit_transaction": APPEND, "feature_usage": APPEND,
    "audit_log": APPEND, "lost_event": APPEND, "invoice_basis": APPEND, "reconciliation": APPEND,
    "price": APPEND, "amendment": APPEND,
    "invoice_document": APPEND, "payment": APPEND, "tax_rate": APPEND, "credit_price": APPEND,
    "account_checkpoint": APPEND, "dunning_step": APPEND, "note_application": APPEND,
    "use_event": FADE, "rerating": FADE, "handover_event": FADE, "told_sign_out": FADE, "used_sign_in": FADE,
    "admin_token": KEEP, "api_key": CLEAR, "app_user": KEEP, "control_write": KEEP,
    "charge": KEEP, "credit_addition": KEEP, "credit_debt": KEEP, "budget": KEEP, "call": KEEP,
    "dead_letter": KEEP, "handover": KEEP, "invoice_sequence": KEEP,
    "known_drift": KEEP, "organization": KEEP, "organization_subscription": KEEP,
    "clock_ahead": KEEP, "credit_drawdown": KEEP, "partition_state": KEEP, "quarantine": KEEP,
    "redis_loss": KEEP, "service": KEEP,
    "plan_end": KEEP, "service_activation": KEEP, "subscription_plan_price": KEEP,
    "subscription_segment": KEEP, "subscription_term": KEEP, "tenant": KEEP,
    "tenant_quota": KEEP, "token_plan": KEEP, "token_plan_price": KEEP,
    "usage_daily": KEEP, "usage_feed": KEEP, "usage_rollup": KEEP,
    "top_up_order": KEEP, "usage_tier": KEEP, "usage_told": KEEP, "webhook": KEEP, "zone_clock": KEEP,
    "applied_row": CLEAR, "budget_told": CLEAR, "budget_use": CLEAR, "business_model": CLEAR,
    "console_session": CLEAR, "credit_allocation": CLEAR,
    "gateway_worker": CLEAR, "idempotency_key": CLEAR, "invoice": CLEAR, "invoice_line": CLEAR,
    "keeper": CLEAR, "keeper_partition": CLEAR,
    "organization_service": CLEAR, "recovered_event": CLEAR, "refused_batch": CLEAR, "rerating_left": CLEAR,
    "subscription_plan": CLEAR, "usage_name": CLEAR, "usage_outbox": CLEAR, "webhook_delivery": CLEAR,
    "mail_consent": CLEAR,
    "alembic_version": (), "kept_since": (), "archive_identity": (), "archived_month": (), "archived_run": (),
    "backup_run": (),
    # Rows of months without a partition are looked for here, lest nobody archives them.
    "token_ledger_default": (), "credit_transaction_default": (), "feature_usage_default": (),
    "call_default": (), "audit_log_default": (),
}  # fmt: skip
VIEWS = (
    "listed_gap",
    "account_movement",
    "overage_span",
    "told_use",
    "checkpoint_in_force",
    *(f"invariant_{name}" for name in INVARIANTS),
)
# What stands there as it was given out: sessions, first answers, links, the secrets webhooks are signed with.
CREDENTIALS = frozenset({"console_session", "idempotency_key", "mail_consent", "webhook"})
FUNCTIONS = (
    "ensure_partitions(timestamp with time zone,integer)",
    "ensure_partitions(timestamp with time zone,integer,text)", "drop_months(text,timestamp with time zone)",
)  # fmt: skip


class Grant(NamedTuple):
    """A right of a role, or of everybody, on a table or view, a function, or the schema."""

    role: str
    right: str
    kind: str
    name: str


_FOUND = text("""
SELECT coalesce(r.rolname, ''), a.privilege_type, o.kind, o.name FROM (
    SELECT 'TABLE' AS kind, relname::text AS name, relacl AS acl FROM pg_class
     WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')
    UNION ALL
    SELECT 'FUNCTION', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
     WHERE pronamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'SCHEMA', '', nspacl FROM pg_namespace WHERE oid = current_schema()::regnamespace) AS o,
  aclexplode(o.acl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee""")
_THERE = text("SELECT count(*) FROM pg_roles WHERE rolname = :name")
_AS_IT_STANDS = {"no_parameters": True}
_HERE = text("SELECT current_database(), quote_ident(current_schema())")


def roles_of(database: str) -> dict[str, str]:
    """The names of writer and reader of a database."""
    return {role: f"{database}_{role}" for role in (WRITER, READER)}


def wanted() -> set[Grant]:
    """Everything writer and reader may do."""
    grants = {Grant(role, "USAGE", "SCHEMA", "") for role in (WRITER, READER)}
    grants |= {Grant(WRITER, "EXECUTE", "FUNCTION", function) for function in FUNCTIONS}
    for table, verbs in WRITES.items():
        grants |= {Grant(WRITER, verb, "TABLE", table) for verb in ("SELECT", *verbs)}
    grants |= {Grant(WRITER, "SELECT", "TABLE", view) for view in VIEWS}
    return grants | {Grant(READER, "SELECT", "TABLE", name) for name in {*WRITES, *VIEWS} - CREDENTIALS}


def apply(connection: Connection) -> str:
    """Make the roles and give them what they may do; what an administrator has to do first, else empty.

    Only what differs is granted or revoked: a repeated migrate writes nothing, and needs no right to. Runs
    under the locks of the schema and of the partitions.
    """
    database, schema = connection.execute(_HERE).one()
    names = roles_of(database)
    if any(len(name.encode()) > NAME_BYTES_MAX for name in names.values()):
        return (
            f"the database's name is too long to have roles of its own: {NAME_BYTES_MAX} bytes with _{WRITER}"
        )
    missing = [_quoted(name) for name in names.values() if not _made(connection, name)]
    if missing:
        todo = " ".join(f"CREATE ROLE {name};" for name in missing)
        return f"there are no roles for a keeper that owns nothing; an administrator makes them: {todo}"
    quoted = {EVERYBODY: "PUBLIC"} | {role: _quoted(name) for role, name in names.items()}
    for statement in _statements(_found(connection, names), wanted(), quoted, schema):
        connection.exec_driver_sql(statement, execution_options=_AS_IT_STANDS)
    return ""


def _made(connection: Connection, name: str) -> bool:
    """Whether a role is there, now if not before; another database's migrate may be as far at this moment."""
    there = connection.execute(_THERE, {"name": name}).scalar_one()
    if not there:
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(f"CREATE ROLE {_quoted(name)}", execution_options=_AS_IT_STANDS)
        except DBAPIError as error:
            found = origin(error)
            if found is None or found.sqlstate not in {DUPLICATE, UNIQUE, FORBIDDEN}:
                raise
            return found.sqlstate != FORBIDDEN
    return True


def _found(connection: Connection, names: dict[str, str]) -> set[Grant]:
    """What the roles may do now; of everybody's rights only those to functions that act as their owner."""
    roles = {name: role for role, name in names.items()}
    ours = {(grant.kind, grant.name) for grant in wanted()}
    found = set()
    for grantee, right, kind, name in connection.execute(_FOUND):
        role = EVERYBODY if (grantee, kind) == ("", "FUNCTION") else roles.get(grantee)
        if role is not None and (kind, name) in ours:
            found.add(Grant(role, right, kind, name))
    return found


def _statements(found: set[Grant], wanted: set[Grant], quoted: dict[str, str], schema: str) -> Iterator[str]:
    """What makes of the rights that are found those that are wanted, many objects at once."""
    for verb, to, grants in (("REVOKE", "FROM", found - wanted), ("GRANT", "TO", wanted - found)):
        for (role, right, kind), some in groupby(sorted(grants), lambda grant: grant[:3]):
            objects = [f"{schema}.{grant.name}" if grant.name else schema for grant in some]
            yield f"{verb} {right} ON {kind} {', '.join(objects)} {to} {quoted[role]}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
