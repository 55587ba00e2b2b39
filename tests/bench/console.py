"""Milliseconds to the first byte of each page of the console over a database of full size, slowest first.

The database is filled by PostgreSQL itself: 100,000 tenants, 10,000,000 rows of the token ledger, a tenth
of them of one tenant, and 1,000,000 calls of 30 days with their roll-ups, half of them of one organization,
with everything else in proportion. Prints a table: wall time, which another load of the machine makes longer,
and the processor time of keeper, client and PostgreSQL together, which it hardly does. A list of nothing
is what any page takes then.
Usage: python -m tests.bench.console [--tenants N] [--rows N] [--calls N] [--rounds N]
    [--url URL of a filled database]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from gateway.admin.application import build
from persistence import engine as engines
from persistence.ledger import rollup
from persistence.schema import migrate
from tests.admin.conftest import ADMIN, MemoryCounters, ports_over
from tests.admin.console.conftest import Person
from tests.bench.flush import postgres

BUDGET_MS = 200.0
ORGANIZATIONS_SHARE = 5  # tenants an organization
WORDS = "ARRAY['Acme','Zenith','Orbit','Nimbus','Harbor','Quartz','Vertex','Lumen','Cobalt','Juniper']"
# The last organization has a fifth of all tenants, the others have a handful.
OWNER = "CASE WHEN n > {tenants} * 4 / 5 THEN {organizations} ELSE 1 + n % ({organizations} - 1) END"
AGO = "now() - ({n} % 3900000) * interval '1 second'"

# Each fills one table; {tenants}, {organizations} and {rows} are numbers.
FILL = (
    f"""INSERT INTO organization (name, credit_balance)
SELECT ({WORDS})[1 + n % 10] || ' ' || ({WORDS})[1 + n / 10 % 10] || ' ' || n, 1000
  FROM generate_series(1, {{organizations}}) AS n""",
    """INSERT INTO token_plan (name, total_amount) SELECT 'Plan ' || n, n * 1000000
  FROM generate_series(1, 50) AS n""",
    f"""INSERT INTO tenant (organization_id, name, plan_id)
SELECT {OWNER}, ({WORDS})[1 + n % 10] || '-' || ({WORDS})[1 + n / 7 % 10] || ' team ' || n,
       1 + n % 50 FROM generate_series(1, {{tenants}}) AS n""",
    """INSERT INTO tenant_quota (tenant_id, plan_id, total, tokens_used, tokens_remaining, last_seq, epoch)
SELECT n, 1 + n % 50, 1000000, n % 900000, 1000000 - n % 900000, 90, 1
  FROM generate_series(1, {tenants}) AS n""",
    """INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, created_at,
                          epoch, seq, cycle, request_id, service_id, metadata)
SELECT CASE WHEN n % 10 = 0 THEN 1 ELSE 2 + n % ({tenants} - 1) END,
       CASE WHEN n % 400 = 0 THEN 'recharge' ELSE 'consume' END, 100, 1000000,
       CASE WHEN n % 400 = 0 THEN 'IN' ELSE 'OUT' END,
       now() - ({rows} - n) * interval '45 days' / {rows}, 1,
       n / CASE WHEN n % 10 = 0 THEN 1 ELSE {tenants} - 1 END, 1, gen_random_uuid(), 1 + n % 6,
       jsonb_build_object('model', 'model-' || n % 5, 'input', 60, 'output', 40)
  FROM generate_series(1, {rows}) AS n""",
    f"""INSERT INTO usage_daily (day, organization_id, tenant_id, service_id, requests, tokens, credits)
SELECT current_date - d, {OWNER}, n, s, 3, 300, 1
  FROM generate_series(1, {{tenants}}) AS n, generate_series(0, 29) AS d, generate_series(1, 6) AS s
 WHERE s = 1 OR n <= 100""",
    """INSERT INTO api_key (tenant_id, name, digest, prefix)
SELECT n, 'server', encode(sha256(n::text::bytea), 'hex'), 'tk_abcde'
  FROM generate_series(1, {tenants}) AS n""",
    """INSERT INTO app_user (organization_id, external_id)
SELECT 1 + n % {organizations}, 'user-' || n FROM generate_series(1, {tenants}) AS n""",
    """INSERT INTO organization_service (organization_id, service_id, negotiated_credits)
SELECT n, 1 + n % 6, n FROM generate_series(1, {organizations}) AS n""",
    """INSERT INTO credit_addition (organization_id, credits_added, spent, timestamp)
SELECT 1 + n % {organizations}, 1000, n % 1000, """
    + AGO
    + """ FROM generate_series(1, 3 * {organizations}) AS n""",
    """INSERT INTO credit_transaction (organization_id, tenant_id, feature_id, "timestamp", credits_used,
                                balance_after, epoch, seq, request_id)
SELECT CASE WHEN n <= {rows} / 50 THEN 1 ELSE 2 + n % ({organizations} - 1) END, 1, 1 + n % 6,
       now() - ({rows} / 10 - n) * interval '45 days' / ({rows} / 10), 2, 1000, 1,
       CASE WHEN n <= {rows} / 50 THEN n ELSE n / ({organizations} - 1) END, gen_random_uuid()
  FROM generate_series(1, {rows} / 10) AS n""",
    """INSERT INTO feature_usage (organization_id, tenant_id, feature_id, "timestamp", usage_amount, epoch,
                           seq, request_id)
SELECT CASE WHEN n <= {rows} / 50 THEN 1 ELSE 2 + n % ({organizations} - 1) END, 1, 1 + n % 6,
       now() - ({rows} / 10 - n) * interval '45 days' / ({rows} / 10), 2, 1,
       CASE WHEN n <= {rows} / 50 THEN n ELSE n / ({organizations} - 1) END, gen_random_uuid()
  FROM generate_series(1, {rows} / 10) AS n""",
    """INSERT INTO invoice (organization_id, number, status, payment_status, currency, period_start,
                     period_end, total_amount)
SELECT 1 + n % {organizations}, 'INV-' || n, CASE WHEN n % 100 = 0 THEN 'void' ELSE 'finalized' END,
       CASE WHEN n % 100 <> 0 THEN 'open' END, 'USD',
       current_date - 60, current_date - 30, 100 FROM generate_series(1, 2 * {organizations}) AS n""",
    """INSERT INTO invoice_line (invoice_id, position, kind, description, service_id, quantity, unit_price,
                          amount)
SELECT n, p, 'usage', 'Line ' || p, 1, 10, 2, 20
  FROM generate_series(1, 2 * {organizations}) AS n, generate_series(1, 5) AS p
UNION ALL SELECT {organizations}, p, 'overage', 'Overage ' || p, 1, 10, 2, 20
  FROM generate_series(6, {tenants} / 5) AS p""",
    """INSERT INTO subscription_plan (name, monthly_cost, annual_cost) SELECT 'Gold ' || n, 10, 100
  FROM generate_series(1, 20) AS n""",
    """INSERT INTO organization_subscription (organization_id, plan_id, start_date, end_date, status)
SELECT n, 1 + n % 20, current_date - 30, current_date + 300, 'active'
  FROM generate_series(1, {organizations}) AS n""",
    """INSERT INTO subscription_segment (organization_id, plan_id, billing_interval, cost, anchor_date,
                                  start_date, end_date)
SELECT n, 1 + n % 20, 'monthly', 10, current_date - 30, current_date - 30, current_date + 300
  FROM generate_series(1, {organizations}) AS n""",
    """INSERT INTO audit_log (actor, action, resource, resource_id, after, created_at)
SELECT CASE WHEN n = 7 THEN 'token:1' ELSE 'builtin:admin' END, 'recharge', 'tenants',
       (1 + n % {tenants})::text, '{{"amount": 5}}', """
    + AGO
    + """ FROM generate_series(1, 5 * {tenants}) AS n""",
    """INSERT INTO control_write (account, verb, state) SELECT 'tenant:' || n, 'recharge', 'done'
  FROM generate_series(1, {tenants}) AS n""",
    """INSERT INTO webhook (url, secret) SELECT 'https://example.com/' || n, 's'
  FROM generate_series(1, 20) AS n""",
    """INSERT INTO webhook_delivery (webhook_id, event, occasion, state)
SELECT 1 + n % 20, 'quota.80', 'o' || n, 'delivered' FROM generate_series(1, {tenants}) AS n""",
    """INSERT INTO dead_letter (partition, entry_id, raw, reason, organization_id)
SELECT n % 64, n || '-0', '\\x00', 'malformed', n FROM generate_series(1, 5000) AS n""",
    # Twenty calls of a tenant's key come together; a tenth is refused.
    """INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, user_id, service_id,
                  model, response_model, input, cache_read, cache_write, cache_write_1h, output, reasoning,
                  audio_input, audio_output, image_input, image_output, tokens, credits, units, cost,
                  currency, status, reason, streamed, estimated, duration_ms, refused)
SELECT gen_random_uuid(), now() - ({calls} - n) * interval '30 days' / {calls}, t.organization_id, t.id, t.id,
       1 + b % 997, 1 + b % 6, 'model-' || n / 10 % 20, 'model-' || n / 10 % 20, 60 * u, 0, 0, 0,
       40 * u, 0, 0, 0, 0, 0, 100 * u, 0, u, 25000 * u, 'USD', CASE u WHEN 1 THEN 200 ELSE 429 END,
       CASE u WHEN 0 THEN 'budget_exceeded' END, false, false, 800, u = 0
  FROM generate_series(1, {calls}) AS n CROSS JOIN LATERAL (SELECT least(n % 10, 1) AS u, n / 20 AS b) AS used
  JOIN tenant AS t ON t.id = CASE b % 2 WHEN 0 THEN {tenants} - b % 499 ELSE 1 + b % 4999 % {tenants} END""",
    """CREATE TEMP TABLE hours AS
SELECT organization_id, date_trunc('hour', created_at, 'UTC') AS start, tenant_id, api_key_id, user_id,
       -1::bigint AS project_id, service_id, model, 'USD' AS currency, sum(units) AS requests,
       sum(1 - units) AS refused, sum(input) AS input, 0::bigint AS cache_read, 0::bigint AS cache_write,
       0::bigint AS cache_write_1h, sum(output) AS output, 0::bigint AS reasoning, sum(tokens) AS tokens,
       0::bigint AS credits, sum(units) AS units, sum(cost) AS cost, 0::bigint AS estimated,
       0::bigint AS unpriced FROM call GROUP BY 1, 2, 3, 4, 5, 7, 8""",
    rollup.ADD_HOURS,
    """INSERT INTO budget (organization_id, name, tenant_id, each, unit, amount, "interval")
SELECT t.organization_id, 'Budget ' || t.id, t.id, CASE t.id % 2 WHEN 0 THEN 'user' END, 'money', 20,
       'month' FROM tenant AS t WHERE t.id <= 1000 OR t.id > {tenants} - 1000""",
    """INSERT INTO budget_use (budget_id, start, value, name, used)
SELECT b.id, date_trunc('month', now(), 'UTC'), coalesce(md5(p::text), ''),
       CASE WHEN b.each IS NULL THEN '' ELSE 'user-' || p END, 1000000000 + b.id * 1000000
  FROM budget AS b, generate_series(1, 50) AS p WHERE b.each IS NOT NULL OR p = 1 ON CONFLICT DO NOTHING""",
)

# A page's name and its address; every round asks for other rows.
PAGES: tuple[tuple[str, Callable[[int], str]], ...] = (
    ("a list of nothing", lambda n: "/exchange-rates"),
    ("overview", lambda n: "/"),
    ("overview of 24 hours", lambda n: "/?range=24h"),
    ("overview of 90 days", lambda n: "/?range=90d"),
    ("overview of the largest", lambda n: "/?organization_id={last}"),
    ("overview of a tenant", lambda n: f"/?tenant_id={1 + n}"),
    ("health", lambda n: "/health"),
    ("overview, live", lambda n: "/live"),
    ("usage and cost", lambda n: "/usage"),
    ("usage and cost of a tenant", lambda n: f"/usage?tenant_id={1 + n * 7}&group_by=model,user"),
    ("usage and cost of the largest", lambda n: "/usage?organization_id={last}&group_by=tenant,model"),
    ("usage and cost by hour", lambda n: "/usage?range=7d&interval=hour&group_by=user"),
    ("calls", lambda n: "/calls"),
    ("calls of the largest", lambda n: "/calls?organization_id={last}"),
    ("calls of an organization", lambda n: f"/calls?organization_id={1 + n}"),
    ("calls of a tenant", lambda n: f"/calls?tenant_id={1 + n}"),
    ("calls of a tenant without any", lambda n: f"/calls?tenant_id={6000 + n}"),
    ("calls of a key", lambda n: f"/calls?api_key_id={1 + n}"),
    ("calls of a user", lambda n: f"/calls?user_id={1 + n}"),
    ("calls of a model", lambda n: f"/calls?model=model-{n}"),
    ("calls of a model without any", lambda n: f"/calls?model=none-{n}"),
    ("calls refused for a reason", lambda n: "/calls?reason=budget_exceeded"),
    ("calls refused for a reason: none", lambda n: "/calls?reason=rate_limited"),
    ("call", lambda n: f"/calls/{1 + n * 97}"),
    ("budgets", lambda n: "/budgets"),
    ("budgets of the largest", lambda n: "/budgets?organization_id={last}"),
    ("budget", lambda n: f"/budgets/{1 + n}"),
    ("balances", lambda n: "/balances"),
    ("unbilled", lambda n: "/unbilled"),
    ("receivables", lambda n: "/receivables"),
    ("search for a name", lambda n: f"/search?q=team+{n * 991}"),
    ("search for a user", lambda n: f"/search?q=user-{1 + n * 991}"),
    ("search for a key", lambda n: "/search?q=tk_abcde"),
    ("organizations", lambda n: "/organizations"),
    ("tenants of an organization by name", lambda n: f"/tenants?organization_id={1 + n}&sort=name"),
    ("organizations, search", lambda n: f"/organizations?search=zen+{n * 13}"),
    ("organization", lambda n: f"/organizations/{1 + n * 7}"),
    ("organization of 20,000 tenants", lambda n: "/organizations/{last}"),
    ("tenants", lambda n: "/tenants"),
    ("tenants, search for one", lambda n: f"/tenants?search=team+{n * 991}"),
    ("tenants, search for many", lambda n: "/tenants?search=acme"),
    ("tenants, search for most", lambda n: "/tenants?search=team"),
    ("tenants, search for many words", lambda n: "/tenants?search=" + "+".join(["t", "te", "tea"] * 16)),
    ("tenants, search for none", lambda n: f"/tenants?search=nobody{n}"),
    ("tenants of an organization", lambda n: f"/tenants?organization_id={1 + n * 3}"),
    ("tenant", lambda n: f"/tenants/{2 + n * 97}"),
    ("tenant with a million movements", lambda n: "/tenants/1"),
    ("what it got", lambda n: "/tenants/1?direction=IN"),
    ("uses that came in: none", lambda n: "/tenants/1?direction=IN&transaction_type=consume"),
    ("its recharges", lambda n: "/tenants/1?transaction_type=recharge"),
    ("its ledger of a day", lambda n: "/tenants/1?from={day}&to={day}"),
    ("its cost by service", lambda n: "/tenants/1?by=service"),
    ("API keys", lambda n: "/api-keys"),
    ("API key", lambda n: f"/api-keys/{1 + n}"),
    ("user", lambda n: f"/users/{1 + n}"),
    ("users of an organization", lambda n: f"/users?organization_id={1 + n}"),
    ("credits", lambda n: "/credit-additions"),
    ("credits of an organization", lambda n: f"/credit-additions?organization_id={1 + n}"),
    ("credit transactions", lambda n: "/credit-transactions"),
    ("credit transactions of one", lambda n: "/credit-transactions?organization_id=1"),
    ("of one and a service", lambda n: "/credit-transactions?organization_id=1&feature_id=3"),
    ("of a service", lambda n: "/credit-transactions?feature_id=3"),
    ("feature usage of a day", lambda n: "/feature-usage?from={day}&to={day}"),
    ("subscriptions", lambda n: "/organization-subscriptions"),
    ("invoices", lambda n: "/invoices"),
    ("invoices, void", lambda n: "/invoices?status=void"),
    ("invoice", lambda n: f"/invoices/{1 + n}"),
    ("invoice of 20,000 lines", lambda n: "/invoices/{last}"),
    ("negotiated prices", lambda n: "/organization-services"),
    ("audit log", lambda n: "/audit-log"),
    ("audit log of a tenant", lambda n: f"/audit-log?resource=tenants&resource_id={n}"),
    ("audit log of an actor", lambda n: "/audit-log?actor=token:1"),
    ("deliveries", lambda n: "/webhook-deliveries"),
    ("dead letters", lambda n: "/dead-letters"),
)


# Pages of people who are no staff: the role, what its token is of, and the address.
OWN_PAGES = (
    ("operator", "tenant", "/me"),
    ("operator", "tenant", "/team"),
    ("readonly", "organization", "/account"),
)


def fill(url: str, *, tenants: int, rows: int, calls: int) -> None:
    """Fill a migrated database; triggers rest meanwhile."""
    organizations = tenants // ORGANIZATIONS_SHARE
    numbers = {"tenants": tenants, "organizations": organizations, "rows": rows, "calls": calls, "n": "n"}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SELECT ensure_partitions(now() - interval '31 days', 3)")
        for statement in FILL:
            connection.execute(statement.format(**numbers))  # type: ignore[arg-type]  # SQL of our own
        connection.execute("VACUUM ANALYZE")


@dataclass(frozen=True, slots=True)
class Measured:
    """One page: milliseconds of each round, sorted; processor milliseconds a round; bytes."""

    name: str
    wall: list[float]
    cpu: float
    size: int

    @property
    def p50(self) -> float:
        return self.wall[len(self.wall) // 2]

    @property
    def p95(self) -> float:
        return self.wall[int(len(self.wall) * 0.95)]


def processor_s(url: str) -> float:
    """Processor seconds this process and the database's backends have used."""
    with psycopg.connect(url) as connection:
        pids = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    total = time.process_time()
    for (pid,) in pids:
        with contextlib.suppress(psutil.Error):
            used = psutil.Process(pid).cpu_times()
            total += used.user + used.system
    return total


async def measured(name: str, url: str, rounds: int, ask: Callable[[int], Awaitable[int]]) -> Measured:
    """So many answers, of which `ask` says how large each is."""
    taken, size, before = [], 0, processor_s(url)
    for n in range(rounds):
        started = time.perf_counter()
        size = await ask(n)
        taken.append((time.perf_counter() - started) * 1000)
    return Measured(name, sorted(taken), (processor_s(url) - before) * 1000 / rounds, size)


async def measure(url: str, rounds: int) -> list[Measured]:
    """Every page of the table."""
    engine = engines.create(url)
    found = []
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86_400))
    with psycopg.connect(url) as connection:
        last = str(connection.execute("SELECT max(id) FROM organization").fetchall()[0][0])
    server = TestServer(build(ports_over(engine, MemoryCounters(url))))
    async with TestClient(server, cookie_jar=DummyCookieJar()) as client:
        person = Person(client)
        await person.sign_in(ADMIN)
        for name, address in PAGES:

            async def ask(n: int, name: str = name, address: Callable[[int], str] = address) -> int:
                page = await person.open(address(n).replace("{day}", day).replace("{last}", last))
                assert page.status == 200, (name, page.status, re.sub(r"<[^>]+>", "", page.text)[-500:])
                return len(page.text)

            found.append(await measured(name, url, rounds, ask))
        for role, scope, address in OWN_PAGES:
            own = Person(client)
            await own.sign_in(await token_of(client, role, last, scope == "tenant"))

            async def ask_own(_: int, own: Person = own, address: str = address) -> int:
                page = await own.open(address)
                assert page.status == 200, (address, page.status)
                return len(page.text)

            found.append(await measured(f"{address} of a {scope}", url, rounds, ask_own))
    await engine.dispose()
    return found


async def token_of(client: TestClient[Any, Any], role: str, organization: str, of_tenant: bool) -> str:
    """A token of an organization, or of its last tenant."""
    said = {"Authorization": f"Bearer {ADMIN}"}
    asked: dict[str, object] = {"name": role, "role": role, "organization_id": int(organization)}
    if of_tenant:
        listed = {"organization_id": organization, "limit": "1"}
        async with client.get("/admin/v1/tenants", params=listed, headers=said) as answer:
            asked["tenant_id"] = (await answer.json())["items"][0]["id"]
    async with client.post("/admin/v1/admin-tokens", json=asked, headers=said) as answer:
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["token"])


@contextlib.contextmanager
def given(url: str) -> Iterator[str]:
    yield url


def main() -> int:
    """Fill, measure, print; 1 if a page is slower than it may be."""
    parser = argparse.ArgumentParser(prog="console")
    parser.add_argument("--tenants", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--url", help="a database that is filled already")
    options = parser.parse_args()
    with given(options.url) if options.url else postgres() as url:
        if not options.url:
            migrate.upgrade(url)
            started = time.perf_counter()
            fill(url, tenants=options.tenants, rows=options.rows, calls=options.calls)
            print(f"filled in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        found = asyncio.run(measure(url, options.rounds))
    print(f"{'page':36}{'p50 ms':>9}{'p95 ms':>9}{'worst':>9}{'CPU ms':>9}{'kB':>7}")
    for page in sorted(found, key=lambda each: -each.p95):
        print(
            f"{page.name:36}{page.p50:9.1f}{page.p95:9.1f}{page.wall[-1]:9.1f}{page.cpu:9.1f}"
            f"{page.size / 1000:7.0f}"
        )
    return int(any(page.p95 > BUDGET_MS for page in found))


if __name__ == "__main__":
    sys.exit(main())
