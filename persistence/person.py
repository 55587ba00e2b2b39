"""Reads and deletes all personal data of one user; sums, amounts and counts are kept.

Rows that are summed keep the user's id, which identifies nobody once the user's row has no name. Only the
owner of the ledger tables can change their rows: it disables their append-only triggers for one transaction.
"""

# all statements are of our own words

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from gateway.core.accounts.budgets import DELETED, owner_of
from gateway.core.accounts.call_facts import CALL_NAMES, NAMES_BESIDE_MARKERS, ROW_MARKERS
from gateway.errors import Conflict, NotFound
from persistence.address import CONNECT, plain_url

# The longest wait for a lock of a ledger's table: writers queue up after it.
LOCK_WAIT = "5s"
ROWS_AT_ONCE = 1_000

_FIND = """
SELECT u.id, u.external_id AS name, u.organization_id AS organization, u.deleted_at IS NOT NULL AS is_deleted
  FROM app_user AS u LEFT JOIN organization AS o ON o.id = u.organization_id
 WHERE u.external_id = %(user)s
   AND (%(of)s::text IS NULL OR o.name = %(of)s OR o.id::text = %(of)s) ORDER BY u.id LIMIT 2"""
_TENANTS = "SELECT id FROM tenant WHERE organization_id = %(organization)s"
_KEYS = f"""SELECT id FROM api_key WHERE "user" = %(name)s AND tenant_id IN ({_TENANTS})"""
_TOKENS = "SELECT id FROM admin_token WHERE user_id = %(id)s"
_SCOPES = f"""SELECT 'key:' || id FROM ({_KEYS}) AS k UNION ALL SELECT 'token:' || id FROM ({_TOKENS}) AS t"""
# Tokens of the organization, which providers of identities sign its people in by; what they did has their id as `person`.
_SHARED = "SELECT id FROM admin_token WHERE organization_id IS NOT DISTINCT FROM %(organization)s"
_BY_THEM = f"""({{by}} IN ({_SCOPES}) OR {{person}} = %(name)s
    AND {{by}} IN (SELECT 'token:' || id FROM ({_SHARED}) AS t))"""
_ACCOUNTS = f"SELECT 'user:' || id || ':' || %(name)s FROM ({_TENANTS}) AS t"
_THEIR_AUDIT = f"""(admin_token_id IN ({_TOKENS}) OR {_BY_THEM.format(by="actor", person="person")}
    OR (resource = 'users' AND resource_id = %(id)s::text)
    OR (resource = 'api-keys' AND resource_id IN (SELECT id::text FROM ({_KEYS}) AS k))
    OR (resource = 'admin-tokens' AND resource_id IN (SELECT id::text FROM ({_TOKENS}) AS t))
    OR (organization_id = %(organization)s
        AND %(name)s IN (before ->> 'user', after ->> 'user', before ->> 'who', after ->> 'who')))"""
_LEDGERS = ("token_ledger", "credit_transaction", "feature_usage")
_USERS_BUDGETS = """SELECT id FROM budget WHERE organization_id = %(organization)s
    AND (each = 'user' OR %(distinct)s AND (each = 'session' OR each LIKE 'tag:%%'))"""
_OF_THEM = f"budget_id IN ({_USERS_BUDGETS})"
_THEIR_USE = f"{_OF_THEM} AND value = %(owner)s"
# Entries of the audit log that name them among others, or as a member.
_LISTING_AUDIT = f"""(organization_id = %(organization)s AND (%(name)s IN (before ->> 'member', after ->> 'member')
    OR before -> 'members' ? %(name)s OR after -> 'members' ? %(name)s
    OR resource = 'budgets' AND resource_id IN (SELECT id::text FROM ({_USERS_BUDGETS}) AS b)
       AND after -> 'overrides' @> jsonb_build_array(jsonb_build_object('who', %(name)s::text))))"""
_THEIR_SESSIONS = """(token_digest IN (SELECT digest FROM admin_token WHERE user_id = %(id)s)
    OR person = %(name)s AND organization_id IS NOT DISTINCT FROM %(organization)s)"""
_NAMED = "to_jsonb(%(name)s::text)::text"
# Whether a text of JSON is the name; names of fields are not.
_SAYS = """jsonb_path_exists({column}, '$.** ? (@ == $name)', jsonb_build_object('name', %(name)s::text))"""
# JSON whose texts that are the name are `none`; names of fields stay.
_RENAMED = f"""replace(replace({{column}}::text, {_NAMED}, to_jsonb(%(none)s::text)::text),
                 to_jsonb(%(none)s::text)::text || ':', {_NAMED} || ':')::jsonb"""

# Accounts of an organization as counters name them.
_ORGANIZATIONS_ACCOUNT = f"""substring(account FROM '^[a-z]+:[0-9]+') IN (
    SELECT kind || ':' || %(organization)s FROM unnest('{{organization,credits,spend}}'::text[]) AS kind
    UNION ALL SELECT kind || ':' || id FROM unnest('{{tenant,user}}'::text[]) AS kind, ({_TENANTS}) AS t
    UNION ALL SELECT 'key:' || id FROM api_key WHERE tenant_id IN ({_TENANTS}))"""
# Answers of an organization: to its tokens and keys, or about it.
_ORGANIZATIONS_ANSWER = f"""(split_part(actor, E'\\t', 1) IN (SELECT 'token:' || id FROM ({_SHARED}) AS t
    UNION ALL SELECT 'key:' || id FROM api_key WHERE tenant_id IN ({_TENANTS}))
    OR response ->> 'organization_id' = %(organization)s::text
    OR response ->> 'tenant_id' IN (SELECT id::text FROM ({_TENANTS}) AS t))"""
# The rows of an organization, by the first of these columns that a table has, and of some tables.
_OF_ORGANIZATION = {
    "organization_id": "organization_id IS NOT DISTINCT FROM %(organization)s",
    "tenant_id": f"tenant_id IN ({_TENANTS})",
    "budget_id": "budget_id IN (SELECT id FROM budget WHERE organization_id = %(organization)s)",
    "invoice_id": "invoice_id IN (SELECT id FROM invoice WHERE organization_id = %(organization)s)",
    "account": _ORGANIZATIONS_ACCOUNT,
}
_OF_TABLE = {
    "applied_row": "owner IN (0, %(organization)s)",  # 0: files of staff are of all organizations
    "control_write": f"state IN ('done', 'refused') AND (account = 'user:' || %(none)s OR {_ORGANIZATIONS_ACCOUNT})",
    "organization": "id = %(organization)s",
    "usage_name": "organization_id = %(organization)s AND kind LIKE 'tag:%%'",
    "webhook_delivery": "payload ->> 'organization_id' IS NOT DISTINCT FROM %(organization)s::text",
}
# When nothing uses a row any more: by a column that its table has, and of some tables. Else nobody but a person may change its words.
_OUT_OF_USE = {"deleted_at": "deleted_at IS NOT NULL", "revoked_at": "revoked_at IS NOT NULL"}
_TABLE_OUT_OF_USE = {
    "job": "settled_at IS NOT NULL OR expires_at < now()", "model": "false",
    "run": "ended_at IS NOT NULL OR expires_at < now()", "share": "false",
}  # fmt: skip
# Columns, of every table or of one, that hold words of the product alone, or by which programs find and sum rows:
# what a caller writes is not there, so an id that equals such a word is not the user.
NOT_WORDS = frozenset({
    "account", "action", "admission", "billing", "billing_interval", "category", "country", "currency", "digest",
    "direction", "each", "event", "events", "exchange_rate", "fact", "format", "hold", "hour_factor", "hours_at",
    "interval", "invoicing", "kind", "ledger", "length", "mode", "model", "model_asked", "models", "number",
    "on_exhausted", "on_store_failure", "overage_policy", "payment_status", "pepper", "priority", "refused_kind",
    "remote", "reset_interval", "resource", "response_model", "role", "route", "service_tier", "services",
    "sha256", "span", "state", "status", "stripe_customer", "tax_category", "time_zone", "transaction_type",
    "unit", "unknown_usage", "unpriced", "unsettled", "user_header", "verb", "window",
    "call.reason", "charge.reason", "charge.source", "handover.customer", "invoice.source", "job.name",
    "price.source", "usage_outbox.name",
})  # fmt: skip
# Tables with their columns of text and JSON; rows of some never change.
_CATALOGUE = """
SELECT c.relname::text AS name, array_agg(a.attname::text) AS columns,
       jsonb_object_agg(a.attname, t.typname) FILTER (WHERE t.typcategory = 'S' OR t.typname = 'jsonb') AS texts,
       EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal AND tgtype & 16 > 0) AS is_fixed
  FROM pg_class AS c
  JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type AS t ON t.oid = a.atttypid
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
 GROUP BY c.oid ORDER BY c.relname"""

# By table: the condition for a user's rows, and the names of secret columns.
KEPT = {
    "app_user": ("id = %(id)s", ()),
    "api_key": (f"id IN ({_KEYS})", ("digest", "pepper")),
    "admin_token": ("user_id = %(id)s", ("digest", "pepper")),
    "console_session": (
        _THEIR_SESSIONS,
        ("digest", "token_digest", "renewal", "id_token", "provider_session"),
    ),
    "agent_sign_in": (
        f"token_id IN ({_TOKENS}) OR api_key_id IN ({_KEYS}) OR person = %(name)s AND token_id IN ({_SHARED})",
        ("seed", "user_code", "renewal"),
    ),
    "audit_log": (f"{_THEIR_AUDIT} OR {_LISTING_AUDIT}", ()),
    "budget": ('organization_id = %(organization)s AND "user" = %(name)s', ()),
    **dict.fromkeys(
        ("budget_override", "budget_raise"), (f"{_OF_THEM} AND name = %(name)s AND name <> value", ())
    ),
    "caller_group": ("organization_id = %(organization)s AND kind = 'user' AND members ? %(name)s", ()),
    "budget_use": (_THEIR_USE, ()),
    "signed_in_user": ("organization_id = %(organization)s AND name = %(name)s", ()),
    "raise_request": (f"requested_by IN ({_SCOPES}) OR {_OF_THEM} AND who = %(name)s", ()),
    "control_write": (
        f"account IN ({_ACCOUNTS}) OR {_ORGANIZATIONS_ACCOUNT} AND payload ->> 'user' = %(name)s",
        (),
    ),
    "call": ("user_id = %(id)s", ()),
    "usage_tag": ("user_id = %(id)s", ("tags_hash",)),
    **dict.fromkeys(_LEDGERS, ("user_id = %(id)s", ())),
}

# Tables whose JSON lists others beside the user.
_LISTS = frozenset({"audit_log", "caller_group"})

# Uses of the data that refuse a deletion, by the words of the refusal.
_REFUSALS = {
    "an API key of the user is in use: revoke it": f"""
SELECT FROM api_key
 WHERE id IN ({_KEYS}) AND revoked_at IS NULL AND coalesce(expires_at > now(), true)""",
    "an admin token of the user is in use: revoke it": f"""
SELECT FROM admin_token
 WHERE id IN ({_TOKENS}) AND revoked_at IS NULL AND coalesce(expires_at > now(), true)""",
    "a budget names the user: delete it": """
SELECT FROM budget WHERE organization_id = %(organization)s AND "user" = %(name)s AND deleted_at IS NULL""",
    "a write about the user is on its way: try again in a minute": f"""
SELECT FROM control_write WHERE state IN ('pending', 'applied')
   AND ({KEPT["control_write"][0]})""",
}
_SIGNED = """SELECT FROM ledger_head LIMIT 1"""
# All other names of metadata come from callers.
_OURS = (*CALL_NAMES, *ROW_MARKERS)
_SAID = "metadata - %(ours)s::text[] <> '{}' AND metadata IS NOT NULL AND user_id = %(id)s"
_CLEARED = """
UPDATE {table} SET metadata = (
    SELECT coalesce(jsonb_object_agg(key, value), '{{}}') FROM jsonb_each(metadata)
     WHERE key = ANY(%(ours)s::text[]) OR metadata ? (%(beside)s::jsonb ->> key))
 WHERE jsonb_typeof(metadata) = 'object' AND user_id = %(id)s"""
_NAMES = "'{external_id,name,user,who,subject,issuer,limits,reason}'::text[]"
# Values of tags that calls of the user have, and others.
_TAGGED = """SELECT FROM usage_tag AS u WHERE u.organization_id = n.organization_id AND u.user_id {} %(id)s
    AND u.tags ->> substr(n.kind, 5) = n.name"""
# The order matters: later statements find rows by names that earlier ones have not yet deleted.
_TAKEN_OUT = {
    "console_session": f"DELETE FROM console_session WHERE {_THEIR_SESSIONS}",
    "agent_sign_in": f"DELETE FROM agent_sign_in WHERE {KEPT['agent_sign_in'][0]}",
    # Of the organization alone: a request whose key is gone would be done again.
    "idempotency_key": f"""DELETE FROM idempotency_key
 WHERE actor IN ({_SCOPES}) OR {_ORGANIZATIONS_ANSWER} AND (split_part(actor, E'\\t', 3) = %(name)s
    OR %(name)s IN (response ->> 'user', response ->> 'who', response ->> 'external_id')
    OR strpos(path || '/', '/overrides/' || %(name)s || '/') + strpos(path || '/', '/members/' || %(name)s || '/') > 0
    OR %(distinct)s AND ({_SAYS.format(column="response")} OR key = %(name)s))""",
    "webhook_delivery": f"""DELETE FROM webhook_delivery
 WHERE payload ->> 'organization_id' IS NOT DISTINCT FROM %(organization)s::text
   AND {_SAYS.format(column="payload")}""",
    # Who wrote an entry that only lists them is somebody else.
    "audit_log": f"""UPDATE audit_log AS a
   SET before = {_RENAMED.format(column="a.before")} - f.names, after = {_RENAMED.format(column="a.after")} - f.names,
       (person, issuer, identity) = (SELECT a.person, a.issuer, a.identity WHERE f.names = '{{}}')
  FROM (SELECT id, created_at, CASE WHEN {_THEIR_AUDIT} THEN {_NAMES} ELSE '{{}}' END AS names FROM audit_log
         WHERE {KEPT["audit_log"][0]}) AS f
 WHERE (a.id, a.created_at) = (f.id, f.created_at)""",
    **{
        table: f"""UPDATE {table} SET {when}_person = NULL, {when}_issuer = NULL, {when}_identity = NULL
 WHERE {_BY_THEM.format(by=f"{when}_by", person=f"{when}_person")}"""
        for table, when in (("dead_letter", "resolved"), ("quarantine", "released"))
    },
    "lost_event": f"""UPDATE lost_event SET detail = detail - 'person'
 WHERE {_BY_THEM.format(by="detail ->> 'by'", person="detail ->> 'person'")}""",
    "budget_override": f"DELETE FROM budget_override WHERE {KEPT['budget_override'][0]}",
    "budget_raise": f"DELETE FROM budget_raise WHERE {KEPT['budget_raise'][0]}",
    "caller_group": f"UPDATE caller_group SET members = members - %(name)s WHERE {KEPT['caller_group'][0]}",
    # Used amounts stay, under another owner, so that nobody may use them again.
    **{
        table: f"UPDATE {table} SET value = %(none)s{name} WHERE {_THEIR_USE}"
        for table, name in (("budget_use", ", name = %(none)s"), ("budget_told", ""))
    },
    "signed_in_user": f"DELETE FROM signed_in_user WHERE {KEPT['signed_in_user'][0]}",
    "raise_request": f"""UPDATE raise_request SET reason = '-',
       who = CASE WHEN {_OF_THEM} AND who = %(name)s THEN %(none)s ELSE who END
 WHERE {KEPT["raise_request"][0]}""",
    "control_write": f"""UPDATE control_write
   SET account = CASE WHEN account IN ({_ACCOUNTS}) THEN 'user:' || %(none)s ELSE account END,
       payload = CASE WHEN payload ? 'user' THEN payload || jsonb_build_object('user', %(none)s::text)
                      ELSE payload END
 WHERE {KEPT["control_write"][0]}""",
    "call": "UPDATE call SET session = NULL, upstream_request_id = NULL, tags = NULL WHERE user_id = %(id)s",
    "usage_name": f"""DELETE FROM usage_name AS n WHERE organization_id = %(organization)s AND kind LIKE 'tag:%%'
   AND EXISTS ({_TAGGED.format("=")}) AND NOT EXISTS ({_TAGGED.format("<>")})""",
    "usage_tag": "UPDATE usage_tag SET tags = '{}' WHERE user_id = %(id)s AND tags <> '{}'",
    "usage_outbox": "UPDATE usage_outbox SET tags = '{}' WHERE user_id = %(id)s AND tags <> '{}'",
    "budget": f"""UPDATE budget SET "user" = %(none)s, name = %(none)s WHERE {KEPT["budget"][0]}""",
    "admin_token": """UPDATE admin_token SET name = %(none)s, issuer = NULL, subject = NULL
 WHERE user_id = %(id)s""",
    "api_key": f"""UPDATE api_key SET name = %(none)s, "user" = %(none)s, issuer = NULL, subject = NULL
 WHERE id IN ({_KEYS})""",
    "app_user": """UPDATE app_user
   SET external_id = %(none)s, name = NULL, limits = '{}', models = NULL WHERE id = %(id)s""",
}
_NOTED = """
INSERT INTO audit_log (actor, action, resource, resource_id, organization_id)
VALUES ('person delete', 'forget', 'users', %(id)s::text, %(organization)s)"""


# Ids that may be another thing's word, or what JSON has beside its texts: numbers, signs and three words.
_WORD = re.compile(r"[\w.:-]{1,19}|(?:true|false|null|[\W\d_])+")
# A whole word: `nada@example.com` and `ada@example.com.au` are somebody else.
_AS_WORD = r"(?<![\w.+@-]){}(?![\w@-]|\.\w)"
# In JSON neither from the middle of an escape on, nor in the name of a field.
_IN_JSON = r"(?<!(?:^|[^\\])(?:\\\\)*\\)" + _AS_WORD + r"""(?!(?:[^"\\]|\\.)*":)"""


@dataclass(frozen=True, slots=True)
class KeptPerson:
    """A user whose data is stored; `organization` is None for staff."""

    id: int
    name: str
    organization: int | None
    is_deleted: bool

    @property
    def is_distinct(self) -> bool:
        """Whether nothing else is likely to be called so, as something is called `42` or `default`."""
        return not _WORD.fullmatch(self.name)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the SQL statements; `none` is the text that replaces the user's names.

        `word` and `json_word` are patterns of the name in a text and in JSON. `sought` and `json_sought` are its text there.
        """
        quoted = json.dumps(self.name, ensure_ascii=False)
        escaped = quoted[1:-1]
        return {
            "distinct": self.is_distinct, "sought": self.name, "json_sought": escaped if self.is_distinct else quoted,
            "word": _AS_WORD.format(re.escape(self.name)), "json_word": _IN_JSON.format(re.escape(escaped)),
            "id": self.id, "name": self.name, "organization": self.organization,
            "none": f"{DELETED}{self.id}", "ours": list(_OURS), "beside": Jsonb(NAMES_BESIDE_MARKERS),
            "owner": owner_of(self.name),
        }  # fmt: skip


@contextmanager
def connect(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(plain_url(url), **CONNECT) as connection:
        yield connection


def find_person(connection: psycopg.Connection, user: str, organization: str | None) -> KeptPerson:
    """Return a user by external id, within an organization (id or name) if one is given.

    Raise `Conflict` if users of two organizations have that id, `NotFound` if no user has.
    """
    users = connection.execute(_FIND, {"user": user, "of": organization}).fetchall()
    if not users:
        raise NotFound(f"No user is called {user} there.")
    if len(users) > 1:
        raise Conflict(f"Users of two organizations are called {user}: name the organization.")
    return KeptPerson(*users[0])


def read_person(connection: psycopg.Connection, person: KeptPerson) -> Iterator[dict[str, Any]]:
    """Yield every stored row of a user as its table and JSON, without secrets, and without others of a group."""
    for table, (condition, secrets) in KEPT.items():
        statement = f"SELECT to_jsonb(r) - %(secrets)s::text[] AS row FROM {table} AS r WHERE {condition}"
        with connection.cursor(f"kept_{table}", row_factory=dict_row) as cursor:
            cursor.itersize = ROWS_AT_ONCE
            cursor.execute(statement.encode(), person.parameters | {"secrets": list(secrets)})
            for kept in cursor:
                row = _without_others(kept["row"], person.name) if table in _LISTS else kept["row"]
                yield {"table": table, "row": row}


def _without_others(row: Any, name: str) -> Any:
    """Return JSON whose lists of members, and of budgets' overrides, have the user alone."""
    if not isinstance(row, dict):
        return row
    own = {field: _without_others(value, name) for field, value in row.items()}
    for field, who in (("members", None), ("overrides", "who")):
        if isinstance(listed := own.get(field), list):
            own[field] = [
                entry for entry in listed if (entry.get(who) if isinstance(entry, dict) else entry) == name
            ]
    return own


def delete_person(
    connection: psycopg.Connection, person: KeptPerson, *, signed: bool = False
) -> dict[str, int]:
    """Delete the names and metadata of a user, in one transaction; return the number of rows by table.

    `Conflict` if the user is in use, or if rows of a signed ledger would change without `signed`.
    """
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
        if not person.is_deleted:
            raise Conflict("The user is not deleted: `tollkeeper user delete` first.")
        for reason, statement in _REFUSALS.items():
            if connection.execute(statement.encode(), person.parameters).fetchone() is not None:
                raise Conflict(f"Nothing was taken out: {reason}.")
        if not signed and _changes_signed_rows(connection, person):
            raise Conflict(
                "Nothing was taken out: heads of the ledger are signed, and rows of the user have metadata "
                "of callers, which their proof would miss. --signed takes it out all the same."
            )
        return _take_out(connection, person)


def _changes_signed_rows(connection: psycopg.Connection, person: KeptPerson) -> bool:
    """Return whether a person's data stand in rows that heads of the ledger proof signed."""
    if connection.execute(_SIGNED).fetchone() is None:
        return False
    statements = (f"SELECT FROM {ledger} WHERE {_SAID} LIMIT 1" for ledger in _LEDGERS)
    parameters = person.parameters | {"ours": [*_OURS, *NAMES_BESIDE_MARKERS]}
    return any(
        connection.execute(statement.encode(), parameters).fetchone() is not None for statement in statements
    )


def _take_out(connection: psycopg.Connection, person: KeptPerson) -> dict[str, int]:
    """Remove a person from all tables, also from those that never change; return rows by table."""
    _switch(connection, "audit_log", "DISABLE")
    changed = dict.fromkeys(_LEDGERS, 0)
    for table, statement in _TAKEN_OUT.items():
        changed[table] = connection.execute(statement.encode(), person.parameters).rowcount
    if person.is_distinct:
        for texts in _tables(connection):
            if not texts.is_fixed:
                cleaned = connection.execute(texts.clean.encode(), person.parameters).rowcount
                changed[texts.name] = changed.get(texts.name, 0) + cleaned
            in_use = f"{texts.rows} AND ({texts.out_of_use}) IS NOT TRUE"
            if named := texts.count(connection, person, in_use, whole=True):
                places = ", ".join(named)
                raise Conflict(
                    f"Nothing was taken out: rows in use have the user's id in {places}: change it there."
                )
    _switch(connection, "audit_log", "ENABLE")
    # Writers of ledgers wait from here on.
    for ledger in _LEDGERS:
        _switch(connection, ledger, "DISABLE")
        statement = _CLEARED.format(table=ledger)
        changed[ledger] = connection.execute(statement.encode(), person.parameters).rowcount
        _switch(connection, ledger, "ENABLE")
    connection.execute(_NOTED, person.parameters)
    return changed


@dataclass(frozen=True, slots=True)
class _Texts:
    """A table's columns of text and JSON, which is true, the condition of an organization's rows, and of those out of use."""

    name: str
    columns: Mapping[str, bool]
    rows: str
    out_of_use: str
    is_fixed: bool

    @property
    def clean(self) -> str:
        """The statement that takes a name out of rows that nothing uses."""
        words = [(f'"{column}"', "json_" if is_json else "") for column, is_json in self.columns.items()]
        values = ", ".join([
            f"{column} = regexp_replace({column}::text, %({kind}word)s, %(none)s, 'g')" + "::jsonb" * bool(kind)
            for column, kind in words
        ])  # fmt: skip
        mentions = " OR ".join([
            f"strpos({column}::text, %({kind}sought)s) > 0 AND {column}::text ~ %({kind}word)s" for column, kind in words
        ])  # fmt: skip
        return f"UPDATE {self.name} SET {values} WHERE {self.rows} AND ({self.out_of_use}) AND ({mentions})"

    def count(
        self, connection: psycopg.Connection, person: KeptPerson, rows: str, *, whole: bool
    ) -> dict[str, int]:
        """Return the number of rows by column that name a person, or with `whole` have no more than the name."""
        sought = _NAMED if whole else "%(json_sought)s"
        in_text = "{} = %(name)s" if whole else "strpos({}, %(name)s) > 0"
        tests = [
            (f"strpos({{}}::text, {sought}) > 0" if is_json else in_text).format(f'"{column}"')
            for column, is_json in self.columns.items()
        ]
        sums = ", ".join([f"count(*) FILTER (WHERE {test})" for test in tests])
        cursor = connection.execute(
            f"SELECT {sums} FROM {self.name} WHERE {rows}".encode(), person.parameters
        )
        [counts] = cursor.fetchall()
        return {
            f"{self.name}.{column}": count
            for column, count in zip(self.columns, counts, strict=True)
            if count
        }


def _tables(connection: psycopg.Connection) -> Iterator[_Texts]:
    """Yield the tables that have rows of organizations with texts."""
    for name, columns, texts, is_fixed in connection.execute(_CATALOGUE).fetchall():
        scopes = [_OF_TABLE.get(name), *(of for column, of in _OF_ORGANIZATION.items() if column in columns)]
        rows = next(filter(None, scopes), None)
        named = {
            column: kind == "jsonb"
            for column, kind in (texts or {}).items()
            if NOT_WORDS.isdisjoint({column, f"{name}.{column}"})
        }
        if rows is not None and named:
            ended = [_TABLE_OUT_OF_USE[name]] if name in _TABLE_OUT_OF_USE else []
            ended += [ends for column, ends in _OUT_OF_USE.items() if column in columns]
            yield _Texts(
                name, named, f"({rows})", " OR ".join(ended) or "true", is_fixed and name != "audit_log"
            )


def count_mentions(connection: psycopg.Connection, person: KeptPerson) -> dict[str, int]:
    """Return the number of rows, by table and column, that still name a person; of a short id those that equal it."""
    counts = dict[str, int]()
    for texts in _tables(connection):
        counts |= texts.count(connection, person, texts.rows, whole=not person.is_distinct)
    return counts


def _switch(connection: psycopg.Connection, table: str, how: str) -> None:
    statement = sql.SQL("ALTER TABLE {} {} TRIGGER append_only")
    connection.execute(statement.format(sql.Identifier(table), sql.SQL(how)))
