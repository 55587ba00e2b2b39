"""Whatever an entry says, and whatever is none: the letter that keeps it can be shown."""

from __future__ import annotations

import base64
import json
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.admin.resources.integrity import DeadLetter
from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.outbox import CARRIED, ENTRY, HEAD, PRICED, VERSION, EventFlag
from gateway.core.billing.money import PriceTier, pack_tiers
from tests.search import examples

FIELDS = [field for field in ENTRY.fields if not field.is_text and field.name != "version"]
AT = datetime(2026, 1, 1, tzinfo=UTC)
NOBODY = (
    "organization_id", "tenant_id", "epoch", "token_seq", "credit_seq", "spend_seq", "resolved_at",
    "resolution", "resolved_by", "resolved_issuer", "resolved_identity", "resolved_person", "resolved_reason",
)  # fmt: skip
ROW = dict.fromkeys(NOBODY) | {"id": 1, "partition": 0, "entry_id": "1-1", "reason": "why", "created_at": AT}

doubles = st.one_of(st.floats(), st.integers(-(2**60), 2**60).map(float))
documents: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
facts = st.builds(
    CallFacts,
    model=st.text(max_size=5),
    counts=st.lists(st.integers(-(2**63), 2**63), max_size=12).map(tuple),
    tools=st.dictionaries(st.text(max_size=3), st.integers(0, 2**63), max_size=3),
    cost=st.none() | st.integers(0, 2**63),
).map(write_facts)
hostile = st.sampled_from(
    [b'{"a":NaN}', b'{"a":"\\ud800"}', b'{"a":' * 900 + b"1" + b"}" * 900, b"{", b"[1]"]
)
metadata = st.one_of(st.binary(max_size=40), documents.map(json.dumps).map(str.encode), facts, hostile)
tails = st.one_of(
    st.binary(max_size=40),
    st.lists(doubles, min_size=4, max_size=4).map(lambda four: struct.pack("<4d", *four)),
    st.lists(doubles, min_size=2, max_size=2).map(lambda two: CARRIED.pack(*two)),
)


def entry(numbers: list[float], texts: list[bytes], metadata: bytes, tail: bytes) -> bytes:
    packed = HEAD.pack(VERSION, *numbers)
    for of_length, text in zip(("<B", "<H", "<H", "<H", "<H"), (*texts, metadata, b""), strict=True):
        packed += struct.pack(of_length, len(text)) + text
    return packed + tail


numbers = st.tuples(*(st.integers(0, 255) if at < 3 else doubles for at in range(len(FIELDS)))).map(list)
texts = st.lists(st.text(max_size=9).map(str.encode) | st.binary(max_size=9), min_size=3, max_size=3)
entries = st.builds(entry, numbers, texts, metadata, tails)


def shown(raw: bytes) -> dict[str, Any]:
    answered = DeadLetter.model_validate({**ROW, "raw": raw}).model_dump(mode="json")
    return dict(json.loads(json.dumps(answered, ensure_ascii=False, allow_nan=False).encode()))


def call(flags: EventFlag, tail: bytes) -> bytes:
    said = write_facts(CallFacts(model="gpt-4o", cost=7, tools={"web_search": 2}))
    return entry([1, flags, 0, *[5.0] * (len(FIELDS) - 3)], [b"source", b"eve", b""], said, tail)


@given(st.binary(max_size=300) | entries)
@example(call(EventFlag.CREDITS, CARRIED.pack(3, 4)))
@example(call(EventFlag.USAGE, PRICED.pack(float("nan")) + struct.pack("<3d", -1, float("inf"), 0)))
@settings(max_examples=examples(400))
def test_dead_letter_of_arbitrary_bytes_is_shown(raw: bytes) -> None:
    assert base64.b64decode(shown(raw)["raw"]) == raw


def test_dead_letter_of_a_call_shows_model_cost_tools_and_price_tiers() -> None:
    tiers = pack_tiers([PriceTier(100, Decimal(10)), PriceTier(None, Decimal("0.5"))])
    said = shown(call(EventFlag.USAGE, PRICED.pack(7) + tiers))["event"]
    assert said["priced"] == {
        "units_before": 7,
        "tiers": [
            {"up_to": 100, "unit_price": "10.000000000000"},
            {"up_to": None, "unit_price": "0.500000000000"},
        ],
    }
    facts = said["facts"]
    assert (facts["model"], facts["cost"], facts["tools"]) == ("gpt-4o", 7, {"web_search": 2})
    assert said["metadata"]["model"] == "gpt-4o"
    carried = shown(call(EventFlag.CREDITS, CARRIED.pack(3, 4)))["event"]
    assert (carried["ahead"], carried["carried"], carried["priced"]) == (3, 4, None)
