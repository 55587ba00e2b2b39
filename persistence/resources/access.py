"""Stored credentials: console sessions, API keys, admin tokens (as digests only), audit, idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    Text,
    case,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy import (
    Row as SqlRow,
)
from sqlalchemy import (
    delete as delete_,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import (
    KEY_HOLDER,
    MEMBER,
    OVERLAP_S,
    OWNER,
    TEAM_ROLES,
    TENANT,
    Actor,
    Claim,
    ConsoleSession,
    Replay,
    Row,
)
from gateway.core.accounts.budgets import KEY
from gateway.core.credentials import FailureReport
from gateway.core.issuers import LIFE_MAX, VOUCHED, PersonIdentity
from gateway.errors import Conflict, Forbidden, Unprocessable
from persistence import entity
from persistence.entity import THIS, Entity, EntityWrite, Verb, add, alter, id_in, live, lock, require
from persistence.resources.quota import forget_key
from persistence.resources.tags import check_key_tags, lock_budgets
from persistence.tables import (
    admin_token,
    api_key,
    app_user,
    audit_log,
    budget,
    caller_group,
    console_session,
    control_write,
    idempotency_key,
    organization,
    signed_in_user,
    tenant,
    usage_rollup,
    used_sign_in,
)

# Sessions of the console: stored as digests, limited in number, and expiring.
#
# The start and end of a session are writes like any other, so both are in the audit log.

# Maxima of sessions: of all organizations together, of one organization, and of staff. Separate, so that
# nobody ends the sessions of others by beginning many.
SESSIONS_MAX = 10_000
SESSIONS_OF_ORGANIZATION_MAX = 200
SESSIONS_OF_STAFF_MAX = 1_000
# Maximum of one person, or of one token.
SESSIONS_EACH_MAX = 20
# How often a provider is asked whether a person may still sign in.
ASKED_EACH = timedelta(seconds=30)

# Longer than any sign-in takes.
USED_KEPT = timedelta(minutes=15)
# Completed sign-ins that are stored; the oldest are forgotten first, as their provider rejects them too.
USED_MAX = 10_000

_sessions_here, _used = console_session.c, used_sign_in.c
_IS_DUE = _sessions_here.renewal.is_not(None) & (_sessions_here.asked_at < func.now() - ASKED_EACH)


def find_session(connection: Connection, digest: str) -> ConsoleSession | None:
    row = connection.execute(
        select(
            _sessions_here.id, _sessions_here.token_digest, _sessions_here.issuer,
            _sessions_here.identity, _sessions_here.person, _sessions_here.renewal,
            _sessions_here.id_token, _IS_DUE.label("is_due"),
        ).where(_sessions_here.digest == digest, _sessions_here.expires_at > func.now())
    ).first()  # fmt: skip
    if row is None:
        return None
    person = PersonIdentity(row.issuer, row.identity, row.person) if row.person is not None else None
    return ConsoleSession(row.id, row.token_digest, person, row.renewal, row.id_token, is_due=row.is_due)


def ask_session(connection: Connection, session_id: int) -> bool:
    """Mark a console session as being confirmed by its identity provider now; return False if not due."""
    asked = (
        update(console_session).where(_sessions_here.id == session_id, _IS_DUE).values(asked_at=func.now())
    )
    return connection.execute(asked.returning(_sessions_here.id)).first() is not None


def keep_renewal(connection: Connection, session_id: int, renewal: str, *, vouched: bool) -> None:
    """Store a session's next refresh token; a `vouched` session is extended, at most to `LIFE_MAX` in all."""
    ends = (
        func.least(func.now() + VOUCHED, _sessions_here.created_at + LIFE_MAX)
        if vouched
        else _sessions_here.expires_at
    )
    values = {"renewal": renewal, "expires_at": ends}
    connection.execute(update(console_session).where(_sessions_here.id == session_id).values(**values))


def create_session(change: EntityWrite) -> Row:
    """Create a session, and delete expired ones and the oldest beyond the maxima.

    The groups that its sign-in named are those of its user from now on.
    """
    values = dict(change.command.values)
    user, groups = values.pop("user", None), values.pop("groups", None)
    change.command = replace(change.command, values=values)
    if isinstance(groups, tuple):
        _note_groups(change, id_in(values, "organization_id"), str(user), groups)
    row = change.fetch(add(change))
    owner = row["organization_id"]
    latest = select(_sessions_here.id).order_by(_sessions_here.id.desc())
    own, share = (
        latest.where(_of_same(row)),
        latest.where(_sessions_here.organization_id.is_not_distinct_from(owner)),
    )
    share_max = SESSIONS_OF_STAFF_MAX if owner is None else SESSIONS_OF_ORGANIZATION_MAX
    for gone in (
        (_sessions_here.expires_at <= func.now()) | _sessions_here.id.in_(own.offset(SESSIONS_EACH_MAX)),
        _sessions_here.id.in_(share.offset(share_max)),
    ):
        change.connection.execute(delete_(console_session).where(gone))
    if owner is not None:
        _make_room(change.connection)
    return row


def _note_groups(change: EntityWrite, organization_id: int, user: str, groups: Sequence[str]) -> None:
    """Store the groups that a user's sign-in named, and define the organization again if that changes its groups."""
    connection, here, of = change.connection, signed_in_user.c, caller_group.c
    own = (here.organization_id == organization_id, here.name == user)
    before = connection.scalar(select(here.claims).where(*own).with_for_update()) or []
    if changed := set(before) ^ set(groups):
        connection.execute(delete_(signed_in_user).where(*own))
        if groups:
            values = {"organization_id": organization_id, "name": user, "claims": list(groups)}
            connection.execute(upsert(signed_in_user).values(values).on_conflict_do_nothing())
        claiming = live(caller_group).where(of.organization_id == organization_id, of.claim.in_(changed))
        if connection.execute(claiming.limit(1)).first() is not None:
            change.define(f"organization:{organization_id}", organization_id)


def _make_room(connection: Connection) -> None:
    """End console sessions beyond `SESSIONS_MAX`: the oldest of the organization that has the most."""
    of_organization, many = _sessions_here.organization_id, func.count()
    there = select(many).where(of_organization.is_not(None))
    beyond = connection.execute(there).scalar_one() - SESSIONS_MAX
    if beyond <= 0:
        return
    greatest = (
        select(of_organization)
        .where(of_organization.is_not(None))
        .group_by(of_organization)
        .order_by(many.desc(), of_organization)
        .limit(1)
    )
    oldest = (
        select(_sessions_here.id)
        .where(of_organization == greatest.scalar_subquery())
        .order_by(_sessions_here.id)
    )
    connection.execute(delete_(console_session).where(_sessions_here.id.in_(oldest.limit(beyond))))


def use_sign_in(connection: Connection, state: str) -> bool:
    """Mark the `state` of a sign-in as used; return False if it was used before."""
    latest = select(_used.state).order_by(_used.created_at.desc(), _used.state)
    over = (_used.created_at < func.now() - USED_KEPT) | _used.state.in_(latest.offset(USED_MAX))
    connection.execute(delete_(used_sign_in).where(over))
    once = upsert(used_sign_in).values(state=sha256(state.encode()).hexdigest()).on_conflict_do_nothing()
    return connection.execute(once.returning(_used.state)).first() is not None


def _of_same(row: Row) -> ColumnElement[bool]:
    """Return the SQL condition for console sessions of the same person as `row`.

    If no person is known, it is for sessions of the same token.
    """
    if row["identity"] is None:
        return _sessions_here.identity.is_(None) & (_sessions_here.token_digest == row["token_digest"])
    return (_sessions_here.issuer == row["issuer"]) & (_sessions_here.identity == row["identity"])


def end(change: EntityWrite) -> Row:
    """End a session; ending it again changes nothing."""
    change.connection.execute(delete_(console_session).where(console_session.c.id == change.row_id))
    return {"id": change.row_id}


SESSION_SUBJECT = Entity(console_session, verbs={"create": create_session, "end": end})


# The audit log: who changed what, and when; stored in the transaction of the change.

PLAIN = (int, float, str, bool, type(None))
STAFF = "staff"
ROWS_WRITTEN_MAX = 1_000
# Columns that identify a person.
BY_PEOPLE = ("issuer", "identity", "person")
_audit_here = audit_log.c
MADE_OR_CHANGED = frozenset({"create", "change", "rotate", "amend"})


def record_audit(change: EntityWrite, row: Row) -> None:
    keep_audit(change.connection, [audit_entry_of(change, row)])


def audit_entry_of(change: EntityWrite, row: Row) -> dict[str, object]:
    """Return the audit row of one write, without secrets or their digests."""
    command = change.command
    after = _plain(command.render(row) if command.verb in MADE_OR_CHANGED else command.values)
    owner = row["id"] if command.resource == "organizations" else row.get("organization_id", change.within)
    return {
        **_by(command.actor),
        "organization_id": owner,
        "admin_token_id": command.actor.token_id,
        "action": command.verb,
        "resource": command.resource,
        "resource_id": str(row["id"]),
        "before": _plain(command.render(change.before)) if change.before is not None else None,
        "after": after or None,
        "request_id": command.request_id,
    }


def keep_audit(connection: Connection, entries: Sequence[dict[str, object]]) -> None:
    for at in range(0, len(entries), ROWS_WRITTEN_MAX):
        connection.execute(insert(audit_log), entries[at : at + ROWS_WRITTEN_MAX])


def record_all_audit(change: EntityWrite, done: Sequence[tuple[int, int, Row]]) -> None:
    """Store the audit rows of one command for many rows, each given as row id, owner and values."""
    command = change.command
    rows = [
        {
            **_by(command.actor),
            "organization_id": organization_id, "action": command.verb, "resource": command.resource,
            "resource_id": str(row_id),
            "after": _plain(asked), "request_id": command.request_id,
        }
        for row_id, organization_id, asked in done
    ]  # fmt: skip
    if rows:
        change.connection.execute(insert(audit_log), rows)


def _by(actor: Actor) -> dict[str, object]:
    return {"actor": actor.scope, "role": actor.role, **person_of(actor)}


def person_of(actor: Actor) -> dict[str, object]:
    """Return the audit columns for an actor's person: issuer, identity and name; all None without one."""
    who = actor.person
    return {
        "issuer": who.issuer if who is not None else None,
        "identity": who.identity if who is not None else None,
        "person": who.name if who is not None else None,
    }


async def note_failures(engine: AsyncEngine, failed: Sequence[FailureReport]) -> None:
    """Store an audit row for each site that sent wrong credentials to the Admin API."""
    async with engine.begin() as connection:
        await connection.execute(
            insert(audit_log),
            [
                {
                    "actor": "nobody",
                    "action": "fail",
                    "resource": "authentication",
                    "resource_id": one.site or None,
                    "after": {"attempts": one.attempts, "reasons": one.reasons},
                }
                for one in failed
            ],
        )


def _plain(values: Row) -> dict[str, object]:
    """Convert the values to JSON: days, times and money become text."""
    return {name: _json(value) for name, value in values.items()}


def _json(value: object) -> object:
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, list):
        return [_json(item) for item in value]
    return value if isinstance(value, PLAIN) else str(value)


def told(row: Row, within: int) -> Row:
    """Return an audit entry as callers of the organization `within` may see it.

    Actors outside of the organization are shown as staff.
    """
    if row["token_organization_id"] == within:
        return row
    return {**row, "actor": STAFF, **dict.fromkeys((*BY_PEOPLE, "admin_token_id", "token"))}


_token = admin_token.c
# Older entries without an issuer: the person's token has it.
_issuer = func.coalesce(_audit_here.issuer, case((_audit_here.person.is_not(None), _token.issuer)))
# A webhook acts through its links; its organization is the actor's.
_by_whom = func.coalesce(
    _token.organization_id, case((_audit_here.actor.like("webhook:%"), _audit_here.organization_id))
)
AUDIT_SUBJECT = Entity(
    audit_log,
    source=select(
        *(column for column in _audit_here if column.name != "issuer"),
        _issuer.label("issuer"),
        _token.name.label("token"),
        _by_whom.label("token_organization_id"),
    ).outerjoin(admin_token, _token.id == _audit_here.admin_token_id),
    conditions={"issuer": lambda value: _issuer == value},
    told=told,
    veiled=dict.fromkeys(("actor", "admin_token_id", *BY_PEOPLE), _by_whom),
)


# Idempotency keys: one write for each key and caller; the first answer is kept for 30 days.
#
# The key is stored in the transaction of the write: both are stored or neither. A request that failed between
# its commit and its answer is answered from the committed data, once no request can still be running.

KEPT = timedelta(days=30)
EXPIRED_SWEPT_MAX = 20

_keys = idempotency_key.c


def claim_idempotency(connection: Connection, wanted: Claim) -> Replay | None:
    """Claim an idempotency key in this transaction, or return the first answer stored under the key.

    Raise `Conflict` if the key was used for another request, or its first request is still running.
    """
    lock_on = func.hashtextextended(f"{wanted.scope}\n{wanted.key}", 0)
    if not connection.execute(select(func.pg_try_advisory_xact_lock(lock_on))).scalar_one():
        raise _running()
    here = (_keys.actor == wanted.scope, _keys.key == wanted.key)
    _sweep(connection)
    connection.execute(delete_(idempotency_key).where(*here, _keys.expires_at <= func.now()))
    since = func.now() - timedelta(seconds=wanted.running_s_max)
    first = connection.execute(
        select(idempotency_key, (_keys.created_at > since).label("recent")).where(*here)
    ).first()
    if first is None:
        connection.execute(
            insert(idempotency_key).values(
                actor=wanted.scope,
                key=wanted.key,
                method=wanted.method,
                path=wanted.path,
                body_digest=wanted.body_digest,
                expires_at=func.now() + KEPT,
            )
        )
        return None
    _refuse_other(first, wanted)
    if first.status is None and first.recent:
        raise _running()
    return Replay(first.status, first.response or {})


def refuse_other(connection: Connection, wanted: Claim) -> None:
    """Raise `Conflict` if an idempotency key was used for another request."""
    here = (_keys.actor == wanted.scope, _keys.key == wanted.key, _keys.expires_at > func.now())
    first = connection.execute(select(idempotency_key).where(*here)).first()
    if first is not None:
        _refuse_other(first, wanted)


def keep_first_answer(connection: Connection, wanted: Claim, body: Row, status: int | None = None) -> None:
    """Store the answer `body` for an idempotency key.

    Without a `status`, it is the answer to give if the process crashes before the write is complete.
    """
    connection.execute(
        update(idempotency_key)
        .where(_keys.actor == wanted.scope, _keys.key == wanted.key)
        .values(response=dict(body), status=status)
    )


def _refuse_other(first: SqlRow[Any], wanted: Claim) -> None:
    asked = (wanted.method, wanted.path, wanted.body_digest)
    if (first.method, first.path, first.body_digest) != asked:
        raise Conflict("This Idempotency-Key was used for another request.")


def _sweep(connection: Connection) -> None:
    expired = (
        select(_keys.actor, _keys.key)
        .where(_keys.expires_at <= func.now())
        .order_by(_keys.expires_at)
        .limit(EXPIRED_SWEPT_MAX)
        .with_for_update(skip_locked=True)
        .cte("expired")
    )
    connection.execute(
        delete_(idempotency_key).where(_keys.actor == expired.c.actor, _keys.key == expired.c.key)
    )


def _running() -> Conflict:
    return Conflict("The first request with this Idempotency-Key is still running.")


# Credentials without a secret: the subject of an issuer's signed tokens, claimed by one credential only.

DIGEST_CHARACTERS = 64
# Prefix for the digest of a revoked credential whose subject was claimed again. No real digest begins so.
GIVEN_UP = "0" * 40


def claim_subject(
    change: EntityWrite, table: Table, noun: str, in_use: ColumnElement[bool] | None = None
) -> None:
    """Claim the subject of signed tokens, such as JWTs, for a new credential.

    Nothing is done for a credential with a secret of its own. Raise `Forbidden` for a caller of one
    organization, `Conflict` if another credential has the subject. A revoked credential releases its subject;
    an expired one does not, since its end may be moved. Rows outside of `in_use` do not count.
    """
    values = change.command.values
    if values.get("issuer") is None:
        return
    if change.within is not None:
        raise Forbidden(f"Whose tokens stand for a {noun} is said by who is of all organizations.")
    # The same subject has another digest under another pepper.
    same = (table.c.issuer == values["issuer"]) & (table.c.subject == values["subject"])
    if in_use is not None:
        same &= in_use
    given_up = func.lpad(cast(table.c.id, Text), DIGEST_CHARACTERS, literal("0"))
    revoked = table.c.revoked_at.is_not(None) & ~table.c.digest.startswith(GIVEN_UP)
    change.connection.execute(update(table).where(same & revoked).values(digest=given_up))
    there = select(table.c.id).where(
        (table.c.digest == values["digest"]) | (same & table.c.revoked_at.is_(None))
    )
    if change.connection.execute(there).first() is not None:
        raise Conflict(f"There is a {noun} of this subject: revoke it first.")


# Maximum of a tenant's active keys when a member creates one; each is loaded into Redis.
MEMBERS_KEYS_MAX = 1_000
# The columns that a rotated key takes over.
TAKEN_OVER = (
    "tenant_id", "name", "user", "user_header", "unsettled", "priority", "limits", "models", "runs",
    "spent_status", "retry_after_max_s", "tags",
)  # fmt: skip


def create(change: EntityWrite) -> Row:
    tenant_id = int(str(change.command.values["tenant_id"]))
    hold_of_members(change, tenant_id)
    require(change)
    refuse_many(change, tenant_id)
    claim_subject(change, api_key, "key")
    check_key_tags(change, {"user": None, "tags": None, **change.command.values})
    row = change.fetch(add(change, name=change.command.values.get("name") or "API key"))
    define(change, row)
    return row


def hold_of_members(change: EntityWrite, tenant_id: int) -> None:
    """Lock a tenant while members create its keys, so that concurrent members count each other's keys.

    Call it before other locks on the tenant's row.
    """
    if change.command.actor.role == MEMBER:
        mine = select(tenant.c.id).where(tenant.c.id == tenant_id)
        change.connection.execute(mine.with_for_update(key_share=True))


def refuse_many(change: EntityWrite, tenant_id: int) -> None:
    """Raise `Conflict` if a member would exceed the tenant's maximum of active keys."""
    if change.command.actor.role != MEMBER:
        return
    here = (api_key.c.tenant_id == tenant_id) & api_key.c.revoked_at.is_(None)
    there = select(func.count()).select_from(api_key).where(here)
    if change.connection.execute(there).scalar_one() >= MEMBERS_KEYS_MAX:
        said = f"The tenant has {MEMBERS_KEYS_MAX} keys that are not revoked"
        raise Conflict(f"{said}, and a member makes no more: revoke some first.")


def rotate(change: EntityWrite) -> Row:
    """Store a new key that replaces the command's key, which ends after an overlap; return the new key."""
    tenant_id = int(str(change.fetch()["tenant_id"]))
    hold_of_members(change, tenant_id)
    refuse_many(change, tenant_id)
    old, values = lock(change), change.command.values
    _refuse_rotation(change, old)
    said = values.get("expires_at")
    if isinstance(said, datetime) and said <= change.now:
        raise Unprocessable(errors=(("expires_at", "must be later than now: the new key would have ended"),))
    taken_over = {name: old[name] for name in TAKEN_OVER}
    made = {name: values[name] for name in ("digest", "prefix", "pepper")}
    ends = values.get("expires_at", old["expires_at"])
    kept = insert(api_key).values({**taken_over, **made, "expires_at": ends}).returning(api_key.c.id)
    new_id = int(change.connection.execute(kept).scalar_one())
    overlap_s = int(str(values.get("overlap_s", OVERLAP_S)))
    until = change.now + timedelta(seconds=overlap_s)
    last = func.least(func.coalesce(api_key.c.expires_at, until), until)
    ends_now = {"expires_at": last} if overlap_s else {"revoked_at": func.now()}
    alter(change, {"replaced_by_id": new_id, **ends_now})
    row = change.fetch(new_id)
    define(change, old)
    define(change, row)
    return row


def _refuse_rotation(change: EntityWrite, old: Row) -> None:
    """Raise `Conflict` if a key cannot be replaced, or is replaced already."""
    if old["issuer"] is not None:
        raise Conflict("Signed tokens stand for it: there is no key to change.")
    if old["replaced_by_id"] is not None:
        raise Conflict(f"Key {old['replaced_by_id']} stands in its place already.")
    if old["revoked_at"] is not None:
        raise Conflict("The key is revoked: make another.")
    ends = old["expires_at"]
    if isinstance(ends, datetime) and ends <= change.now:
        raise Conflict("The key has expired: make another.")
    of_it = live(budget).where(budget.c.api_key_id == old["id"]).limit(1)
    if change.connection.execute(of_it).first() is not None:
        raise Conflict(
            "A budget is of this key, and would not be of the new one. Make another key and a budget of it."
        )
    if change.command.actor.api_key_id is not None:
        _refuse_multiplying(change, old)


def _refuse_multiplying(change: EntityWrite, old: Row) -> None:
    """Raise `Conflict` if rotating a key would give its holder more than the key's limits.

    This is so while an earlier rotated key still works, or if a budget counts each key by itself.
    """
    before = live(api_key).where(api_key.c.replaced_by_id == old["id"], api_key.c.revoked_at.is_(None))
    ends = change.connection.execute(before.with_only_columns(func.max(api_key.c.expires_at))).scalar()
    if ends is not None and ends > change.now:
        raise Conflict(
            f"This key stands in the place of one that works until {ends.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}."
            " Rotate it then, or ask who manages keys."
        )
    each = live(budget).where(budget.c.each == KEY, budget.c.organization_id == change.within).limit(1)
    if change.connection.execute(each).first() is not None:
        raise Conflict("A budget counts each key by itself: ask who manages keys for another one.")


def change_key(change: EntityWrite) -> Row:
    """Change a key; a replaced key's end can only be moved earlier."""
    values = change.command.values
    if {"tags", "user"} & values.keys():
        lock_budgets(change.connection, int(str(change.fetch()["organization_id"])))
    old = lock(change)
    if old["replaced_by_id"] is not None and "expires_at" in values:
        ends, wanted = old["expires_at"], values["expires_at"]
        if isinstance(ends, datetime) and not (isinstance(wanted, datetime) and wanted <= ends):
            said = f"Key {old['replaced_by_id']} stands in its place, and this one ends"
            raise Conflict(f"{said} at {ends.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}: no later end can be set.")
    if {"tags", "user"} & values.keys():
        check_key_tags(change, {**old, **values})
    return entity.change_row(change)


def delete(change: EntityWrite) -> Row:
    """Delete a revoked key; raise `Conflict` while the counters still need its digest for the revocation."""
    row = lock(change)
    waiting = select(control_write.c.id).where(
        control_write.c.account == f"key:{change.row_id}", control_write.c.state == "pending"
    )
    if row["revoked_at"] is None or change.connection.execute(waiting.limit(1)).first() is not None:
        raise Conflict("The key's revocation has not reached the counters yet.")
    forget_key(change, change.row_id)
    if row["issuer"] is not None and not str(row["digest"]).startswith(GIVEN_UP):
        # The counters store the key's end, and must learn that it is no longer needed.
        owner = int(str(row["organization_id"]))
        known = {"digest": row["digest"], "organization_id": owner}
        change.intend([f"key:{change.row_id}"], "define", known, organization_id=owner)
    return entity.forget(change)


def define(change: EntityWrite, row: Row) -> None:
    change.define(f"key:{row['id']}", row["organization_id"])


def find_key_holder(connection: Connection, digest: str) -> Actor | None:
    """Return the actor for the digest of a valid API key, else None.

    Keys used by signed tokens have no secret, so they give None too.
    """
    here = api_key.c
    row = connection.execute(
        select(here.id, here.tenant_id, tenant.c.organization_id)
        .join(tenant, tenant.c.id == here.tenant_id)
        .join(organization, organization.c.id == tenant.c.organization_id)
        .where(
            here.digest == digest,
            here.issuer.is_(None),
            here.revoked_at.is_(None),
            or_(here.expires_at.is_(None), here.expires_at > func.now()),
            organization.c.deleted_at.is_(None),
            tenant.c.deleted_at.is_(None),
        )
    ).first()
    if row is None:
        return None
    return Actor(
        f"key:{row.id}", KEY_HOLDER, organization_id=row.organization_id, tenant_id=row.tenant_id,
        api_key_id=row.id,
    )  # fmt: skip


# The day of a key's last stored call.
_last_day = select(func.max(usage_rollup.c.start)).where(
    usage_rollup.c.span == "key_day", usage_rollup.c.api_key_id == api_key.c.id
)

KEY_SUBJECT = Entity(
    api_key,
    source=select(api_key, tenant.c.organization_id, _last_day.scalar_subquery().label("last_used_at")).join(
        tenant, tenant.c.id == api_key.c.tenant_id
    ),
    conditions={
        "organization_id": lambda wanted: tenant.c.organization_id == wanted,
        # How the key begins: as much of it as is known.
        "prefix": lambda wanted: api_key.c.prefix.startswith(wanted, autoescape=True),
    },
    verbs={
        "create": create,
        "change": change_key,
        "rotate": rotate,
        "revoke": entity.revoke,
        "delete": delete,
    },
    refers={"tenant_id": tenant},
    referenced={
        "A budget is of this key; delete it first.": live(budget).where(budget.c.api_key_id == THIS),
    },
    define=define,
    defining=frozenset(api_key.c.keys()) - {"name"},
)


# Named admin tokens: credentials of the Admin API, stored as digests only.

# Replaces the digest of a deleted token: no credential has it.
FORGOTTEN = "forgotten:"
# The precision of a token's last use, which is not stored at each use.
LAST_USE_AGE = timedelta(minutes=1)

_here = admin_token.c
_IS_THERE = ~_here.digest.startswith(FORGOTTEN)


def find_admin_token(connection: Connection, digest: str) -> Actor | None:
    """Return the actor for a valid admin token's digest, and store the time of use; None if invalid."""
    row = connection.execute(
        select(
            _here.id, _here.role, _here.user_id, _here.organization_id, _here.ours, _here.tenant_id,
            (func.coalesce(_here.last_used_at < func.now() - LAST_USE_AGE, True)).label("is_long_ago"),
        )
        .outerjoin(organization, organization.c.id == _here.organization_id)
        .outerjoin(tenant, tenant.c.id == _here.tenant_id)
        .where(
            _here.digest == digest,
            _here.revoked_at.is_(None),
            or_(_here.expires_at.is_(None), _here.expires_at > func.now()),
            organization.c.deleted_at.is_(None),
            tenant.c.deleted_at.is_(None),
        )
    ).first()  # fmt: skip
    if row is None:
        return None
    if row.is_long_ago:
        # The row is locked by a change: the time is stored with the next use.
        free = select(_here.id).where(_here.id == row.id).with_for_update(skip_locked=True)
        connection.execute(update(admin_token).where(_here.id.in_(free)).values(last_used_at=func.now()))
    return Actor(
        f"token:{row.id}", row.role, row.id, row.user_id, row.organization_id, is_ours=row.ours,
        tenant_id=row.tenant_id,
    )  # fmt: skip


def admin_token_has_ended(connection: Connection, digest: str) -> bool:
    there = connection.execute(select(_here.id).where(_here.digest == digest)).first()
    return there is not None and find_admin_token(connection, digest) is None


def check_user(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if an organization's token would act as a user of another organization."""
    if row["organization_id"] is None or row["user_id"] is None:
        return
    owner = select(app_user.c.organization_id).where(app_user.c.id == row["user_id"])
    if change.connection.execute(owner).scalar() not in {None, row["organization_id"]}:
        raise Unprocessable(errors=(("user_id", "is a user of another organization"),))


def create_admin_token(change: EntityWrite) -> Row:
    """Store a new admin token, and claim its subject if signed tokens are used instead of a secret."""
    _narrow(change)
    values = change.command.values
    if values["role"] == MEMBER and values.get(OWNER) is None:
        raise Unprocessable(errors=((OWNER, "is required: a member is of one organization"),))
    claim_subject(change, admin_token, "token", _IS_THERE)
    return entity.create(change)


_OURS_OF_A_TEAM = (("ours", "must be false: a token of one tenant never decides what its organization owes"),)


def _narrow(change: EntityWrite) -> None:
    """Check the tenant to which a new token is restricted; set the organization to the tenant's."""
    values = change.command.values
    if (named := values.get(TENANT)) is None:
        return
    if values["role"] not in TEAM_ROLES:
        said = f"must be {', '.join(TEAM_ROLES[:-1])} or {TEAM_ROLES[-1]} for a token of one tenant"
        raise Unprocessable(errors=(("role", said),))
    if values.get("ours"):
        raise Unprocessable(errors=_OURS_OF_A_TEAM)
    owner = change.connection.execute(live(tenant, tenant.c[OWNER]).where(tenant.c.id == named)).scalar()
    if owner is None or change.within not in {None, owner}:
        raise Unprocessable(errors=((TENANT, f"there is no tenant {named}"),))
    if values.get(OWNER) not in {None, owner}:
        raise Unprocessable(errors=((TENANT, "is of another organization"),))
    change.command = replace(change.command, values={**values, OWNER: owner})


def _of_no_team(change: EntityWrite) -> Row:
    """Change a token; raise `Unprocessable` if a token of one tenant would be marked `ours`."""
    if change.command.values.get("ours") and lock(change)[TENANT] is not None:
        raise Unprocessable(errors=_OURS_OF_A_TEAM)
    return entity.change_row(change)


def delete_admin_token(change: EntityWrite) -> Row:
    """Delete the token's digest; the row is kept for the audit log, which refers to it."""
    row = lock(change)
    revoked_at = func.coalesce(_here.revoked_at, func.now())
    alter(change, {"digest": f"{FORGOTTEN}{change.row_id}", "revoked_at": revoked_at})
    return row


def _by_equals(verb: Verb) -> Verb:
    """Return the verb with a check for tokens that staff marked as `ours`, such as a change of their name.

    Callers of an organization cannot change the end of such a token, and other fields only with an `ours`
    token themselves.
    """

    def do(change: EntityWrite) -> Row:
        actor = change.command.actor
        if lock(change)["ours"] and actor.organization_id is not None:
            if "expires_at" in change.command.values:
                raise Forbidden(
                    "Staff marked this token `ours`: a token of all organizations alone says its end."
                )
            if not actor.is_ours:
                raise Forbidden("Staff marked this token `ours`: its end and its name are theirs to decide.")
        return verb(change)

    return do


ADMIN_TOKEN_SUBJECT = Entity(
    admin_token,
    source=select(admin_token).where(_IS_THERE),
    verbs={
        "create": create_admin_token,
        "change": _by_equals(_of_no_team),
        "revoke": _by_equals(entity.revoke),
        "delete": _by_equals(delete_admin_token),
    },
    refers={"user_id": app_user, "organization_id": organization, "tenant_id": tenant},
    check_row=check_user,
)
