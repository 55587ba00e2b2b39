"""How `extend` and its answer are packed: many live calls of one partition, what each needs."""

from __future__ import annotations

from gateway.core.model import Observed
from gateway.counters.layouts import table
from gateway.counters.layouts.packing import Call
from gateway.counters.redis import keys


def extended(answer: bytes) -> list[tuple[int, int, int]]:
    """The answer of `extend`: (hold in tokens or -1, in credits, exhausted) a call; none if unverified."""
    return [
        (int(tokens), int(credits_), int(exhausted))
        for tokens, credits_, exhausted in table.EXTENDED.struct.iter_unpack(answer[table.CODE.size :])
    ]


def extend(run_id: bytes, ttl_ms: int, partition: int, live: list[tuple[Observed, int]]) -> Call:
    """Keys and arguments of `extend`; `live` is each call and the tokens it may need on top of those seen."""
    names = [keys.marker(partition), keys.deadlines(partition), keys.outbox(partition)]
    arguments = [run_id, str(ttl_ms).encode()]
    for one, margin in live:
        names += [
            keys.hold(partition, one.request_id),
            keys.tenant_state(partition, one.caller.tenant_id),
            keys.organization_state(partition, one.caller.organization_id),
        ]
        tokens, rate = one.tokens, one.rate
        seen, wanted = (-1, 0) if rate is None else (rate.credits(tokens), rate.credits(tokens + margin))
        arguments.append(table.EXTEND.pack(tokens, tokens + margin, seen, wanted, one.request_id.encode()))
    return tuple(names), tuple(arguments)
