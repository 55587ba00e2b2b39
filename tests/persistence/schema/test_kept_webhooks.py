"""Webhooks from before their addresses were asked: those that staff wrote go on, others' are to agree."""

from __future__ import annotations

import psycopg

from persistence.schema import migrate
from tests.persistence.scenario import rows_of
from tests.persistence.schema.test_adopted_invoices import bring_to

# Of an organization: staff made it; staff made it, and its own token changed the events; its own token
# made it; staff made it, and its own token wrote the address; nothing is known of it. And one of all.
HISTORY = """
INSERT INTO organization (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'Acme');
INSERT INTO admin_token (id, name, role, organization_id, digest, prefix) OVERRIDING SYSTEM VALUE
VALUES (1, 'theirs', 'admin', 1, 'a', 'a'), (2, 'staff''s', 'admin', NULL, 'b', 'b');
INSERT INTO webhook (id, organization_id, url, secret) OVERRIDING SYSTEM VALUE
SELECT n, CASE WHEN n < 6 THEN 1 END, 'mailto:ada@example.com', 's' FROM generate_series(1, 6) AS n;
INSERT INTO audit_log (actor, action, resource, resource_id, admin_token_id, before, after)
VALUES ('a', 'create', 'webhooks', '1', 2, NULL, '{"url": "x"}'),
       ('a', 'create', 'webhooks', '2', 2, NULL, '{"url": "x"}'),
       ('a', 'change', 'webhooks', '2', 1, '{"url": "x"}', '{"url": "x"}'),
       ('a', 'test', 'webhooks', '2', 1, '{"url": "x"}', NULL),
       ('a', 'create', 'webhooks', '3', 1, NULL, '{"url": "x"}'),
       ('a', 'create', 'webhooks', '4', NULL, NULL, '{"url": "x"}'),
       ('a', 'change', 'webhooks', '4', 1, '{"url": "x"}', '{"url": "y"}');"""


def test_whose_addresses_are_in_webhooks_is_known_from_who_wrote_them(database: str) -> None:
    bring_to(database, "0091")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT ensure_partitions(now(), 3)")
        connection.execute(HISTORY)
    migrate.upgrade(database)
    ours = [row_id for row_id, ours in rows_of(database, "SELECT id, ours FROM webhook ORDER BY id") if ours]
    assert ours == [1, 2, 5, 6]
