"""The ports of the data plane, to be scripted by a test, and the messages tests send.

Every class here keeps to what its real counterpart promises: answers come later, never twice.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gateway.core.accounts.budgets import Budget, CallAttributes
from gateway.core.accounts.call_budgets import CallBudgets, OrganizationBudgets
from gateway.core.accounts.call_facts import read_facts, told_of
from gateway.core.accounts.definitions import ModelLists, Share
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.accounts.runs import Run
from gateway.core.accounts.spent_answers import SpentAnswer
from gateway.core.accounts.tags import Tags, tags_of
from gateway.core.billing.stand_ins import NO_STAND_INS
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import NO_SIZES, CallRequest
from gateway.core.calls.routes import ModelRule, Route
from gateway.core.families.family import KEPT_OBJECTS
from gateway.core.model import (
    Admitted,
    Attribution,
    Caller,
    Family,
    HoldExtension,
    HoldRequest,
    Refused,
    RunRequest,
    Scope,
    Service,
    Settlement,
    SettleResult,
    Verdict,
    Window,
)
from gateway.core.wait import Wait, begin
from gateway.errors import CountersUnavailable, InvalidApiKey, Refusal, RunNotFound, TooManyRuns

PEPPER = b"a pepper of the tests"
KEY = "tk_0123456789abcdef"
AUTH = b"authorization: Bearer " + KEY.encode() + b"\r\n"
CALLER = Caller(1, 2, 3, 4)
NEW_YEAR_MS = 1_767_225_600_000
USAGE_BODY = b'{"tokens_remaining":5}'
SERVICES = {
    service.key: service
    for service in (
        Service(1, "chat"),
        Service(2, "messages"),
        Service(3, "gemini"),
        Service(4, "search", meter="consumption", counts_tokens=False, credits=3),
        Service(5, "embeddings"),
    )
}
ROUTES = (
    Route(("POST",), "/v1/chat/completions", "up", "chat", Family("openai"), "openai_chat"),
    Route(("POST",), "/v1/embeddings", "up", "embeddings", Family("openai"), "openai_embeddings"),
    Route(("POST",), "/v1/abort", "up", "chat", Family("openai"), "openai_chat", on_disconnect="abort"),
    Route(("POST",), "/v1/later", "up", "chat", Family("openai"), "openai_chat", settle="after_reply"),
    Route(("GET",), "/v1/models", "up", "", Family("openai")),
    Route(("GET",), "/v1/models/{id}", "up", "", Family("openai")),
    Route(("POST",), "/v1/messages", "up", "messages", Family("anthropic"), "anthropic_messages"),
    Route(
        ("POST",),
        "/v1beta/models/{model}:generateContent",
        "up",
        "gemini",
        Family("gemini"),
        "gemini_generate",
    ),
    Route(("GET",), "/v1beta/models/{id}", "up", "", Family("gemini")),
    Route(("POST",), "/trusted", "up", "search", meter="generic", trust_client_units=True),
    Route(("ANY",), "/services/{service_key}/{path…}", "up", meter="generic"),
    Route(("ANY",), "/free/{path…}", "up"),
)
CHAT = b'{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}'
CHAT_STREAM = b'{"model":"m","max_tokens":10,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
ANSWER = (
    b'{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"hello"}}],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}'
)


def post(body: bytes, path: bytes = b"/v1/chat/completions", fields: bytes = b"") -> bytes:
    """A request with the key of `CALLER`; `fields` are whole lines."""
    return b"POST %b HTTP/1.1\r\nhost: gateway\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        path, AUTH, fields, len(body), body,
    )  # fmt: skip


def get(path: bytes, fields: bytes = AUTH, method: bytes = b"GET") -> bytes:
    """A request without a body; `fields` are whole lines."""
    return b"%b %b HTTP/1.1\r\nhost: gateway\r\n%b\r\n" % (method, path, fields)


def answer(body: bytes = ANSWER, fields: bytes = b"", status: bytes = b"200 OK") -> bytes:
    """An upstream's answer with its length."""
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, fields, len(body)) + body


def chunks(*payloads: bytes, end: bool = True) -> bytes:
    """Payloads as chunks, with the last one or without."""
    framed = b"".join(b"%x\r\n%b\r\n" % (len(payload), payload) for payload in payloads)
    return framed + (b"0\r\n\r\n" if end else b"")


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\n'
DONE_EVENT = b"data: [DONE]\n\n"


class NoRuns:
    """Knows one run at most, and opens none of those that are `asked` for."""

    def __init__(self) -> None:
        self.asked: list[RunRequest] = []
        self.known: Run | None = None
        self.refusal: Refusal = TooManyRuns()

    def cached(self, caller: Caller, asked: RunRequest) -> Run | None:
        return self.known

    async def find(self, caller: Caller, asked: RunRequest, policies: CallRunPolicies) -> Run:
        self.asked.append(asked)
        raise self.refusal

    def admitted(self, caller: Caller, run: Run) -> None:
        assert run is self.known

    async def tell(self, caller: Caller, id_: str) -> bytes:
        raise RunNotFound

    async def end(self, caller: Caller, id_: str) -> None:
        raise RunNotFound


class FakeObjects:
    """Remembers whose objects are, the first one's; `down` fails."""

    def __init__(self) -> None:
        self.kept: set[tuple[int, str]] = set()
        self.asked: list[tuple[str, ...]] = []
        self.noted_ids: list[list[str]] = []
        self.sized: dict[tuple[int, str], int] = {}
        self.times = Counter[tuple[int, str]]()
        self.unsized = False
        self.notes: dict[str, bytes] = {}
        self.down = False

    def owned(self, caller: Caller, ids: Sequence[str]) -> Wait[bool]:
        return begin(self._owned(caller, ids))

    async def _owned(self, caller: Caller, ids: Sequence[str]) -> bool:
        return await self.refused(caller, ids) is None

    def refused(self, caller: Caller, ids: Sequence[str], unsure: Sequence[str] = ()) -> Wait[str | None]:
        self.asked.append((*ids, *unsure))
        wait: Wait[str | None] = Wait()
        if self.down:
            wait.fail(CountersUnavailable())
        else:
            owned = {one for _, one in self.kept}
            judged = [*ids, *[one for one in unsure if one in owned]]
            wait.set(next((one for one in judged if (caller.organization_id, one) not in self.kept), None))
        return wait

    def sizes(self, caller: Caller, ids: Sequence[str]) -> Wait[list[tuple[int, int]]]:
        wait: Wait[list[tuple[int, int]]] = Wait()
        if self.unsized:
            wait.fail(CountersUnavailable())
            return wait
        wait.set([self._size(caller, one) for one in ids])
        return wait

    def _size(self, caller: Caller, id_: str) -> tuple[int, int]:
        """Return how often an object was kept, which only grows as the end of a real one, and its tokens."""
        name = caller.organization_id, id_
        return self.times[name], self.sized.get(name, 0)

    def keep(  # noqa: PLR0917  # as the port
        self, caller: Caller, ids: Sequence[str], kept: int = KEPT_OBJECTS, tokens: int = 0, added: int = 0,
        found: Mapping[str, tuple[int, int]] = NO_SIZES,
    ) -> Wait[object]:  # fmt: skip
        self.noted_ids.append(list(ids))
        for one in ids:
            there = self._size(caller, one)
            size = tokens if there == found.get(one) else max(tokens, there[1] + added)
            self.times[caller.organization_id, one] += 1
            self.sized |= {(caller.organization_id, one): size} if size else {}
        taken = {one for _, one in self.kept}
        self.kept |= {(caller.organization_id, one) for one in ids if one not in taken}
        wait: Wait[object] = Wait()
        wait.set(None)
        return wait

    def note(self, id_: str, payment: bytes) -> Wait[bytes | None]:
        wait: Wait[bytes | None] = Wait()
        wait.set(self.notes.get(id_))
        self.notes[id_] = payment
        return wait

    def noted(self, id_: str) -> Wait[bytes | None]:
        wait: Wait[bytes | None] = Wait()
        wait.set(self.notes.get(id_))
        return wait


class FakeDirectory:
    """Knows one key, of `digest` alone where that is set; what is slow or down is set by the test.

    `terms` are services as the caller's organization has them, or why it has not; `trouble` is why there
    is no catalogue.
    """

    def __init__(self) -> None:
        self.caller: Caller = CALLER
        self.fresh = False
        self.down = False
        self.known = True
        self.groups_there: tuple[int, ...] = ()
        self.digest = ""
        self.services = dict(SERVICES)
        self.currency = "USD"
        self.rate: str | None = None
        self.stand_ins = NO_STAND_INS
        self.lists: ModelLists | None = None
        self.policies: CallRunPolicies = ()
        self.digests: list[str] = []
        self.terms: dict[str, Service | Refusal] = {}
        self.trouble: Refusal | None = None
        self.refusal: Refusal | None = None
        self.prices: dict[str, Vector] = {}
        self.models_there: tuple[ModelRule, ...] = ()
        self.shares_there: tuple[Share, ...] = ()
        self.budgets_there: list[Budget] = []
        self.tag_names: tuple[str, ...] = ()
        self.remembered: list[str] = []
        self.then: Callable[[], None] = lambda: None

    def cached(self, digest: str) -> Caller | None:
        self.digests.append(digest)
        return self.caller if self.fresh and digest.startswith(self.digest) else None

    def identify(self, digest: str) -> Wait[Caller]:
        wait: Wait[Caller] = Wait()
        if self.down:
            wait.fail(CountersUnavailable())
        elif self.known and digest.startswith(self.digest):
            asyncio.get_running_loop().call_soon(wait.set, self.caller)
        else:
            wait.fail(InvalidApiKey())
        return wait

    async def know(self, organization_id: int) -> None:
        assert organization_id == self.caller.organization_id

    def service(self, key: str) -> Service | None:
        return self.services.get(key)

    def catalogue(self) -> Mapping[str, Service]:
        if self.trouble is not None:
            raise self.trouble
        return self.services

    def models(self) -> tuple[ModelRule, ...]:
        return self.models_there

    def shares(self) -> tuple[Share, ...]:
        return self.shares_there

    def budgets(  # noqa: PLR0917  # as the port has it
        self,
        caller: Caller,
        service_id: int,
        said: Attribution,
        call: CallRequest,
        remember: bool = True,
        run: Run | None = None,
    ) -> CallBudgets | None:
        """Of those that are `there`, at the beginning of 2026; `remembered` are models of calls."""
        if remember:
            self.remembered.append(call.spec.model)
        if not self.budgets_there:
            return None
        budgets = OrganizationBudgets(caller.organization_id, self.budgets_there, self.currency)
        found = budgets.find(
            CallAttributes(*budgets.attributes_of(caller, service_id, said, call)), NEW_YEAR_MS
        )
        return found if found.accounts else None

    def definitions(
        self, caller: Caller, accounts: tuple[str, ...], said: Attribution, call: CallRequest
    ) -> tuple[bytes, ...]:
        budgets = OrganizationBudgets(caller.organization_id, self.budgets_there, self.currency)
        return budgets.definitions(accounts, self.groups_there, NEW_YEAR_MS)

    @property
    def grouped(self) -> bool:
        return bool(self.groups_there)

    def groups(self, caller: Caller, said: Attribution, call: CallRequest) -> tuple[int, ...]:
        return self.groups_there

    def model_lists(self, caller: Caller) -> ModelLists | None:
        return self.lists

    def run_policies(self, caller: Caller) -> CallRunPolicies:
        return self.policies

    def spent_answer(self, caller: Caller) -> SpentAnswer:
        return caller.spent

    def tags(self, caller: Caller, attribution: Attribution) -> Tags:
        return tags_of(self.tag_names, caller.tags, attribution.tags)

    def pays_in(self, caller: Caller) -> str:
        return self.currency

    def price(
        self, caller: Caller, model: str, at_ms: int, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        found = self.prices.get(model)
        return None if own and found is not None and found.currency != self.currency else found

    def base_rate(self, caller: Caller, at_ms: int) -> str | None:
        return self.rate

    def price_as(
        self, caller: Caller, model: str, at_ms: int, own: bool = False, upstream: str = ""
    ) -> Vector | None:
        other = self.stand_ins.of(model)
        return self.price(caller, other, at_ms, own) if other else None

    def resolve(self, caller: Caller, key: str) -> Service | None:
        """At the catalogue's price; `refusal` is raised if it is set, `then` is called behind it."""
        if self.refusal is not None:
            raise self.refusal
        service = self.terms.get(key, self.services.get(key))
        if isinstance(service, Refusal):
            raise service
        self.then()
        return service


class NoTokens:
    """No issuer is known: whatever comes is a key."""

    accepts = False
    issuers: tuple[str, ...] = ()

    def __init__(self, _: object = None) -> None:
        """It asks no directory."""

    def cached(self, digest: str) -> Caller | None:
        raise AssertionError(digest)

    async def identify(self, digest: str, token: bytes) -> Caller:
        raise AssertionError(digest, token)


class FakeCounters:
    """Admits everything and records it, until a test says otherwise.

    `holds` and `settlements` are those of services; `heads` took a request and slots alone, and were
    `let_go` or raised. `decision` is what `reserve` answers, `settled` what `settle` does; `None`
    there fails with `CountersUnavailable`, as does releasing what can only be spooled. While
    `silent`, settlements get no answer. While `slow`, whoever would be admitted waits in `admitting`.
    """

    def __init__(self) -> None:
        self.holds: list[HoldRequest] = []
        self.heads: list[HoldRequest] = []
        self.let_go: list[Settlement] = []
        self.settlements: list[Settlement] = []
        self.watched: list[HoldExtension] = []
        self.unwatched: list[HoldExtension] = []
        self.outgrowths: list[int] = []
        self.extension: tuple[int, bool, bool] | None = None
        self.decision: Admitted | Refused | None = Admitted(
            held_tokens=20,
            tokens_remaining=90,
            limit=100,
            now_ms=1000,
            until_ms=61_000,
            requests=Window(Scope.KEY, 60, 1, 1000),
            tokens=Window(Scope.TENANT, 1000, 20, 1200),
        )
        # What is answered to a hold of a budget's account, by the account's name.
        self.refused: dict[str, Refused] = {}
        # What is answered to a call by its head alone, and on a route that charges nothing.
        self.by_head: Admitted | Refused | None = self.decision
        # Whether budgets hold just what they are asked for, and not what the decision says.
        self.holds_asked = False
        self.settled: SettleResult | None = SettleResult.DONE
        self.silent = self.slow = False
        self.admitting: list[tuple[Wait[Admitted | Refused], Admitted | Refused]] = []
        self.asked = asyncio.Event()
        self.waiting: list[Wait[SettleResult]] = []

    async def reserve(self, request: HoldRequest) -> Admitted | Refused:
        wait: Wait[Admitted | Refused] = Wait()
        if request.service.id:
            self.holds.append(request)
            refused = [answer for name, answer in self.refused.items() if name in request.names]
            decision = refused[0] if refused else self.decision
            if isinstance(decision, Admitted) and self.holds_asked:
                decision = replace(
                    decision, money_held=request.money, budget_tokens_held=request.budget_tokens
                )
        else:
            decision = self.by_head
            if decision is not None and decision.verdict is Verdict.ADMITTED:
                self.heads.append(request)
        if decision is None:
            wait.fail(CountersUnavailable())
        elif self.slow:
            self.admitting.append((wait, decision))
        else:
            asyncio.get_running_loop().call_soon(wait.set, decision)
        return await wait

    async def settle(self, settlement: Settlement) -> SettleResult:
        if not settlement.service.id:
            assert not settlement.charge
            self.let_go.append(settlement)
            return SettleResult.DONE
        self.settlements.append(settlement)
        self.asked.set()
        wait: Wait[SettleResult] = Wait()
        if self.silent:
            self.waiting.append(wait)
        elif self.settled is None or (self.settled is SettleResult.SPOOLED and not settlement.charge):
            wait.fail(CountersUnavailable())
        else:
            asyncio.get_running_loop().call_soon(wait.set, self.settled)
        return await wait

    def watch(self, extension: HoldExtension) -> None:
        self.watched.append(extension)

    def unwatch(self, extension: HoldExtension) -> None:
        self.unwatched.append(extension)

    def request_extension(self, extension: HoldExtension) -> None:
        """Extend at once, by what `extension` says: the hold, and whether the account is exhausted."""
        self.outgrowths.append(extension.tokens)
        if self.extension is not None:
            extension.held, extension.exhausted, extension.cut = self.extension
        elif extension.answered is not None:
            extension.held = max(extension.held, extension.reserved)
        extension.end_request()

    @property
    def charges(self) -> list[Settlement]:
        return [settlement for settlement in self.settlements if settlement.charge]

    @property
    def releases(self) -> list[Settlement]:
        return [settlement for settlement in self.settlements if not settlement.charge]


def told(metadata: bytes) -> dict[str, object]:
    """What the ledger's row says of a settled call."""
    facts = read_facts(metadata)
    assert facts is not None
    said: dict[str, object] = json.loads(told_of(facts))
    return said
