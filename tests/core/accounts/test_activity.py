"""Who is busy, told in few rows."""

from __future__ import annotations

from gateway.core.accounts.refusals import NOBODY, bounded, busiest

COUNTS = {
    (7, "requests"): 5, (7, "tokens"): 500, (8, "requests"): 2, (8, "rate_limited"): 9,
    (9, "requests"): 1, (NOBODY, "invalid_api_key"): 40,
}  # fmt: skip


def test_tenants_are_ranked_by_their_calls_refused_ones_included() -> None:
    everybody, tenants = busiest(COUNTS.items(), 2)
    assert [(busy.tenant_id, busy.requests, busy.tokens, busy.refused) for busy in tenants] == [
        (8, 2, 0, {"rate_limited": 9}),
        (7, 5, 500, {}),
    ]
    assert (everybody.requests, everybody.tokens) == (8, 500)
    assert everybody.refused == {"rate_limited": 9, "invalid_api_key": 40}


def test_the_same_count_from_several_gateways_adds_up() -> None:
    _, [busy] = busiest([*COUNTS.items(), *COUNTS.items()], 1)
    assert (busy.tenant_id, busy.requests, busy.refused) == (8, 4, {"rate_limited": 18})


def test_too_many_tenants_are_nobody_and_nothing_is_lost() -> None:
    kept = bounded(COUNTS, 1)
    assert {tenant_id for tenant_id, _ in kept} == {8, NOBODY}
    assert busiest(kept.items(), 9)[0] == busiest(COUNTS.items(), 9)[0]
    assert bounded(COUNTS, 4) == COUNTS
