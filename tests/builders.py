"""Short words for tests: one organization with a tenant and a key, on a real Valkey.

`World` speaks to the scripts exactly as the doors do (the packing is theirs), one call at a time:
`call = world.reserve(need=100)`, `call.settle(tokens=70)`, `world.tenant.remaining`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import redis

from gateway.core.accounts.definitions import (
    Definition,
    KeyDefinition,
    OrganizationDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.outbox import (
    BUDGETED,
    CARRIED,
    ENTRY,
    HEAD,
    LENGTH_1,
    LENGTH_2,
    VERSION,
    OutboxEntry,
    decode,
)
from gateway.core.accounts.plans import PlanTerms
from gateway.core.billing.money import CreditRates, ServicePricing
from gateway.core.billing.price_book import TokenRate
from gateway.core.billing.vector import Vector
from gateway.core.calls.tariff import charge_of, vectors_of
from gateway.core.metering.meter import Detail
from gateway.core.model import (
    Admitted,
    Caller,
    HoldExtension,
    HoldRequest,
    Limits,
    Refused,
    Service,
    Settlement,
    SettleResult,
    TokenUsage,
    Verdict,
)
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.states import WindowState, pack_windows, unpack_windows
from gateway.counters.redis import keys
from gateway.counters.redis.calls import FIRST_PLACE
from gateway.counters.redis.scripts import library
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.counters.settlement_log.log import BOUNDS, LogLimits, SettlementLog
from tests.older_layouts import changed_state

CHAT = Service(id=1, key="chat")
CREDITS = Service(id=2, key="images", meter="consumption", counts_tokens=False)
ONE_TIME = Service(id=3, key="setup", meter="consumption", counts_tokens=False, credits=50, one_time=True)
UNITS = Service(id=4, key="search", meter="pay_per_use", counts_tokens=False)
BY_TOKEN = Service(
    id=6, key="words", meter="consumption", counts_tokens=False,
    pricing=ServicePricing(per_million={"*": CreditRates(2_000_000, 5_000_000)}),
)  # fmt: skip
EVERYTHING = Service(id=5, key="all", meter="consumption", counts_tokens=True)

T = TypeVar("T")
TTL_MS = 30_000
TOMBSTONE_MS = 60_000
NO_LIMITS = Limits()
# Of users, keys and organizations: without any limit no slot of theirs is counted.
COUNTED = Limits(concurrency=1_000_000)
# An event of nobody's, of nothing.


def encode(event: OutboxEntry) -> bytes:
    """Pack an entry of the outbox as the scripts do."""
    numbers = [getattr(event, one.name) for one in ENTRY.fields if not one.is_text and one.name != "version"]
    windows = b"".join(BUDGETED.pack(one[0], one[1], one[2].encode()) for one in event.budgets)
    texts = [event.source.encode(), event.user.encode(), event.attribution.encode(), event.metadata, windows]
    packed = HEAD.pack(VERSION, *numbers) + LENGTH_1.pack(len(texts[0])) + texts[0]
    return packed + b"".join(LENGTH_2.pack(len(text)) + text for text in texts[1:]) + _behind(event)


def _behind(event: OutboxEntry) -> bytes:
    """What ends an entry."""
    if event.priced or not (event.ahead or event.carried):
        return event.priced
    return CARRIED.pack(event.ahead, event.carried)


BLANK = bytes([VERSION]) + bytes(HEAD.size + 8)


async def driven(awaitable: Awaitable[T]) -> T:
    """Drive what awaits a `Wait` as the data plane does, without a task of its own."""
    steps = awaitable.__await__()
    try:
        while True:
            wait = next(steps)
            if not wait.done:
                done = asyncio.get_running_loop().create_future()
                wait.then(lambda done=done: done.done() or done.set_result(None))
                await done
    except StopIteration as stop:
        return cast("T", stop.value)


def settlement_log(
    folder: Path,
    *,
    keep_s: float = 60.0,
    bytes_max: int = 1 << 20,
    say: Callable[..., None] = lambda *_, **__: None,
    bounds: LogLimits = BOUNDS,
    clock: Callable[[], float] = time.monotonic,
) -> SettlementLog:
    """A worker's log in a folder; `await log.close()` ends it in order."""
    return SettlementLog(
        folder,
        keep_s=keep_s,
        bytes_max=bytes_max,
        clock=clock,
        wall=time.time,
        say=say,
        bounds=bounds,
    )


def prices_of(service: Service, *models: str) -> tuple[Vector, ...]:
    """The prices by which a call of these models is charged, of the service's own."""
    return vectors_of(service, models, lambda _: None)


def credits_of(service: Service, usage: TokenUsage, *models: str) -> int:
    """Whole credits of one call of these models, by the service's own prices."""
    counts = Detail().counts(usage)
    return charge_of(service, prices_of(service, *models), counts, None, usage.units)[0]


def by_partition(verb: str, calls: list[packing.Call]) -> list[list[int]]:
    """Which calls are of one partition, by the first of each."""
    markers = [names[packing.SHARED[verb] - 1] for names, _ in calls]
    return [[at for at, one in enumerate(markers) if one == marker] for marker in dict.fromkeys(markers)]


def together(verb: str, calls: list[packing.Call]) -> packing.Call:
    """Keys and arguments of many calls as one call of the function; answered as a list, by partition."""
    shared, parts = packing.SHARED[verb], [[calls[at] for at in part] for part in by_partition(verb, calls)]
    own, accounts, shape = list[str](), list[str](), bytes((len(parts),))
    for part in parts:
        named, said = part[0][0][shared:-1], bytes((len(part[0][1]),))
        if len(part) > 1:
            named = tuple(dict.fromkeys([name for names, _ in part for name in names[shared:-1]]))
            places = [[FIRST_PLACE + named.index(one) for one in names[shared:-1]] for names, _ in part]
            said = b"".join([bytes((len(a), len(p), *p)) for (_, a), p in zip(part, places, strict=True)])
        own += part[0][0][: shared - 1]
        accounts += (part[0][0][shared - 1], *named)
        shape += bytes((len(part), len(named))) + said
    holds, given = zip(*[(names[-1], arguments) for part in parts for names, arguments in part], strict=True)
    return (*own, *accounts, *holds), (shape + b"\0" * (len(shape) == packing.ALONE[verb]), *sum(given, ()))


def new_id() -> str:
    """A request or control-write id."""
    return str(uuid.uuid4())


@dataclass(slots=True)
class Call:
    """One request: what was asked and what `reserve` said."""

    world: World
    request: HoldRequest
    decision: Admitted | Refused

    @property
    def id(self) -> str:
        return self.request.request_id

    @property
    def verdict(self) -> Verdict:
        return self.decision.verdict

    @property
    def hold(self) -> states.HoldState | None:
        raw = self.world.get(keys.hold(self.request.caller.partition, self.id))
        return states.unpack_hold(raw)[0] if raw else None

    def settle(self, tokens: int = 0, *, mode: int = packing.MODE_CHARGE, **used: Any) -> SettleResult:
        """Charge what was used; `used` may name credits, units, attribution, metadata."""
        return self.world.settle(self.request, tokens, mode=mode, **used)

    def release(self) -> SettleResult:
        return self.settle(mode=packing.MODE_RELEASE)

    def raised(self, need: int = 0, **more: Any) -> Call:
        """The same request asked for again, once its body is read; `more` as `World.reserve` has it."""
        return self.world.reserve(need, request_id=self.id, raises=True, **more)

    def reclaim(self, tokens: int = 0, **used: Any) -> SettleResult:
        return self.settle(tokens, mode=packing.MODE_RECLAIM, **used)

    def post(self, tokens: int = 0, **used: Any) -> SettleResult:
        """Charge through the late queue's door: no hold needed, but an entry there."""
        return self.settle(tokens, mode=packing.MODE_POST, **used)

    def correct(self, tokens: int = 0, **used: Any) -> SettleResult:
        """Make good what a reclaim charged."""
        return self.settle(tokens, mode=packing.MODE_CORRECT, **used)

    def extend(self, observed: int, margin: int = 0) -> tuple[int, int]:
        """(hold in tokens or -1, exhausted) after renewing this call alone."""
        return self.world.extend([self], observed, margin)[0]

    def priced(self, observed: int, margin: int, rate: TokenRate) -> tuple[int, int, int]:
        """(hold in tokens, in credits, exhausted) after renewing this call, whose tokens have a price."""
        live = HoldExtension(self.request.caller, self.id, 0, observed, rate=rate)
        return self.world.extended([(live, margin)])[0]


@dataclass(frozen=True, slots=True)
class Granted:
    """The answer of `grant`."""

    code: int
    now_ms: int = 0
    seq: int = 0
    remaining: int = 0
    balance: int = 0
    epoch: int = 0
    moved: int = 0
    credit_seq: int = 0


@contextmanager
def located() -> Iterator[None]:
    """Raise errors of scripts with files and lines in their messages."""
    try:
        yield
    except redis.ResponseError as error:
        raise type(error)(library().located(str(error))) from error


class World:
    """One organization (1), tenant (7) and key (3) in a verified partition, without limits or plan.

    With `made` somebody else has verified and defined them.
    """

    def __init__(
        self, url: str, *, organization_id: int = 1, tenant_id: int = 7, key_id: int = 3, made: bool = False
    ) -> None:
        self.url = url
        self.client: redis.Redis = redis.Redis.from_url(url)
        self.load_library()
        self.p = keys.partition_of(organization_id)
        self.caller = Caller(organization_id, tenant_id, key_id, self.p)
        self.run_id = str(self.client.info("server")["run_id"]).encode()
        # Newer than whatever somebody else has published or defined.
        self.catalogue, self.version = (10**12, 10**12) if made else (1, 0)
        if made:
            return
        self.mark(epoch=1)
        self.define_organization()
        self.define_tenant()
        self.define_key()

    def again(self) -> World:
        """The same account as seen on the server of now."""
        self.client.close()
        caller = self.caller
        return World(
            self.url, organization_id=caller.organization_id, tenant_id=caller.tenant_id,
            key_id=caller.key_id, made=True,
        )  # fmt: skip

    # --- scripts ------------------------------------------------------------------------

    def load_library(self) -> None:
        """Make the scripts' functions known to the server, as each connection does."""
        if not self.client.function_list(library().name):
            with located():
                self.client.function_load(library().text)

    def run(self, verb: str, call: packing.Call) -> Any:
        """Run one script as packed; a ResponseError where it raises."""
        names, arguments = call
        with located():
            return self.client.fcall(library().functions[verb], len(names), *names, *arguments)

    def reserve(
        self, need: int = 0, *, ceiling: int | None = None, service: Service = CHAT, user: str = "",
        credits_: int = 0, units: int = 1, request_id: str = "", ttl_ms: int = TTL_MS, raises: bool = False,
        least: int = 0, credits_least: int = 0, quota: tuple[int, int, int] | None = None,
        plan_id: int = packing.ANY_PLAN, **budgets: Any,
    ) -> Call:  # fmt: skip
        """Take a hold; `budgets` are its accounts, and what of money and tokens they shall hold."""
        ceiling = need if ceiling is None else ceiling
        request = HoldRequest(
            self.caller,
            request_id or new_id(),
            user,
            service,
            need,
            ceiling,
            credits_,
            units,
            raises,
            least,
            credits_least,
            **budgets,
        )
        packed = packing.reserve(self.run_id, self.catalogue, ttl_ms, request, quota=quota, plan_id=plan_id)
        answer = self.run("reserve", packed)
        return Call(self, request, packing.decision(answer, request.service))

    def settle(
        self, request: HoldRequest, tokens: int, *, mode: int, requests: int = 1, **used: Any
    ) -> SettleResult:
        settlement = Settlement(
            request.caller, request.request_id, request.user, request.service,
            charge=mode != packing.MODE_RELEASE, tokens=tokens,
            budgets=tuple(one.name for one in request.budgets), **used,
        )  # fmt: skip
        late = mode in {packing.MODE_POST, packing.MODE_CORRECT}
        entry = cast("bytes", self.client.xadd(keys.late(self.p), {"a": ""})) if late else None
        definitions = tuple(one.defined for one in request.budgets) if late else ()
        call = packing.settle(
            self.run_id, TOMBSTONE_MS, settlement, mode, entry, requests=requests, definitions=definitions
        )
        return SETTLE_RESULTS.read(self.run("settle", call), request.request_id)

    def extend(self, calls: list[Call], observed: int, margin: int = 0) -> list[tuple[int, int]]:
        live = [(HoldExtension(call.request.caller, call.id, 0, observed), margin) for call in calls]
        return [(tokens, exhausted) for tokens, _, exhausted in self.extended(live)]

    def extended(self, live: list[tuple[HoldExtension, int]]) -> list[tuple[int, int, int]]:
        """What `extend` answers for calls and their margins."""
        return [one[:3] for one in self.kept(live)]

    def kept(self, live: list[tuple[HoldExtension, int]]) -> list[tuple[int, int, int, int, int]]:
        """The same with what their budgets hold."""
        return packing.extended(self.run("extend", packing.extend(self.run_id, TTL_MS, self.p, live)))

    def grant(
        self, verb: str, amount: int = 0, *, write_id: str = "", metadata: bytes = b"",
        terms: PlanTerms | None = None, tenant_id: int | None = None,
    ) -> Granted:  # fmt: skip
        call = packing.grant(
            self.run_id, verb, amount, write_id or new_id(),
            tenant_id=self.caller.tenant_id if tenant_id is None else tenant_id,
            organization_id=self.caller.organization_id, metadata=metadata, terms=terms,
        )  # fmt: skip
        answer = self.run("grant", call)
        return Granted(*(int(packing.code_of(answer[at : at + 8])) for at in range(0, len(answer), 8)))

    def moved(self, organization_id: int, count: int = 1) -> list[bytes]:
        """Movements of an organization, whoever it is, at the end of this outbox; their entries."""
        packed = encode(replace(decode(BLANK), organization_id=organization_id))
        with self.client.pipeline(transaction=False) as pipe:
            for _ in range(count):
                pipe.xadd(keys.outbox(self.p), {"e": packed})
            return cast("list[bytes]", pipe.execute())

    def plan(self, total: int | None, **terms: Any) -> Granted:
        """Give the tenant a plan; `terms` are those of `PlanTerms`."""
        return self.grant("plan", terms=PlanTerms(**{"plan_id": 1, **terms}, total_amount=total))

    def sweep(self) -> Granted:
        return self.grant("sweep", write_id="0" * 36)

    def define(self, definition: Definition, version: int | None = None, *, create: bool = True) -> int:
        """The answer code of `load`; every definition is newer than the last unless a version is named."""
        self.version += 1
        call = packing.define(self.run_id, version or self.version, definition, create=create)
        return packing.code_of(self.run("load", call))

    def define_organization(self, limits: Limits = NO_LIMITS, **more: Any) -> int:
        return self.define(OrganizationDefinition(self.caller.organization_id, limits, **more))

    def define_tenant(
        self, limits: Limits = NO_LIMITS, *, users: Limits = COUNTED, terms: PlanTerms | None = None
    ) -> int:
        caller = self.caller
        return self.define(
            TenantDefinition(caller.tenant_id, caller.organization_id, limits, users, terms or PlanTerms())
        )

    def define_key(self, limits: Limits = NO_LIMITS, **more: Any) -> int:
        caller = self.caller
        return self.define(
            KeyDefinition(caller.key_id, caller.tenant_id, caller.organization_id, "", limits, **more)
        )

    def define_user(self, user: str, limits: Limits) -> int:
        return self.define(UserDefinition(self.caller.tenant_id, self.caller.organization_id, user, limits))

    def mark(self, epoch: int = 1, catalogue: int = 1) -> int:
        """Vouch for the partition under this server's run id."""
        marker = self.get(keys.marker(self.p))
        new = packing.marker(self.run_id, epoch, catalogue)
        return self.rebuild(keys.marker(self.p), new, marker)

    def rebuild(self, name: str, packed: bytes, marker: bytes | None = None) -> int:
        """Write a whole state under the marker as it is (or as given)."""
        before = self.get(keys.marker(self.p)) if marker is None else marker
        return packing.code_of(self.run("load", packing.rebuild(self.run_id, self.p, name, packed, before)))

    def peek(self, kind: int, *names: str) -> list[Any]:
        return cast(
            "list[Any]", self.run("peek", ((keys.marker(self.p), *names), (self.run_id, b"%d" % kind)))
        )

    # --- what is there ------------------------------------------------------------------

    @property
    def tenant_key(self) -> str:
        return keys.tenant_state(self.p, self.caller.tenant_id)

    @property
    def organization_key(self) -> str:
        return keys.organization_state(self.p, self.caller.organization_id)

    @property
    def api_key(self) -> str:
        return keys.key_state(self.p, self.caller.key_id)

    def user_key(self, user: str) -> str:
        return keys.user_state(self.p, self.caller.tenant_id, user)

    @property
    def tenant(self) -> states.TenantState:
        return states.unpack(states.TenantState, self.get(self.tenant_key))

    @property
    def organization(self) -> states.OrganizationState:
        return states.unpack(states.OrganizationState, self.get(self.organization_key))

    @property
    def key(self) -> states.KeyState:
        return states.unpack(states.KeyState, self.get(self.api_key))

    def user(self, user: str) -> states.UserState:
        raw = self.get(self.user_key(user))
        return states.unpack(states.UserState, raw) if raw else states.UserState()

    def windows(self, name: str) -> list[WindowState]:
        raw = self.get(keys.budget_account(self.p, name))
        return unpack_windows(raw) if raw else []

    def put_windows(self, name: str, windows: list[WindowState]) -> None:
        self.client.set(keys.budget_account(self.p, name), pack_windows(windows))

    def slots(self, user: str) -> list[int]:
        """Requests in flight on key, user, tenant and organization."""
        return [
            self.key.inflight, self.user(user).inflight, self.tenant.inflight, self.organization.inflight,
        ]  # fmt: skip

    def put_tenant(self, **fields: Any) -> states.TenantState:
        """Rebuild the tenant's state with these fields changed."""
        changed = changed_state(self.tenant, fields)
        assert self.rebuild(self.tenant_key, states.pack(changed)) == 1
        return changed

    def put_organization(self, **fields: Any) -> None:
        changed = changed_state(self.organization, fields)
        assert self.rebuild(self.organization_key, states.pack(changed)) == 1

    def put_key(self, **fields: Any) -> None:
        assert self.rebuild(self.api_key, states.pack(replace(self.key, **fields))) == 1

    def get(self, name: str) -> bytes:
        return cast("bytes", self.client.get(name)) or b""

    def events(self) -> list[OutboxEntry]:
        """The outbox, decoded, oldest first."""
        return [decode(fields[b"e"]) for _, fields in self.entries(keys.outbox(self.p))]

    def late(self) -> list[dict[bytes, bytes]]:
        """The late queue's entries."""
        return [fields for _, fields in self.entries(keys.late(self.p))]

    def entries(self, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """A stream as it is, oldest first."""
        return cast("list[tuple[bytes, dict[bytes, bytes]]]", self.client.xrange(stream))

    def deadlines(self) -> dict[str, int]:
        found = cast("list[Any]", self.client.zrange(keys.deadlines(self.p), 0, -1, withscores=True))
        return {name.decode(): int(score) for name, score in found}

    def now_ms(self) -> int:
        """The server's own clock."""
        seconds, micros = self.client.time()
        return seconds * 1000 + micros // 1000

    def everything(self) -> dict[bytes, tuple[bytes | None, int]]:
        """Every key as the server would dump it, and when it ends: equal means nothing changed."""
        names = sorted(cast("list[bytes]", self.client.keys("*")))
        with self.client.pipeline(transaction=False) as asked:
            for name in names:
                asked.dump(name)
                asked.pexpiretime(name.decode())
            said = asked.execute()
        return dict(zip(names, zip(said[::2], said[1::2], strict=True), strict=True))
