"""The facts of one call as one text: gateways write it, scripts pass it on, the flusher makes rows of it.

An entry's metadata is either a JSON object (control writes) or the facts of a call: a JSON array. New facts come
last, each with a default, so that older and newer readers use those that they know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from gateway.core.billing.price_book import KINDS, NO_COUNTS
from gateway.core.times import moment_of, rfc3339

# Positions in `counts`.
INPUT, CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, OUTPUT, REASONING = range(6)
NONE = msgspec.Raw(b"null")
# An entry has two bytes for the length of its metadata, and a correction adds some bytes.
FACTS_BYTES_MAX = 60_000
TEXT_CHARACTERS_MAX = 256
UNKNOWN_BYTES_MAX = 4096
SEPARATOR = ", "
# A model, the id of its price, and tokens by `KINDS`.
ModelCounts = tuple[str, int, tuple[int, ...]]
# The key in a ledger row's metadata for tokens of other models within a call, which have separate prices.
OTHER_MODELS = "other_models"
# Keys in a ledger row's metadata besides the caller's. Each call has `CALL_NAMES`. Views and roll-ups depend
# on the markers, which callers cannot write. A key of `NAMES_BESIDE_MARKERS` is ours only with its marker.
CALL_NAMES = (
    "model", "streamed", "status", "duration_ms", "input", "output", "cached", "reasoning", "estimated",
)  # fmt: skip
ROW_MARKERS = (
    "corrects", "forgiven", "forgives", OTHER_MODELS, "reclaimed", "supplied_on", "told_on", "unreadable",
)  # fmt: skip
NAMES_BESIDE_MARKERS = {"reason": "corrects", "used_at": "supplied_on"}


class CallFacts(msgspec.Struct, array_like=True):
    """The facts of one settled call. `counts` are tokens by `KINDS`, `total` is how many tokens are charged.

    `tools` counts uses of the provider's tools by name. `cost` is in nano-units of `currency`, None if no
    price applies. `first_token_ms` is None without output. `metadata` is the caller's, `unknown` are fields
    of the provider's report that this program does not know: JSON objects, unchanged. `corrects` is the id of
    a request that was charged by its observed use and is corrected here. `reason` is why a call failed or is
    corrected. `used_ms` is the time of use that was reported afterwards; 0 is the time of the charge.
    `unpriced` names tools without a price, which `cost` does not include. `exchange_rate` is the rate that
    converted the price, empty for none. `beside` are tokens of other models within the call, with separate
    prices: (model, price id, tokens by `KINDS`). If a price changes by the hour, `hour` is the time by which it was
    charged (Unix ms), and the factor of the model's price then. `tags` are those that its organization declares,
    `groups` ids of those that its caller was in. Where a step of a budget sent the call as `model`, `step` is the
    model that its caller named, the budget's id and name, and what the answer would have cost more as that model
    (in nano-units of `currency`, below 0 if less; None if unknown).
    """

    model: str = ""
    response_model: str = ""
    streamed: bool = False
    status: int = 0
    duration_ms: int = 0
    first_token_ms: int | None = None
    counts: tuple[int, ...] = NO_COUNTS
    total: int = 0
    units: int = 0
    estimated: bool = False
    tools: dict[str, int] = {}
    service_tier: str = ""
    cost: int | None = None
    currency: str = ""
    price_id: int = 0
    route: str = ""
    session: str = ""
    upstream_request_id: str = ""
    metadata: msgspec.Raw = NONE
    unknown: msgspec.Raw = NONE
    corrects: str = ""
    reason: str = ""
    used_ms: int = 0
    unpriced: str = ""
    exchange_rate: str = ""
    beside: tuple[ModelCounts, ...] = ()
    hour: tuple[int, str] | None = None
    tags: dict[str, str] = {}
    groups: tuple[int, ...] = ()
    step: tuple[str, int, str, int | None] | None = None

    @property
    def priced_ms(self) -> int:
        return 0 if self.hour is None else self.hour[0]

    @property
    def hour_factor(self) -> str:
        return "" if self.hour is None else self.hour[1]


def named_unpriced(names: Iterable[str]) -> str:
    """Join the names of tools without a price as text for `CallFacts.unpriced`, cut to its maximum length."""
    return SEPARATOR.join(names)[:TEXT_CHARACTERS_MAX]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallFacts).decode
_objects = msgspec.json.Decoder(dict[str, Any]).decode


def write_facts(facts: CallFacts | tuple[Any, ...]) -> bytes:
    """Return the encoded facts of a call; a tuple has their values in the order of fields.

    Facts above `FACTS_BYTES_MAX` lose the parts that no charge depends on (see `briefly`).
    """
    written = _encode(facts)
    return written if len(written) <= FACTS_BYTES_MAX else _encode(briefly(facts))


def briefly(facts: CallFacts | tuple[Any, ...]) -> CallFacts:
    """Return the facts of a call without tools, metadata and unknown fields, and with texts shortened."""
    whole = facts if isinstance(facts, CallFacts) else CallFacts(*facts)
    fields = asdict(whole).items()
    texts = {name: value[:TEXT_CHARACTERS_MAX] for name, value in fields if isinstance(value, str)}
    return replace(whole, **texts, tools={}, metadata=NONE, unknown=NONE)


def read_facts(metadata: bytes) -> CallFacts | None:
    """Return the facts of a call from the metadata of an outbox entry; None if it has no such facts."""
    if metadata[:1] != b"[":
        return None
    try:
        facts = _decode(metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(facts.counts) != len(KINDS):  # a newer version wrote more kinds
        facts.counts = (facts.counts + NO_COUNTS)[: len(KINDS)]
    return facts


def facts_in(metadata: bytes) -> CallFacts:
    """Return a call's facts from a JSON object of metadata, as versions before `CallFacts` wrote it."""
    fields = _decode_fields(metadata)
    read, cached = _whole(fields.get("input")), _whole(fields.get("cached"))
    counts = [0] * len(KINDS)
    counts[INPUT], counts[CACHE_READ] = max(0, read - cached), min(cached, read)
    counts[OUTPUT], counts[REASONING] = _whole(fields.get("output")), _whole(fields.get("reasoning"))
    model = fields.get("model")
    return CallFacts(
        model=model if isinstance(model, str) else "",
        streamed=fields.get("streamed") is True,
        status=_whole(fields.get("status")),
        duration_ms=_whole(fields.get("duration_ms")),
        counts=tuple(counts),
        total=read + counts[OUTPUT],
        units=1,
        estimated=fields.get("estimated") is True,
    )


def reclaimed_in(metadata: bytes) -> tuple[int | None, int]:
    """Return the tokens and the units that a reclaimed call is charged, from the metadata of its entry.

    Tokens are None if the plan does not weigh them. Units are 1 if an older version wrote the entry
    without units.
    """
    fields = _decode_fields(metadata)
    tokens, units = fields.get("tokens"), fields.get("units")
    return None if tokens is None else _whole(tokens), 1 if units is None else _whole(units)


def mark_as_correction(metadata: bytes, request_id: str, reason: str) -> bytes:
    """Return a settlement's metadata with the id of the request that it corrects, and the reason."""
    facts = read_facts(metadata)
    if facts is None:
        own = _objects(metadata) if metadata else {}
        return _encode({**own, "corrects": request_id, "reason": reason})
    facts.corrects, facts.reason = request_id, reason
    return _encode(facts)


def told_of(facts: CallFacts) -> bytes:
    """Return the metadata for a ledger row as JSON: that of the caller, with the call's public facts."""
    counts = facts.counts
    read = counts[INPUT] + counts[CACHE_READ] + counts[CACHE_WRITE] + counts[CACHE_WRITE_1H]
    of_call = (
        facts.model, facts.streamed, facts.status, facts.duration_ms, read, counts[OUTPUT],
        counts[CACHE_READ], counts[REASONING], facts.estimated,
    )  # fmt: skip
    ours: dict[str, object] = dict(zip(CALL_NAMES, of_call, strict=True))
    if facts.corrects:
        ours |= {"corrects": facts.corrects, "reason": facts.reason}
    if facts.beside:
        ours[OTHER_MODELS] = [
            {"model": model, "price_id": price_id}
            | {kind: count for kind, count in zip(KINDS, counts, strict=False) if count}
            for model, price_id, counts in facts.beside
        ]
    if facts.used_ms:
        used_at = rfc3339(moment_of(facts.used_ms))
        ours |= {"used_at": used_at, "supplied_on": used_at[:10]}
    theirs = bytes(facts.metadata)
    if theirs == b"null":
        return _encode(ours)
    # Read and written with the same library as in the gateway, so all that it accepted is stored.
    try:
        document = json.loads(theirs)
        for marker in ROW_MARKERS:
            document.pop(marker, None)
        return json.dumps(document | ours, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):  # no gateway wrote it
        return _encode({**ours, "unreadable": True})


def read_other_models(value: object) -> list[ModelCounts]:
    """Return (model, price id, tokens by `KINDS`) for each other model in a row's metadata.

    Empty if the value has another form than `told_of` writes.
    """
    try:
        parts = msgspec.convert(value or [], list[dict[str, int | str]])
        return [
            (str(part["model"]), int(part["price_id"]), tuple([int(part.get(kind, 0)) for kind in KINDS]))
            for part in parts
        ]
    except (msgspec.ValidationError, KeyError, ValueError):
        return []


def _decode_fields(metadata: bytes) -> dict[str, Any]:
    try:
        return _objects(metadata) if metadata else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
