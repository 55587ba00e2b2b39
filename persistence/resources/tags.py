"""Tags that organizations declare: budgets and API keys name declared ones alone, and keep them declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Select, or_, select, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_selectors import (
    CLAIM,
    NAMES_MAX,
    GroupSets,
    Selector,
    selector_of,
    too_many_by_tags,
)
from gateway.core.accounts.tags import TAG, Tags
from gateway.core.times import rfc3339
from gateway.errors import Conflict, Unprocessable
from persistence.entity import EntityWrite, Verb, live
from persistence.tables import api_key, budget, organization, tenant

# Advisory lock class 7806: writers of budgets and tags of an organization, so that maxima hold. Organizations
# share 1,024 locks: PostgreSQL has room for a few thousand in all.
_LOCK = text("SELECT pg_advisory_xact_lock(7806, (CAST(:organization AS bigint) % 1024)::integer)")
_MANY = "a call could then meet more budgets than it may"
_SELECTING = [budget.c[name] for name in Selector._fields]
# The groups of each member, and those of each claim, of groups that budgets name.
_TOGETHER = text(f"""
WITH named AS (
    SELECT id, kind, members, claim FROM caller_group
     WHERE organization_id = :organization AND deleted_at IS NULL AND (id = CAST(:more AS bigint) OR id IN (
           SELECT group_id FROM budget WHERE organization_id = :organization AND deleted_at IS NULL)))
SELECT DISTINCT kind, ids FROM (
    SELECT kind, array_agg(id ORDER BY id) AS ids
      FROM named CROSS JOIN jsonb_array_elements_text(members) AS m (member) GROUP BY kind, member
     UNION ALL SELECT '{CLAIM}', array_agg(id ORDER BY id) FROM named WHERE claim IS NOT NULL GROUP BY claim) AS s""")


def lock_budgets(connection: Connection, organization_id: int) -> None:
    """Block other writers of an organization's budgets and tags until the transaction ends."""
    connection.execute(_LOCK, {"organization": organization_id})


def selectors_of(connection: Connection, organization_id: int) -> dict[str, Selector]:
    """Return the selectors of an organization's budgets by name."""
    there = live(budget, budget.c.name, *_SELECTING).where(budget.c.organization_id == organization_id)
    return {row["name"]: selector_of(dict(row)) for row in connection.execute(there).mappings()}


def group_sets(connection: Connection, owner: int, more: object = None) -> GroupSets:
    """Return the sets of groups named by budgets that members and claims of an organization are in, by kind.

    `more` is the id of a group that no budget names yet.
    """
    sets: dict[str, list[frozenset[int]]] = {}
    for kind, ids in connection.execute(_TOGETHER, {"organization": owner, "more": more}):
        sets.setdefault(kind, []).append(frozenset(ids))
    return sets


def declares_tags(verb: Verb) -> Verb:
    """Return a verb of organizations that stores since when tags are declared.

    It raises `Conflict` if a budget names, or an API key fixes, a tag that would be declared no more.
    """

    def do(change: EntityWrite) -> Row:
        names: Any = change.command.values.get("tags")
        if names is not None:
            since = {} if change.command.id is None else _declared_since(change, names)
            now = rfc3339(change.now, "seconds")
            values = {**change.command.values, "tags_since": {name: since.get(name, now) for name in names}}
            change.command = replace(change.command, values=values)
        return verb(change)

    return do


def _declared_since(change: EntityWrite, names: Iterable[str]) -> dict[str, str]:
    """Return since when the tags of the command's organization are declared, if all but `names` may go."""
    lock_budgets(change.connection, change.row_id)
    query = select(organization.c.tags_since).where(organization.c.id == change.row_id)
    since: dict[str, str] = change.connection.execute(query).scalar() or {}
    gone = since.keys() - set(names)
    if gone:
        held = [
            name
            for name, selector in selectors_of(change.connection, change.row_id).items()
            if gone & dict(selector.tags).keys() or selector.each in {TAG + tag for tag in gone}
        ]
        if held:
            raise Conflict(f"Budgets name tags that would be gone: {', '.join(sorted(held)[:NAMES_MAX])}.")
        fixing = _active_keys(select(api_key.c.prefix), change.row_id).where(
            or_(*[api_key.c.tags.has_key(tag) for tag in sorted(gone)])
        )
        keys = change.connection.execute(fixing.order_by(api_key.c.id).limit(NAMES_MAX)).scalars()
        if prefixes := ", ".join(keys):
            raise Conflict(f"API keys fix tags that would be gone: {prefixes}.")
    return since


def undeclared(connection: Connection, organization_id: int, names: Iterable[str]) -> str:
    """Return why these names are no tags of an organization; empty if they are."""
    query = select(organization.c.tags).where(organization.c.id == organization_id)
    declared: list[str] = connection.execute(query).scalar() or []
    unknown = sorted(set(names).difference(declared))
    return f"its organization declares no tag {', '.join(unknown)}" if unknown else ""


def _active_keys(chosen: Select[Any], organization_id: int) -> Select[Any]:
    """Narrow a selection from API keys to those of an organization that are not revoked."""
    keys = chosen.join(tenant, tenant.c.id == api_key.c.tenant_id)
    return keys.where(tenant.c.organization_id == organization_id, api_key.c.revoked_at.is_(None))


def fixed_tags(connection: Connection, organization_id: int) -> list[Tags]:
    """Return the tags that the API keys of an organization fix."""
    there = _active_keys(select(api_key.c.tags), organization_id)
    tags_of_keys = connection.execute(there.where(api_key.c.tags != text("'{}'::jsonb")).distinct()).scalars()
    return [tuple(tags.items()) for tags in tags_of_keys]


def check_key_tags(change: EntityWrite, key: Row) -> None:
    """Raise `Unprocessable` if an API key fixes an undeclared tag, or may meet too many budgets by its tags.

    `key` is the key as it will be; `lock_budgets` blocks writers of budgets meanwhile.
    """
    tags: Any = key["tags"]
    if not tags:
        return
    of_tenant = select(tenant.c.organization_id).where(tenant.c.id == key["tenant_id"])
    owner = int(change.connection.execute(of_tenant).scalar_one())
    lock_budgets(change.connection, owner)
    errors = [*_wrong_key_tags(change, owner, key, tags)]
    if errors:
        raise Unprocessable(errors=tuple(errors))


def _wrong_key_tags(
    change: EntityWrite, owner: int, key: Row, tags: dict[str, str]
) -> Iterator[tuple[str, str]]:
    if why := undeclared(change.connection, owner, tags):
        yield "tags", why
        return
    callers = {name: key.get(name) for name in ("tenant_id", "user")}
    mine = selector_of({**callers, "api_key_id": key.get("id"), "tags": tags})
    groups = group_sets(change.connection, owner)
    for name, reason in too_many_by_tags(selectors_of(change.connection, owner), mine, groups):
        # The names of other budgets are not disclosed.
        yield name, _MANY if change.by_team else reason
