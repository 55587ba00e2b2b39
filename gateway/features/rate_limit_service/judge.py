"""From a question of Envoy's to holds at the gateway: all descriptors of one have room, or none is charged.

It knows no gRPC. What it asks the gateway over HTTP is bounded in time and tries.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

import msgspec

from gateway.core.accounts.caller_holds import TOKENS_MAX
from gateway.features.rate_limit_service.messages import (
    DESCRIPTORS_MAX,
    OK,
    OVER_LIMIT,
    Descriptor,
    DescriptorStatus,
    RateLimitQuestion,
    write_response,
)
from gateway.features.rate_limit_service.table import (
    ENTRIES_MAX,
    VALUE_CHARACTERS_MAX,
    RateLimitRule,
    RateLimitTable,
)

TRIES_MAX: Final = 3
PAUSE_S: Final = 0.05
# An amount that is known beforehand is settled at once; it is charged as held where that fails.
SETTLED_TTL_S: Final = 60
HOLDS: Final = "/.tollkeeper/holds"
_UNAVAILABLE: Final = "counters_unavailable"
_INVALID: Final = "invalid_request"
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_TOLD_PREFIXES: Final = ("ratelimit", "x-ratelimit-")
_TOLD: Final = frozenset(
    {
        "retry-after", "x-tollkeeper-reason", "x-tollkeeper-budget", "x-tollkeeper-tokens-remaining",
        "x-tollkeeper-credits-remaining",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HoldsReply:
    """What the gateway answered, its fields in lower case; `tries` is how often it was asked."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1

    @property
    def document(self) -> dict[str, Any]:
        """Its object; an empty one where something else answered in the gateway's place."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {}


# Method, path, fields and body; None where nobody answered in time.
AskOnce = Callable[[str, str, Mapping[str, str], bytes], Awaitable[HoldsReply | None]]


@dataclass(frozen=True, slots=True)
class DescriptorVerdict:
    """What one descriptor came to, with the fields and the body that its client may see."""

    over: bool
    remaining: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def status(self) -> DescriptorStatus:
        after = dict(self.headers).get("retry-after", "")
        reset_s = int(after) if after.isascii() and after.isdigit() and len(after) < 10 else None
        return DescriptorStatus(OVER_LIMIT if self.over else OK, self.remaining, reset_s)


@dataclass(slots=True)
class _DescriptorHold:
    """A hold of one descriptor, and what it comes to once all are known; None where it stays open."""

    verdict: DescriptorVerdict
    id: str = ""
    key: str = ""
    charge: Mapping[str, Any] | None = None
    looks: bool = False
    is_end: bool = False


def refused(reason: str, detail: str = "") -> DescriptorVerdict:
    """A refusal of our own."""
    headers = [("x-tollkeeper-reason", reason)]
    if reason == _UNAVAILABLE:
        headers.append(("retry-after", "1"))
    return DescriptorVerdict(True, None, tuple(headers), detail.encode())


_PASSED: Final = DescriptorVerdict(False)


class RateLimitJudge:
    """Answers questions by a table; `ask` reaches its gateway. `failed` is told what could not be settled."""

    def __init__(self, table: RateLimitTable, ask: AskOnce, failed: Callable[[str], None]) -> None:
        self._table, self._ask_once, self._failed = table, ask, failed

    @property
    def unavailable(self) -> DescriptorVerdict:
        """The answer where the gateway gives none, or too much is asked at once."""
        if self._table.on_failure == "allow":
            return _PASSED
        return refused(_UNAVAILABLE, "The gateway did not answer in time.")

    async def judge(self, asked: RateLimitQuestion) -> bytes:
        """The answer to one question."""
        if not 0 < len(asked.descriptors) <= DESCRIPTORS_MAX:
            said = f"A question has 1 to {DESCRIPTORS_MAX} descriptors."
            return write_response((), *_told([refused(_INVALID, said)]), code=OVER_LIMIT)
        holds = await asyncio.gather(*(self._one(asked.domain, each) for each in asked.descriptors))
        over = any(one.verdict.over for one in holds)
        await asyncio.gather(*(self._ended(one, over) for one in holds if one.id))
        verdicts = [one.verdict for one in holds]
        return write_response([one.status for one in verdicts], *_told(verdicts))

    async def _one(self, domain: str, asked: Descriptor) -> _DescriptorHold:
        entries = dict(asked.entries)
        fault = _fault(domain, asked, entries)
        if fault:
            return _DescriptorHold(refused(_INVALID, fault))
        rule = next((one for one in self._table.rules if one.fits(domain, entries)), None)
        if rule is None:
            if self._table.on_unknown == "allow":
                return _DescriptorHold(_PASSED)
            return _DescriptorHold(refused(_INVALID, "No rule fits the entries of this descriptor."))
        key = rule.key_of(entries)
        if _KEY.fullmatch(key) is None:
            return _DescriptorHold(refused("invalid_api_key", "The entry has no API key."))
        if not rule.call and asked.gives_back:
            return _DescriptorHold(refused(_INVALID, "Hits are given back to a rule with `call` alone."))
        is_end = bool(rule.end) and rule.end in entries
        return await (self._end if is_end else self._begin)(domain, rule, entries, key, asked)

    async def _begin(
        self, domain: str, rule: RateLimitRule, entries: dict[str, str], key: str, asked: Descriptor
    ) -> _DescriptorHold:
        amount = rule.hold or asked.hits or 1
        once = _call_id(domain, rule, entries) if rule.call else str(uuid4())
        reply = await self._take(rule, entries, key, amount, once)
        if reply is None:
            return _DescriptorHold(self.unavailable)
        verdict = _verdict(reply)
        if verdict.over:
            return _DescriptorHold(verdict)
        if rule.call and reply.tries == 1 and "idempotent-replayed" in reply.headers:
            return _DescriptorHold(refused("idempotency_conflict", "A call of this id has begun already."))
        charge = None if rule.call else _use(rule, amount)
        return _DescriptorHold(
            verdict, reply.document["id"], key, charge, looks=not (rule.call or asked.hits)
        )

    async def _end(
        self, domain: str, rule: RateLimitRule, entries: dict[str, str], key: str, asked: Descriptor
    ) -> _DescriptorHold:
        """What a call used, which is charged also where it is more than was held."""
        reply = await self._take(rule, entries, key, rule.hold, _call_id(domain, rule, entries))
        if reply is None:
            self._failed("the end of a call")
            return _DescriptorHold(self.unavailable)
        verdict = _verdict(reply)
        if verdict.over:
            return _DescriptorHold(verdict)
        id_ = reply.document["id"]
        if (
            "idempotent-replayed" not in reply.headers
        ):  # nothing was held for it: it was refused, or never asked
            said = "No call of this id has begun."
            return _DescriptorHold(refused("hold_not_found", said), id_, key, looks=True, is_end=True)
        used = max(0, rule.hold - asked.hits) if asked.gives_back else asked.hits
        return _DescriptorHold(
            verdict, id_, key, _use(rule, used) if used else None, looks=not used, is_end=True
        )

    async def _take(
        self, rule: RateLimitRule, entries: dict[str, str], key: str, amount: int, once: str
    ) -> HoldsReply | None:
        said: dict[str, Any] = {
            "service": rule.said(rule.service, entries),
            "max_tokens" if rule.unit == "tokens" else "amount": amount,
            "ttl_s": rule.ttl_s if rule.call else SETTLED_TTL_S,
        }
        said |= {
            name: rule.said(value, entries) for name in ("model", "user") if (value := getattr(rule, name))
        }
        reply = await self._ask("POST", HOLDS, key, said, {"idempotency-key": once})
        taken = reply is None or reply.status >= 400 or isinstance(reply.document.get("id"), str)
        return reply if taken else None

    async def _ended(self, hold: _DescriptorHold, over: bool) -> None:
        """Settle or give back; what stays open has an end of its own."""
        path = f"{HOLDS}/{hold.id}"
        if hold.looks or (over and not hold.is_end):
            reply = await self._ask("DELETE", path, hold.key)
        elif hold.charge is not None:
            reply = await self._ask("POST", f"{path}/settle", hold.key, hold.charge)
        else:
            return
        if reply is None or reply.status >= 400:
            self._failed(f"hold {hold.id}")

    async def _ask(
        self, method: str, path: str, key: str, said: Mapping[str, Any] | None = None,
        more: Mapping[str, str] | None = None,
    ) -> HoldsReply | None:  # fmt: skip
        """Ask, again while nobody answers or it is no time for it; None where that stays so."""
        body = b"" if said is None else msgspec.json.encode(said)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **(more or {})}
        for tries in range(1, TRIES_MAX + 1):
            reply = await self._ask_once(method, path, headers, body)
            if reply is not None and reply.status < 500:
                return HoldsReply(reply.status, reply.headers, reply.body, tries)
            if tries < TRIES_MAX:
                await asyncio.sleep(PAUSE_S)
        return None


def _fault(domain: str, asked: Descriptor, entries: Mapping[str, str]) -> str:
    """The fault of a descriptor; empty where it has none."""
    if not domain:
        return "A question names its domain."
    if not 0 < len(asked.entries) <= ENTRIES_MAX:
        return f"A descriptor has 1 to {ENTRIES_MAX} entries."
    if len(entries) < len(asked.entries):
        return "An entry stands twice in a descriptor."
    if any(not 0 < len(part) <= VALUE_CHARACTERS_MAX for entry in entries.items() for part in entry):
        return f"Keys and values of entries have 1 to {VALUE_CHARACTERS_MAX} characters."
    if asked.overridden:
        return "Limits are those of accounts: a descriptor brings none."
    if asked.hits > TOKENS_MAX:
        return f"hits_addend is at most {TOKENS_MAX}."
    return ""


def _call_id(domain: str, rule: RateLimitRule, entries: Mapping[str, str]) -> str:
    """By which the two questions of a call find one hold, at whichever process they are asked."""
    named = sorted((name, value) for name, value in entries.items() if name != rule.end)
    return "rls-" + sha256(msgspec.json.encode([domain, *named])).hexdigest()


def _use(rule: RateLimitRule, amount: int) -> dict[str, Any]:
    return {"usage": {"output": amount}} if rule.unit == "tokens" else {"units": amount}


def _verdict(reply: HoldsReply) -> DescriptorVerdict:
    headers = tuple(
        (name, value)
        for name, value in reply.headers.items()
        if name in _TOLD or name.startswith(_TOLD_PREFIXES)
    )
    if reply.status < 400:  # a hold was taken
        remaining = reply.document.get("remaining")
        return DescriptorVerdict(False, remaining if isinstance(remaining, int) else None, headers)
    kind = ("content-type", reply.headers.get("content-type", "text/plain"))
    return DescriptorVerdict(True, 0 if reply.status == 429 else None, (*headers, kind), reply.body)


def _told(verdicts: list[DescriptorVerdict]) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """Fields and body of the answer: of the first refusal, or else of the limit that is nearest."""
    nearest = min(
        verdicts, key=lambda one: (not one.over, one.remaining is None, 0 if one.over else one.remaining or 0)
    )
    return nearest.headers, nearest.body
