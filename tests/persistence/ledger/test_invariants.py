"""Each invariant view finds the contradiction it is there for."""

from __future__ import annotations

import pytest

from persistence import engine
from persistence.ledger import checkpoints
from tests.connections import connected
from tests.persistence.scenario import settle_in

TOKEN = (
    "INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, seq,"
    " request_id, created_at, epoch, cycle)"
    " VALUES ({t}, '{kind}', {amount}, {left}, '{way}', {seq}, {request}, now(), 1, 1)"
)
CREDIT = (
    "INSERT INTO credit_transaction (organization_id, tenant_id, credits_used, balance_after, seq,"
    ' feature_id, "timestamp", epoch) VALUES ({o}, {t}, {used}, {left}, {seq}, 1, now(), 1)'
)
SPEND = (
    "INSERT INTO feature_usage (organization_id, tenant_id, spend, spent_after, seq, usage_amount,"
    ' feature_id, "timestamp", epoch) VALUES ({o}, {t}, {used}, {left}, {seq}, 1, 1, now(), 1)'
)
REQUEST = "'00000000-0000-4000-8000-000000000001'"
INVOICE = (
    "INSERT INTO invoice (organization_id, currency, period_start, period_end, total_amount)"
    " VALUES ({o}, 'USD', '2026-01-01', '2026-01-31', 3)"
)
PAYMENT = (
    "INSERT INTO payment (organization_id, invoice_id, amount, currency, reference)"
    " SELECT organization_id, id, 1, currency, 'x' FROM invoice"
)
CHARGE = (
    "INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount,"
    " currency, source, source_id, fact, tenant_id)"
    " VALUES ({o}, '{kind}', '2026-01-01Z', '2026-01-02Z', 2, 3, 6, 'USD', '{source}', {id}, 'x', 1)"
)
CHARGE_OF_SERVICE = CHARGE.replace("tenant_id)", "tenant_id, service_id)").replace("'x', 1)", "'x', 1, 1)")
DISCOUNT = (
    "INSERT INTO service_discount (organization_id, service_id, month, rate, is_due)"
    " VALUES ({o}, 1, '2026-01-01', 0.1, false)"
)
ROLL_UP = (
    "INSERT INTO usage_daily (day, organization_id, tenant_id, service_id, tokens)"
    " VALUES ('2026-01-01', {o}, {t}, 1, 7)"
)
CALL = (
    "INSERT INTO call (request_id, created_at, organization_id, tenant_id, api_key_id, input, cache_read,"
    " cache_write, cache_write_1h, output, reasoning, audio_input, audio_output, image_input, image_output,"
    " tokens, credits, units, status, streamed, estimated, duration_ms) VALUES"
    " (gen_random_uuid(), now(), {o}, {t}, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 1, 200, false, false, 5)"
)
BUDGET = (
    'INSERT INTO budget (organization_id, name, unit, amount, "interval", updated_at)'
    " VALUES ({o}, 'b', 'money', 1, 'day', '2026-01-01')"
)
BUDGET_USE = "INSERT INTO budget_use (budget_id, start, used) SELECT id, '2026-01-02', 5 FROM budget"
ALLOCATION = "INSERT INTO credit_allocation (organization_id, seq, amount) VALUES ({o}, 1, 4)"
CHECKPOINT = (
    "INSERT INTO account_checkpoint (account, first_seq, last_seq, month, movements, amount)"
    " VALUES ('tenant:{t}', 0, 1, '2026-01-01', 1, 99)"
)
# Begins behind a place where none ends.
LATER_CHECKPOINT = CHECKPOINT.replace("0, 1,", "5, 9,")
QUOTA = "UPDATE tenant_quota SET last_seq = 1, epoch = 1, cycle = 1, {change} WHERE tenant_id = {t}"


def reset(amount: int) -> str:
    return _filled(TOKEN, seq=1, kind="reset", way="IN", amount=amount, left=amount, request="NULL")


def consume(seq: int, amount: int, left: int, *, request: str = "NULL") -> str:
    return _filled(TOKEN, seq=seq, kind="consume", way="OUT", amount=amount, left=left, request=request)


def _filled(statement: str, **values: object) -> str:
    """The statement with everything but the account's ids."""
    return statement.format(o="{o}", t="{t}", **values)


# Statements that break each invariant, and perhaps others with it.
CONTRADICTIONS = {
    "chain": [reset(100), consume(2, 10, 91)],
    "gapless": [reset(100), consume(3, 10, 90)],
    "checkpoints": [reset(100), CHECKPOINT, LATER_CHECKPOINT],
    "quota": [reset(100), _filled(QUOTA, change="tokens_remaining = 99")],
    "blocked": [_filled(QUOTA, change="tokens_remaining = 0, is_blocked = false")],
    "credits": ["UPDATE organization SET credit_balance = 5 WHERE id = {o}"],
    "carried": ["UPDATE organization SET credit_ahead = 5 WHERE id = {o}"],
    "request_once": [reset(100), consume(2, 10, 90, request=REQUEST), consume(3, 10, 80, request=REQUEST)],
    "rollup": [ROLL_UP],
    "allocations": [
        _filled(CREDIT, used=5, left=-5, seq=1),
        ALLOCATION,
        "UPDATE organization SET allocated_seq = 1",
    ],
    "drawn": ["INSERT INTO credit_addition (organization_id, credits_added, spent) VALUES ({o}, 9, 5)"],
    "invoice": [INVOICE],
    "payments": [INVOICE, PAYMENT],
    "owed": [CHARGE.format(o="{o}", kind="usage", source="usage_tier", id=1)],
    "service_discounts": [
        CHARGE_OF_SERVICE.format(o="{o}", kind="usage", source="usage_tier", id=1),
        DISCOUNT,
    ],
    "days": [CHARGE.format(o="{o}", kind="subscription", source="subscription_segment", id=1)],
    "usage_adds_up": [CALL],
    "budgets": [BUDGET, BUDGET_USE],
}


@pytest.mark.parametrize("name", checkpoints.INVARIANTS)
async def test_a_contradiction_is_found(migrated: str, name: str) -> None:
    found = await _violations(migrated, CONTRADICTIONS[name])
    assert name in {violation.invariant for violation in found}


@pytest.mark.parametrize(("account", "statement"), [("credits", CREDIT), ("spend", SPEND)])
async def test_every_account_has_its_chain(migrated: str, account: str, statement: str) -> None:
    sign = -1 if account == "credits" else 1
    rows = [_filled(statement, used=5, left=sign * left, seq=seq) for seq, left in ((1, 5), (2, 11))]
    found = await _violations(migrated, rows)
    chains = [violation for violation in found if violation.invariant == "chain"]
    assert [(violation.account.split(":")[0], violation.seq) for violation in chains] == [(account, 2)]


async def test_an_empty_database_contradicts_nothing(migrated: str) -> None:
    assert await _violations(migrated, []) == []


async def _violations(url: str, statements: list[str]) -> list[checkpoints.Violation]:
    [account] = settle_in(url, 100)
    with connected(url) as connection:
        for statement in statements:
            connection.execute(statement.format(o=account.organization_id, t=account.tenant_id))
    pool = engine.create(url)
    async with pool.connect() as connection:
        found = await checkpoints.violations(connection)
    await pool.dispose()
    return found
