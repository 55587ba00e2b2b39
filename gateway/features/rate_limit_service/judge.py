"""Turns rate limit requests into holds at the gateway: all descriptors of one have room, or none is charged.

It knows no gRPC. Its HTTP requests to the gateway are bounded in time and tries.
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

from gateway.core.accounts.caller_holds import TOKENS_MAX, TTL_S_MAX
from gateway.features.rate_limit_service.messages import (
    DESCRIPTORS_MAX,
    OK,
    OVER_LIMIT,
    Descriptor,
    DescriptorStatus,
    RateLimitQuestion,
    write_committed,
    write_reserved,
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
# The lifetime of a hold that is settled at once. If that fails, it is charged when it expires.
SETTLED_TTL_S: Final = 60
HOLDS: Final = "/.tollkeeper/holds"
_UNAVAILABLE: Final = "counters_unavailable"
_INVALID: Final = "invalid_request"
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
# A reservation has the id of a hold for each descriptor, or one of these marks: no hold, or report at commit.
_NOTHING, _REPORTED = "-", "0"
_HOLD_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOLD_PREFIXES: Final = ("ratelimit", "x-ratelimit-")
_TOLD: Final = frozenset(
    {
        "retry-after", "x-tollkeeper-reason", "x-tollkeeper-budget", "x-tollkeeper-tokens-remaining",
        "x-tollkeeper-credits-remaining",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HoldsReply:
    """The gateway's answer, with header names in lower case. `tries` is how often the request was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    tries: int = 1

    @property
    def document(self) -> dict[str, Any]:
        """The gateway's answer as a JSON object; empty if it is something else, as from a proxy between."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {}


# Method, path, headers and body; returns None without an answer in time.
AskOnce = Callable[[str, str, Mapping[str, str], bytes], Awaitable[HoldsReply | None]]


@dataclass(frozen=True, slots=True)
class DescriptorVerdict:
    """The result for one descriptor, with the headers and the body that the client may see."""

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
    """A hold for one descriptor, and the `charge` to settle it with, None if it stays open.

    `looks`: it only tests the limit, and is released. `is_end`: it belongs to the end of a call.
    """

    verdict: DescriptorVerdict
    id: str = ""
    key: str = ""
    charge: Mapping[str, Any] | None = None
    looks: bool = False
    is_end: bool = False
    rule: RateLimitRule | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """The rule of a descriptor, the API key of its holds, and the descriptor's entries."""

    rule: RateLimitRule
    key: str
    entries: dict[str, str]


def refused(reason: str, detail: str = "") -> DescriptorVerdict:
    """Return a refusal that comes from this service, not from the gateway, such as for an invalid request."""
    headers = [("x-tollkeeper-reason", reason)]
    if reason == _UNAVAILABLE:
        headers.append(("retry-after", "1"))
    return DescriptorVerdict(over=True, remaining=None, headers=tuple(headers), body=detail.encode())


_PASSED: Final = DescriptorVerdict(over=False)


class RateLimitJudge:
    """Answers rate limit requests by a table of rules.

    `ask` sends a request to the gateway. `failed` is called with each use that could not be settled.
    """

    def __init__(self, table: RateLimitTable, ask: AskOnce, failed: Callable[[str], None]) -> None:
        self._table, self._ask_once, self._failed = table, ask, failed

    @property
    def unavailable(self) -> DescriptorVerdict:
        """The verdict if the gateway does not answer, or if there are too many requests."""
        if self._table.on_failure == "allow":
            return _PASSED
        return refused(_UNAVAILABLE, "The gateway did not answer in time.")

    async def judge(self, asked: RateLimitQuestion) -> bytes:
        """Answer Envoy's `ShouldRateLimit`: hold or charge for each descriptor, or refuse."""

        async def ask(place: _Place, descriptor: Descriptor, _: int) -> _DescriptorHold:
            is_end = bool(place.rule.end) and place.rule.end in place.entries
            return await (self._end if is_end else self._begin_hold)(asked.domain, place, descriptor)

        return _answer_envoy(*await self._all(asked, ask, calls=True))

    async def check(self, asked: RateLimitQuestion) -> bytes:
        """Answer Kuadrant's `CheckRateLimit`, which counts nothing."""

        async def ask(place: _Place, _: Descriptor, __: int) -> _DescriptorHold:
            return await self._reported(place, 0, str(uuid4()))

        return _answer_envoy(*await self._all(asked, ask))

    async def report(self, asked: RateLimitQuestion) -> bytes:
        """Answer Kuadrant's `Report`: charge the use if any amount is left."""

        async def ask(place: _Place, descriptor: Descriptor, _: int) -> _DescriptorHold:
            return await self._reported(place, descriptor.hits, str(uuid4()))

        return _answer_envoy(*await self._all(asked, ask, apart=True))

    async def reserve(self, asked: RateLimitQuestion) -> bytes:
        """Answer Kuadrant's `Reserve`: hold for all descriptors or for none."""
        ttl_s = None if asked.ttl_s is None else min(max(asked.ttl_s, 1), TTL_S_MAX)

        async def ask(place: _Place, descriptor: Descriptor, _: int) -> _DescriptorHold:
            time_s = place.rule.ttl_s if ttl_s is None else ttl_s
            held, __ = await self._acquire_hold(place, asked.amount or 1, str(uuid4()), time_s)
            held.looks = bool(held.id) and not asked.amount
            return held

        holds, over = await self._all(asked, ask)
        ids = [_REPORTED if hold.looks else hold.id or _NOTHING for hold in holds]
        return write_reserved(OVER_LIMIT, "") if over else write_reserved(OK, ".".join(ids))

    async def commit(self, asked: RateLimitQuestion) -> bytes:
        """Answer Kuadrant's `Commit`: settle each hold of a reservation; without one, report the use."""
        ids, amount = asked.id.split(".") if asked.id else [], asked.amount
        released = False

        async def ask(place: _Place, _: Descriptor, at: int) -> _DescriptorHold:
            """Settle or release the hold of a descriptor; without a hold, report its use."""
            nonlocal released
            id_ = ids[at] if at < len(ids) else _REPORTED
            if id_ == _NOTHING:
                return _DescriptorHold(_PASSED)
            if _HOLD_ID.fullmatch(id_) is not None:
                path = f"{HOLDS}/{id_}"
                reply = await (
                    self._ask("POST", f"{path}/settle", place.key, _use(place.rule, amount))
                    if amount
                    else self._ask("DELETE", path, place.key)
                )
                if reply is None or reply.status != 404:
                    if reply is None or reply.status >= 400:
                        self._failed(f"hold {id_}")
                    released = released or (reply is not None and reply.status < 300)
                    return _DescriptorHold(_PASSED)
            if not amount:
                return _DescriptorHold(_PASSED)
            once = f"commit-{sha256(f'{asked.id} {at}'.encode()).hexdigest()}" if asked.id else str(uuid4())
            return await self._reported(place, amount, once)

        holds, _ = await self._all(asked, ask, apart=True)
        for hold in holds:
            if hold.verdict.over:
                self._failed("a use that is committed")
        return write_committed(released=released)

    def busy(self, asked: RateLimitQuestion) -> bytes:
        """Return the answer to Envoy if there are too many requests at once."""
        verdict = self.unavailable
        code = OVER_LIMIT if verdict.over else None
        return write_response([verdict.status] * len(asked.descriptors), verdict.headers, verdict.body, code)

    def too_busy_to_reserve(self, _: RateLimitQuestion) -> bytes:
        """Return the answer to `Reserve` if there are too many requests at once."""
        return write_reserved(self.unavailable.status.code, "")

    def too_busy_to_commit(self, _: RateLimitQuestion) -> bytes:
        """Return the answer to `Commit` if there are too many requests. Its hold is charged at expiry."""
        self._failed("a use that is committed")
        return write_committed(released=False)

    async def _all(
        self, asked: RateLimitQuestion, ask: Callable[[_Place, Descriptor, int], Awaitable[_DescriptorHold]],
        *, apart: bool = False, calls: bool = False,
    ) -> tuple[list[_DescriptorHold], bool]:  # fmt: skip
        """Run `ask` for each descriptor; return the holds, and whether the request is over its limit.

        Afterwards holds with a charge are settled; over the limit, all are released instead, unless `apart`.
        Rules with `call` are used only if `calls` is set.
        """
        if not 0 < len(asked.descriptors) <= DESCRIPTORS_MAX:
            message = f"A question has 1 to {DESCRIPTORS_MAX} descriptors."
            return [_DescriptorHold(refused(_INVALID, message))], True
        places = [self._place(asked.domain, descriptor) for descriptor in asked.descriptors]
        replaced = {name for place in places if isinstance(place, _Place) for name in place.rule.replaces}

        async def one_of(at: int) -> _DescriptorHold:
            """Return the answer for the descriptor at index `at`, refused ones without asking."""
            place = places[at]
            if not isinstance(place, _Place):
                return place
            if place.rule.name and place.rule.name in replaced:
                return _DescriptorHold(_PASSED)
            if not calls if place.rule.call else asked.descriptors[at].gives_back:
                message = "Hits are given back to a rule with `call` alone, which is for ShouldRateLimit."
                return _DescriptorHold(refused(_INVALID, message))
            if asked.amount > TOKENS_MAX:
                return _DescriptorHold(refused(_INVALID, f"An amount is at most {TOKENS_MAX}."))
            verdict = await ask(place, asked.descriptors[at], at)
            verdict.rule = place.rule
            return verdict

        holds = list(await asyncio.gather(*map(one_of, range(len(places)))))
        over = _is_over(holds)
        await asyncio.gather(*(self._end_hold(hold, over and not apart) for hold in holds if hold.id))
        return holds, over

    def _place(self, domain: str, asked: Descriptor) -> _Place | _DescriptorHold:
        """Return the rule and the API key for a descriptor, or its refusal."""
        entries = dict(asked.entries)
        fault = _fault(domain, asked, entries)
        if fault:
            return _DescriptorHold(refused(_INVALID, fault))
        rule = next((rule for rule in self._table.rules if rule.fits(domain, entries)), None)
        if rule is None:
            if self._table.on_unknown == "allow":
                return _DescriptorHold(_PASSED)
            return _DescriptorHold(refused(_INVALID, "No rule fits the entries of this descriptor."))
        key = rule.key_of(entries)
        if _KEY.fullmatch(key) is None:
            return _DescriptorHold(refused("invalid_api_key", "The entry has no API key."))
        return _Place(rule, key, entries)

    async def _acquire_hold(
        self, place: _Place, amount: int, once: str, ttl_s: int
    ) -> tuple[_DescriptorHold, HoldsReply | None]:
        """Acquire a hold that stays open for `ttl_s` seconds; return it with the gateway's answer.

        A refused hold has no id. `once` is the idempotency key.
        """
        reply = await self._take(place.rule, place.entries, place.key, amount, once, ttl_s)
        if reply is None:
            return _DescriptorHold(self.unavailable), None
        verdict = _verdict(reply)
        if verdict.over:
            return _DescriptorHold(verdict), reply
        return _DescriptorHold(verdict, reply.document["id"], place.key), reply

    async def _reported(self, place: _Place, used: int, once: str) -> _DescriptorHold:
        """Return a new hold to which a use without a hold is charged; `once` is its idempotency key."""
        held, _ = await self._acquire_hold(place, 1, once, SETTLED_TTL_S)
        held.charge, held.looks = (_use(place.rule, used), False) if used else (None, True)
        return held

    async def _begin_hold(self, domain: str, place: _Place, asked: Descriptor) -> _DescriptorHold:
        """Take a hold for a descriptor; return it, with the use to charge at its end."""
        rule = place.rule
        amount = rule.hold or asked.hits or 1
        once = _call_id(domain, rule, place.entries) if rule.call else str(uuid4())
        held, reply = await self._acquire_hold(
            place, amount, once, rule.ttl_s if rule.call else SETTLED_TTL_S
        )
        if reply is None or not held.id:
            return held
        if rule.call and reply.tries == 1 and "idempotent-replayed" in reply.headers:
            return _DescriptorHold(refused("idempotency_conflict", "A call of this id has begun already."))
        held.charge = None if rule.call else _use(rule, amount)
        held.looks = not (rule.call or asked.hits)
        return held

    async def _end(self, domain: str, place: _Place, asked: Descriptor) -> _DescriptorHold:
        """Return the hold of a call that ends now, with the use to charge, which may exceed the held amount.

        It is a refusal if the call has not begun.
        """
        rule = place.rule
        held, reply = await self._acquire_hold(
            place, rule.hold, _call_id(domain, rule, place.entries), rule.ttl_s
        )
        if reply is None:
            self._failed("the end of a call")
        if reply is None or not held.id:
            return held
        held.is_end = True
        # Otherwise the call's beginning was refused, or never requested.
        has_begun = "idempotent-replayed" in reply.headers
        if not has_begun:
            held.verdict = refused("hold_not_found", "No call of this id has begun.")
        used = max(0, rule.hold - asked.hits) if asked.gives_back else asked.hits
        held.charge, held.looks = (_use(rule, used), False) if has_begun and used else (None, True)
        return held

    async def _take(  # noqa: PLR0917  # whose hold it is, and what it takes
        self, rule: RateLimitRule, entries: dict[str, str], key: str, amount: int, once: str, ttl_s: int
    ) -> HoldsReply | None:
        """Hold an amount by a rule; return None if the answer is no hold."""
        body: dict[str, Any] = {
            "service": rule.fill(rule.service, entries),
            "max_tokens" if rule.unit == "tokens" else "amount": amount,
            "ttl_s": ttl_s,
        }
        body |= {
            name: rule.fill(value, entries) for name in ("model", "user") if (value := getattr(rule, name))
        }
        reply = await self._ask("POST", HOLDS, key, body, {"idempotency-key": once})
        taken = reply is None or reply.status >= 400 or isinstance(reply.document.get("id"), str)
        return reply if taken else None

    async def _end_hold(self, hold: _DescriptorHold, over: bool) -> None:
        """Settle a hold by its charge, or release it. A hold without a charge stays open until it expires."""
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
        """Send a request with the JSON `said` and the headers `more`.

        It is repeated if no answer or a 5xx comes; None if that persists.
        """
        body = b"" if said is None else msgspec.json.encode(said)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **(more or {})}
        for tries in range(1, TRIES_MAX + 1):
            reply = await self._ask_once(method, path, headers, body)
            if reply is not None and reply.status < 500:
                return HoldsReply(reply.status, reply.headers, reply.body, tries)
            if tries < TRIES_MAX:
                await asyncio.sleep(PAUSE_S)
        return None


def _is_over(holds: list[_DescriptorHold]) -> bool:
    """Return whether a request is over its limits: any descriptor is, or all descriptors in quota mode are.

    A descriptor is what Envoy sends to name a limit.
    """
    quotas = [hold.verdict.over for hold in holds if hold.rule is not None and hold.rule.quota_mode]
    rest = [hold.verdict.over for hold in holds if hold.rule is None or not hold.rule.quota_mode]
    return any(rest) or (bool(quotas) and all(quotas))


def _answer_envoy(holds: list[_DescriptorHold], over: bool) -> bytes:
    """Return the answer to Envoy by the first refusal, else by the descriptor with the least left."""
    verdicts = [hold.verdict for hold in holds]
    nearest = min(
        (verdict for verdict in verdicts if over or not verdict.over),
        key=lambda verdict: (
            not verdict.over,
            verdict.remaining is None,
            0 if verdict.over else verdict.remaining or 0,
        ),
    )
    metadata = dict[str, object]()
    for hold in reversed(holds):  # the first descriptor's value remains
        if hold.rule is not None and not hold.verdict.over:
            metadata |= hold.rule.metadata
    fields = {"metadata": metadata} if metadata else None
    code = OVER_LIMIT if over else OK
    return write_response(
        [verdict.status for verdict in verdicts], nearest.headers, nearest.body, code, fields
    )


def _fault(domain: str, asked: Descriptor, entries: Mapping[str, str]) -> str:
    """Return the fault of a descriptor, or an empty text."""
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
    """Return the id of the hold of a call.

    It is computed from the domain and the entries, so that the request at the call's end finds the hold, also
    in another process.
    """
    named = sorted((name, value) for name, value in entries.items() if name != rule.end)
    return "rls-" + sha256(msgspec.json.encode([domain, *named])).hexdigest()


def _use(rule: RateLimitRule, amount: int) -> dict[str, Any]:
    return {"usage": {"output": amount}} if rule.unit == "tokens" else {"units": amount}


def _verdict(reply: HoldsReply) -> DescriptorVerdict:
    """Return the verdict in an answer to a hold, with its headers for the client."""
    headers = tuple(
        (name, value)
        for name, value in reply.headers.items()
        if name in _TOLD or name.startswith(_TOLD_PREFIXES)
    )
    if reply.status < 400:  # a hold was taken
        remaining = reply.document.get("remaining")
        return DescriptorVerdict(
            over=False, remaining=remaining if isinstance(remaining, int) else None, headers=headers
        )
    kind = ("content-type", reply.headers.get("content-type", "text/plain"))
    return DescriptorVerdict(
        over=True, remaining=0 if reply.status == 429 else None, headers=(*headers, kind), body=reply.body
    )
