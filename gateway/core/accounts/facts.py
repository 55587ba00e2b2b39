"""What one call did, in one text: from the gateway, unread by the scripts, to the rows it becomes.

An entry's metadata is either a JSON object, as control writes have it, or the facts of a call: a JSON array
by place. New facts come last, each with a default, so that older and newer readers take what they know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec.structs import asdict, replace

from gateway.core.billing.vector import KINDS, NO_COUNTS
from gateway.core.moments import moment_of, rfc3339

# Where in the counts.
INPUT, CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, OUTPUT, REASONING = range(6)
NONE = msgspec.Raw(b"null")
# An entry says the length of its metadata in two bytes, and a correction says a little more.
FACTS_BYTES_MAX = 60_000
TEXT_CHARACTERS_MAX = 256
UNKNOWN_BYTES_MAX = 4096
SEPARATOR = ", "


class CallFacts(msgspec.Struct, array_like=True):
    """One settled call. `counts` are tokens by `KINDS`, `total` is how many tokens are charged.

    `tools` counts uses of the provider's tools by name. `cost` is in nano-units of `currency`, None where no
    price says what the call costs. `first_token_ms` is None where nothing was produced. `metadata` is the
    caller's, `unknown` what the provider reported and nobody here knows: JSON objects, as they came. What
    `corrects` a request tells what it really used, where it was charged by what was seen of it. `reason`
    says why a call failed, else why it is corrected. `used_ms` is when it was used, where that is told of use
    that did not pass the gateway; 0 is when it is charged. `unpriced` names the tools that no price covers,
    which are not in `cost`.
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

    @property
    def lacks_price(self) -> bool:
        """Whether something it used has no price."""
        return bool(self.unpriced) or (self.cost is None and self.total > 0)


def named_unpriced(names: Iterable[str]) -> str:
    """Names of tools as a call has them."""
    return SEPARATOR.join(names)[:TEXT_CHARACTERS_MAX]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallFacts).decode
_objects = msgspec.json.Decoder(dict[str, Any]).decode


def write_facts(facts: CallFacts) -> bytes:
    """The facts as they travel; without what nothing is charged by where an entry has no room for all."""
    written = _encode(facts)
    return written if len(written) <= FACTS_BYTES_MAX else _encode(briefly(facts))


def briefly(facts: CallFacts) -> CallFacts:
    """The facts without what is only kept as it came, and no text longer than it is stored."""
    said = asdict(facts).items()
    texts = {name: value[:TEXT_CHARACTERS_MAX] for name, value in said if isinstance(value, str)}
    return replace(facts, **texts, tools={}, metadata=NONE, unknown=NONE)


def read_facts(metadata: bytes) -> CallFacts | None:
    """The facts of a call; None where an entry's metadata is something else."""
    if metadata[:1] != b"[":
        return None
    try:
        facts = _decode(metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if len(facts.counts) != len(KINDS):  # more are a newer version's
        facts.counts = (facts.counts + NO_COUNTS)[: len(KINDS)]
    return facts


def facts_in(metadata: bytes) -> CallFacts:
    """What an entry says whose metadata is an object: as entries said it before they had facts."""
    said = _said(metadata)
    read, cached = _whole(said.get("input")), _whole(said.get("cached"))
    counts = [0] * len(KINDS)
    counts[INPUT], counts[CACHE_READ] = max(0, read - cached), min(cached, read)
    counts[OUTPUT], counts[REASONING] = _whole(said.get("output")), _whole(said.get("reasoning"))
    model = said.get("model")
    return CallFacts(
        model=model if isinstance(model, str) else "",
        streamed=said.get("streamed") is True,
        status=_whole(said.get("status")),
        duration_ms=_whole(said.get("duration_ms")),
        counts=tuple(counts),
        total=read + counts[OUTPUT],
        units=1,
        estimated=said.get("estimated") is True,
    )


def reclaimed_in(metadata: bytes) -> tuple[int | None, int]:
    """How many tokens a reclaimed call had, None where its plan counts them as they are; and its units.

    One unit where an older keeper wrote it, which said none.
    """
    said = _said(metadata)
    tokens, units = said.get("tokens"), said.get("units")
    return None if tokens is None else _whole(tokens), 1 if units is None else _whole(units)


def corrected(metadata: bytes, request_id: str, reason: str) -> bytes:
    """What a settlement says once it corrects what was charged for its request before."""
    facts = read_facts(metadata)
    if facts is None:
        own = _objects(metadata) if metadata else {}
        return _encode({**own, "corrects": request_id, "reason": reason})
    facts.corrects, facts.reason = request_id, reason
    return _encode(facts)


def told_of(facts: CallFacts) -> bytes:
    """The metadata of a ledger's row: what the caller said, and what it may be told of its call."""
    counts = facts.counts
    ours: dict[str, object] = {
        "model": facts.model,
        "streamed": facts.streamed,
        "status": facts.status,
        "duration_ms": facts.duration_ms,
        "input": counts[INPUT] + counts[CACHE_READ] + counts[CACHE_WRITE] + counts[CACHE_WRITE_1H],
        "output": counts[OUTPUT],
        "cached": counts[CACHE_READ],
        "reasoning": counts[REASONING],
        "estimated": facts.estimated,
    }
    if facts.corrects:
        ours |= {"corrects": facts.corrects, "reason": facts.reason}
    if facts.used_ms:
        used_at = rfc3339(moment_of(facts.used_ms))
        ours |= {"used_at": used_at, "supplied_on": used_at[:10]}
    theirs = bytes(facts.metadata)
    if theirs == b"null":
        return _encode(ours)
    # As the gateway reads and writes what callers say: what it took in is stored.
    try:
        return json.dumps(json.loads(theirs) | ours, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError, RecursionError):  # no gateway of ours wrote it
        return _encode({**ours, "unreadable": True})


def _said(metadata: bytes) -> dict[str, Any]:
    try:
        return _objects(metadata) if metadata else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
