"""Whatever accounts do, in whatever pieces and however often it is delivered, the rows agree."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts.flush_batch import fan_out
from gateway.core.accounts.outbox import EventFlag, EventKind
from persistence.ledger.writer import LedgerWriter
from tests.persistence.migrated import empty
from tests.persistence.scenario import Account, broken, rows_of, settle_in
from tests.search import examples

DAY_MS = 86_400_000
SEVEN_HOURS_MS = 7 * 3_600_000

AMOUNT = st.integers(0, 500)
STEP = st.one_of(
    st.tuples(
        st.just("consume"),
        st.none() | AMOUNT,
        st.none() | AMOUNT,
        st.none() | AMOUNT,
        st.sampled_from(["", "ada", "bob"]),
    ),
    st.tuples(st.just("reset")),
    st.tuples(st.just("recharge"), AMOUNT),
    st.tuples(st.just("adjust"), st.integers(-500, 500)),
    st.tuples(st.just("credit"), st.integers(-500, 500).filter(bool)),
    st.tuples(st.just("block"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1, SEVEN_HOURS_MS, DAY_MS, 31 * DAY_MS])),
    st.tuples(st.just("epoch")),
)  # fmt: skip
# Which account moves, and what it does.
HISTORY = st.lists(st.tuples(st.integers(0, 2), STEP), min_size=1, max_size=40)
# Where batches are cut, and how far back each delivery reaches.
CUTS = st.lists(st.tuples(st.integers(1, 15), st.integers(0, 20)), min_size=1, max_size=8)


def play(account: Account, step: tuple[object, ...]) -> None:
    match step:
        case ("consume", tokens, credits_, units, user):
            if tokens is None and credits_ is None and units is None:
                return
            spend = units * 3 if isinstance(units, int) else 0
            account.consume(tokens, credits_=credits_, units=units, spend=spend, user=user)  # type: ignore[arg-type]  # as drawn above
        case ("reset",):
            account.reset()
        case ("recharge", int(amount)):
            account.grant(EventKind.RECHARGE, amount)
        case ("adjust", int(amount)):
            account.grant(EventKind.ADJUST, amount)
        case ("credit", int(amount)):
            account.credit(amount)
        case ("block", bool(blocked)):
            account.mark(blocked=blocked)
        case ("wait", int(ms)):
            account.at_ms += ms
        case _:
            account.epoch += 1


@given(history=HISTORY, cuts=CUTS, together=st.booleans())
@settings(max_examples=examples(25))
def test_random_histories_keep_every_invariant(
    shared: str, history: list[tuple[int, tuple[object, ...]]], cuts: list[tuple[int, int]], together: bool
) -> None:
    empty(shared)
    accounts = settle_in(shared, 1000, 300, None, together=together)
    for account in accounts:
        account.at_ms = int(datetime(2026, 10, 30, tzinfo=UTC).timestamp() * 1000)
        account.reset()
    for which, step in history:
        play(accounts[which], step)
    streams: dict[int, list[tuple[bytes, bytes]]] = {}
    for account in accounts:
        streams.setdefault(account.partition, []).extend(account.take())
    for entries in streams.values():
        entries.sort()
    writer = LedgerWriter(shared)
    try:
        at = 0
        for forward, back in [*cuts, (10_000, 5)]:
            start, at = max(0, at - back), at + forward
            pieces = {partition: entries[start:at] for partition, entries in streams.items()}
            report = writer.write_now(fan_out(pieces))
            assert (report.quarantined, report.held, report.dead_letters) == ([], 0, 0)
            assert report.entries() == sum(map(len, pieces.values()))
            assert asyncio.run(broken(shared)) == []
    finally:
        writer.close()
    for account in accounts:
        remaining = None if account.total is None else account.remaining
        assert rows_of(
            shared,
            "SELECT tokens_used, tokens_remaining, is_blocked, manual_block, last_seq, cycle, credit_balance,"
            " spent FROM tenant_quota JOIN tenant ON id = tenant_id"
            " JOIN organization AS o ON o.id = organization_id"
            " WHERE tenant_id = %s",
            [account.tenant_id],
        ) == [
            (
                account.used, remaining, bool(account.status() & EventFlag.BLOCKED), account.manual,
                account.seq, account.cycle, account.balance, account.spent,
            )
        ]  # fmt: skip
