"""Each check of admission on each kind of use, played on a gateway: alone, and all in the documented order.

A cell of the table has the reason of the refusal, or says why there is none on purpose.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from gateway.core.accounts.budgets import FLAG_MONEY, Budget, account_of
from gateway.core.accounts.definitions import ModelLists
from gateway.core.accounts.run_policies import RunPolicy
from gateway.core.billing.price_book import read_price
from gateway.core.calls.routes import ServiceRules
from gateway.core.families import openai
from gateway.core.model import (
    BATCH,
    BY_BUDGETS,
    USER_REQUIRED,
    BudgetWindow,
    HoldExtension,
    LimitKind,
    Refused,
    Scope,
    Service,
    Verdict,
)
from gateway.errors import ServiceNotIncluded
from gateway.http.ports import JobsPort
from tests.core.billing.prices import price_row
from tests.features.caller_holds.test_authorized import AUTHORIZE, Holds
from tests.features.capacity.test_queues import CAPACITY, FakeCapacity, limiter_of
from tests.features.jobs.test_gateway import FakeJobs
from tests.features.websockets.live_upstream import LiveUpstream, playing
from tests.features.websockets.test_live import CREATED, until
from tests.features.websockets.test_sockets import WHOLE
from tests.http.fakes import CALLER, KEY, ROUTES, answer, get, post
from tests.http.stage import WITHIN_S, Answer, Stage, staged
from tests.http.test_models import rule
from tests.waiting import eventually

ON_PURPOSE = "on purpose: because "
MODEL, TRAINED, OWN, OTHERS = "x", "ft:gpt-5:theirs::1", "ft:gpt-5:ours::1", 99
THERE = (*[replace(route, upstream="up") for route in openai.FAMILY.routes], *ROUTES[-3:])
SMS = Service(90, "sms", "consumption", counts_tokens=False, credits=10, upstream="up")
NAMES = ("chat", "responses", "realtime")
MONEY = Budget(1, "money", "money", 10**15, "day")
FULL: dict[str, Any] = {"audio_input": "1", "audio_output": "1", "image_output": "1"}
OPEN, SPENT = (BudgetWindow(1, 100, used, 61_000, FLAG_MONEY) for used in (50, 100))
EXCEEDED = Refused(
    Verdict.BUDGET_EXCEEDED, Scope.BUDGET, LimitKind.BUDGET, 100, 100, 61_000, 1_000, budget=SPENT
)
SOUND = [{"role": "user", "content": [{"type": "thing", "thing": "https://x/a.mp3"}]}]


@dataclass
class Scene:
    """A gateway, and a use of a `model` with a `price`, or of a service that is `bound` to paths."""

    stage: Stage
    capacity: FakeCapacity
    bound: bool = False
    model: str = MODEL
    price: dict[str, Any] | None = field(default_factory=lambda: dict(FULL))
    body: dict[str, Any] = field(default_factory=lambda: {"input": "hi", "max_output_tokens": 9})
    session: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=lambda: {"x-tollkeeper-user": "ann"})
    late: list[Callable[[Scene], None]] = field(default_factory=list)

    def call(self, **more: Any) -> dict[str, Any]:
        """Return the body of a call of the Responses API."""
        return {"model": self.model, **self.body, **more}

    def become(self, **more: Any) -> None:
        """Change the caller's key."""
        self.stage.directory.caller = replace(self.stage.directory.caller, **more)

    def settle_prices(self) -> None:
        """Give the scene's model its price, or none."""
        prices = self.stage.directory.prices
        prices["m"] = _price("m", FULL)
        prices.pop(self.model, None)
        if self.price is not None:
            prices[self.model] = _price(self.model, self.price)


def _price(model: str, more: dict[str, Any]) -> Any:
    return read_price(price_row(id=5, model=model, input="1", output="2", **more)).vector


# What is wrong, one for each check.
def _user(scene: Scene) -> None:
    scene.become(user_header=USER_REQUIRED)
    del scene.fields["x-tollkeeper-user"]


def _priority(scene: Scene) -> None:
    scene.become(priority=BATCH)
    scene.fields["x-tollkeeper-priority"] = "interactive"


def _run(scene: Scene) -> None:
    scene.stage.directory.policies = (("tenant", RunPolicy(required=True)),)


def _key_list(scene: Scene) -> None:
    scene.become(models=frozenset({"m"}))


def _lists(scene: Scene, **more: Any) -> None:
    scene.stage.directory.lists = replace(scene.stage.directory.lists or ModelLists(), **more)


def _tenant_list(scene: Scene) -> None:
    _lists(scene, tenants={CALLER.tenant_id: ("m",)})


def _user_list(scene: Scene) -> None:
    _lists(scene, users={"ann": ("m",)})


def _rule(scene: Scene) -> None:
    scene.stage.directory.models_there = (rule(scene.model, ("up", scene.model), organization_id=OTHERS),)


def _service(scene: Scene) -> None:
    scene.stage.directory.terms = dict.fromkeys(("sms", *NAMES), ServiceNotIncluded())


def _overlapping(scene: Scene) -> None:
    scene.stage.directory.services["freebie"] = replace(SMS, id=89, key="freebie", credits=0)
    scene.bound = True


def _prices(scene: Scene) -> None:
    scene.price = None


def _tools(scene: Scene) -> None:
    scene.body["tools"] = [{"type": "web_search"}]
    scene.session["tools"] = [{"type": "web_search"}]


def _media(scene: Scene) -> None:
    scene.price = None if scene.price is None else {}
    scene.body["input"] = SOUND


def _objects(scene: Scene) -> None:
    scene.stage.objects.kept |= {(OTHERS, "resp_theirs"), (OTHERS, "voice_theirs")}
    scene.body["previous_response_id"] = "resp_theirs"
    scene.session["audio"] = {"output": {"voice": {"id": "voice_theirs"}}}


def _trained(scene: Scene) -> None:
    scene.stage.objects.kept.add((OTHERS, TRAINED))
    scene.model = TRAINED


def _breaker(scene: Scene) -> None:
    entry = f"{scene.stage.plane._upstreams['up'].accounts[0]} model {scene.model}"
    scene.stage.cooling.begin(entry, 30, (), time.monotonic())


def _budgets(scene: Scene) -> None:
    scene.stage.counters.decision = EXCEEDED

    def answer_short(extension: HoldExtension) -> None:
        extension.held, extension.short = 0, BY_BUDGETS
        extension.end_request()

    scene.stage.counters.request_extension = answer_short  # type: ignore[method-assign]  # as of a spent budget
    cast("Holds", scene.stage.plane._ports.holds).short = True


def _budgets_by_model(scene: Scene) -> None:
    budget = Budget(2, "by model", "money", 10**15, "day", model=scene.model)
    scene.stage.directory.budgets_there.append(budget)
    scene.stage.counters.refused[account_of(CALLER.organization_id, budget, "")] = EXCEEDED


def _maxima(scene: Scene) -> None:
    decision = scene.stage.counters.decision
    assert decision is not None
    scene.stage.counters.decision = replace(decision, bounded=True)
    scene.body["n_predict"] = 20_000
    scene.session["max_output_tokens"] = 2_000_000


def _capacity(scene: Scene) -> None:
    scene.capacity.room = 0


FAULTS: dict[str, Callable[[Scene], None]] = {
    "trained model": _trained, "media": _media, "prices": _prices, "run policy": _run, "user": _user,
    "priority": _priority, "list of the key": _key_list, "list of the tenant": _tenant_list,
    "list of the user": _user_list, "rule of the model": _rule, "service": _service,
    "overlapping services": _overlapping, "tools": _tools, "objects": _objects, "breaker": _breaker,
    "maxima": _maxima, "budgets": _budgets, "budgets by model": _budgets_by_model, "capacity": _capacity,
}  # fmt: skip
# Faults that are there before a kind begins, where others come later: those of a message concern its own model.
MADE_BEFORE: dict[str, frozenset[str]] = {"extension": frozenset(), "message": frozenset(
    {"trained model", "media", "prices", "list of the key", "list of the tenant", "list of the user",
     "rule of the model", "budgets by model"}
)}  # fmt: skip


# How each kind is played.
Played = tuple[int, str]


def _told(got: Answer) -> Played:
    return got.status, "" if got.status < 300 else got.reason


async def _ask(scene: Scene, path: bytes, document: dict[str, Any]) -> Played:
    lines = b"".join([f"{name}: {value}\r\n".encode() for name, value in scene.fields.items()])
    body = json.dumps(document).encode()
    return _told(await scene.stage.ask(post(body, path, b"content-type: application/json\r\n" + lines)))


async def play_call(scene: Scene) -> Played:
    return await _ask(scene, b"/services/sms/send" if scene.bound else b"/v1/responses", scene.call())


async def play_background(scene: Scene) -> Played:
    scene.stage.upstream.scripts = [[answer(b'{"id": "resp_1", "status": "queued"}')]]
    return await _ask(scene, b"/v1/responses", scene.call(background=True))


async def play_authorize(scene: Scene) -> Played:
    path = b"/services/sms/send" if scene.bound else b"/v1/responses"
    return await _ask(scene, AUTHORIZE + path, scene.call())


async def play_hold_by_model(scene: Scene) -> Played:
    named = {"service": "sms"} if scene.bound else {"service": "responses", "max_tokens": 9}
    return await _ask(scene, b"/.tollkeeper/holds", {**named, "model": scene.model})


async def play_hold_by_request(scene: Scene) -> Played:
    return await _ask(scene, b"/.tollkeeper/holds", {"service": "responses", "request": scene.call()})


async def play_batch_line(scene: Scene, before: int = 0) -> Played:
    """Make a batch of one line of the scene's call, with plain lines `before` it."""
    bodies = [{"model": scene.model, "input": "hi"}] * before + [scene.call()]
    line = {"method": "POST", "url": "/v1/responses"}
    lines = [json.dumps(line | {"custom_id": str(at), "body": body}) for at, body in enumerate(bodies)]
    cast("FakeJobs", scene.stage.plane._ports.jobs).file = "\n".join(lines).encode()
    scene.stage.objects.kept.add((CALLER.organization_id, "file-1"))
    scene.stage.upstream.scripts = [[answer(b'{"id": "batch_1", "status": "validating"}')]]
    return await _ask(scene, b"/v1/batches", {"input_file_id": "file-1", "endpoint": "/v1/responses"})


@asynccontextmanager
async def _socket(scene: Scene, target: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    headers = {"authorization": f"Bearer {KEY}", **scene.fields}
    url = f"http://127.0.0.1:{scene.stage.port}{target}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as socket:
        yield socket
    await eventually(lambda: scene.stage.plane.sockets.used == 0)


async def _event(socket: aiohttp.ClientWebSocketResponse, kind: str) -> Played:
    """Read up to an event of this type, or to a refusal."""
    while True:
        event = await socket.receive_json(timeout=WITHIN_S)
        if event["type"] == "error":
            return event["status"], event["error"]["headers"]["x-tollkeeper-reason"]
        if event["type"] == kind:
            return 200, ""


async def play_turn(scene: Scene) -> Played:
    scene.stage.upstream.scripts = [[WHOLE]]
    async with _socket(scene, "/v1/responses") as socket:
        await socket.send_json(scene.call(type="response.create"))
        return await _event(socket, "response.completed")


async def _update(socket: LiveUpstream) -> None:
    await socket.send(CREATED)
    while True:
        said = await socket.receive()
        await socket.send({"type": "session.updated", "session": said["session"]})


async def play_live_turn(scene: Scene) -> Played:
    """Open a session, whose first turn is admitted before the upstream hears of it."""
    scene.stage.upstream.handler = playing(_update, [])
    try:
        async with _socket(scene, f"/v1/realtime?model={scene.model}") as socket:
            return await _event(socket, "session.created")
    except aiohttp.WSServerHandshakeError as refused:
        return refused.status, "" if refused.headers is None else refused.headers["x-tollkeeper-reason"]


async def play_extension(scene: Scene) -> Played:
    """Ask for more in a hold by model that was admitted before `late` faults."""
    taken = await scene.stage.ask(post(
        json.dumps({"service": "responses", "max_tokens": 9, "model": scene.model}).encode(),
        b"/.tollkeeper/holds", b"content-type: application/json\r\n",
    ))  # fmt: skip
    assert taken.status == 201, taken.body
    now_ms = scene.stage.counters.decision.now_ms if scene.stage.counters.decision is not None else 0
    cast("Holds", scene.stage.plane._ports.holds).now_ms = lambda: now_ms  # type: ignore[method-assign]  # as limits say
    for wrong in scene.late:
        wrong(scene)
    scene.settle_prices()
    path = b"/.tollkeeper/holds/%b/extend" % json.loads(taken.body)["id"].encode()
    return await _ask(scene, path, {"ttl_s": 60, "more": 100})


async def play_message(scene: Scene) -> Played:
    """Open a session of another model; behind `late` faults an update names the scene's for transcripts."""
    scene.stage.upstream.handler = playing(_update, [])
    async with _socket(scene, "/v1/realtime?model=m") as socket:
        await until(socket, "session.created")
        for wrong in scene.late:
            wrong(scene)
        audio = {"input": {"transcription": {"model": scene.model}}, **scene.session.pop("audio", {})}
        await socket.send_json({"type": "session.update", "session": {"audio": audio, **scene.session}})
        return await _event(socket, "session.updated")


KINDS: dict[str, Callable[[Scene], Awaitable[Played]]] = {
    "call": play_call, "turn": play_turn, "live turn": play_live_turn, "message": play_message, "hold by model": play_hold_by_model,
    "hold by request": play_hold_by_request, "authorize": play_authorize, "batch line": play_batch_line,
    "background": play_background, "extension": play_extension,
}  # fmt: skip
LATER = {"later line": partial(play_batch_line, before=1)}


async def played(kind: str, faults: Collection[str]) -> str:
    """Play a kind of use with these faults; return the reason of its refusal, empty if it passes."""
    capacity = FakeCapacity()
    async with staged(
        THERE, holds=Holds(), jobs=cast("JobsPort", FakeJobs()), services=ServiceRules(),
        of_target={"capacity": CAPACITY}, limiter=limiter_of(capacity), capacity_wait_s=0.02,
    ) as stage:  # fmt: skip
        scene = Scene(stage, capacity)
        cast("FakeJobs", stage.plane._ports.jobs).objects = stage.objects
        stage.directory.services |= {name: Service(91 + at, name) for at, name in enumerate(NAMES)}
        stage.directory.services["sms"] = SMS
        stage.directory.budgets_there = [MONEY]
        assert stage.counters.decision is not None
        stage.counters.decision = replace(stage.counters.decision, budget=OPEN)
        for name, wrong in FAULTS.items():
            if name in faults and name not in MADE_BEFORE.get(kind, FAULTS):
                scene.late.append(wrong)
            elif name in faults:
                wrong(scene)
        scene.settle_prices()
        status, reason = await (KINDS | LATER)[kind](scene)
        await eventually(lambda: not stage.upstream.open or stage.upstream.handler is None)
        assert (status < 300) is not bool(reason), (status, reason)
        return reason


# What is refused, and with which reason. Kinds with another answer have it behind the reason of all others.
AS_ADMITTED = ON_PURPOSE + "its turn was admitted with it, and the next turn asks again"
BODILESS = ON_PURPOSE + "it has no body that could name one"
NO_PATHS = ON_PURPOSE + "it reaches a model's API, whose paths no service may have"
WAITS = ON_PURPOSE + "its provider begins it when there is room"
OWN_CALLS = ON_PURPOSE + "its caller makes the call, and hears the upstream's own refusal"
UNDER_WAY = ON_PURPOSE + "its turn has reached the upstream already"
AS_HELD = ON_PURPOSE + "its hold was admitted with it, for a call that its caller makes"
OPENS = ON_PURPOSE + "it opens without a message, and each message is checked"
HOLDS = ("hold by model", "hold by request", "authorize")
ELSEWHERE = dict.fromkeys(HOLDS, OWN_CALLS) | {"batch line": WAITS, "message": UNDER_WAY}
SILENT = {"hold by model": BODILESS, "live turn": OPENS}
# What an extension is asked again.
OF_EXTENSIONS = ("prices", "budgets")
TABLE: dict[str, tuple[str, dict[str, str]]] = {
    "run policy": ("run_required", {"message": AS_ADMITTED}),
    "user": ("user_required", {"message": AS_ADMITTED}),
    "priority": ("priority_not_allowed", {"message": AS_ADMITTED}),
    "list of the key": ("model_not_allowed", {}),
    "list of the tenant": ("model_not_allowed", {}),
    "list of the user": ("model_not_allowed", {}),
    "rule of the model": ("model_not_allowed", {}),
    "service": ("service_not_included", {"message": AS_ADMITTED}),
    "overlapping services": (
        "unknown_route",
        dict.fromkeys(
            ("turn", "live turn", "message", "hold by request", "batch line", "background"), NO_PATHS
        )
        | {"hold by model": ON_PURPOSE + "it names its service itself, and no path"},
    ),
    "prices": ("model_not_priced", {}),
    "tools": ("model_not_priced", SILENT | {"message": "invalid_request"}),
    "media": ("model_not_priced", {"hold by model": BODILESS}),
    "objects": ("object_not_found", SILENT),
    "trained model": ("object_not_found", {"message": "invalid_request"}),
    "breaker": ("rate_limited", ELSEWHERE),
    "budgets": ("budget_exceeded", {}),
    "budgets by model": ("budget_exceeded", {}),
    "maxima": ("invalid_request", SILENT),
    "capacity": ("capacity_exceeded", ELSEWHERE),
}


def reason_of(kind: str, check: str) -> str:
    """Return the table's cell, empty if the kind passes on purpose."""
    reason, others = TABLE[check]
    cell = AS_HELD if kind == "extension" and check not in OF_EXTENSIONS else others.get(kind, reason)
    return "" if cell.startswith(ON_PURPOSE) else cell


@pytest.mark.parametrize("check", TABLE)
@pytest.mark.parametrize("kind", KINDS)
async def test_kind_of_use_is_refused_by_each_check_or_passes_on_purpose(kind: str, check: str) -> None:
    assert await played(kind, [check]) == reason_of(kind, check)


@pytest.mark.parametrize("kind", KINDS)
async def test_kind_of_use_passes_without_a_fault(kind: str) -> None:
    assert not await played(kind, [])


def documented(kind: str) -> list[str]:
    """Return the checks of a kind in their documented order."""
    lines = (Path(__file__).parents[2] / "docs/internals/request.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    head = next(row for row in rows if row[0] == "Check")
    places = {row[0]: row[head.index(kind)] for row in rows if row[0] in TABLE}
    assert places.keys() == TABLE.keys()
    assert {check for check in TABLE if places[check] != "–"} == {
        check for check in TABLE if reason_of(kind, check)
    }
    return sorted([check for check in TABLE if places[check] != "–"], key=lambda check: int(places[check]))


@pytest.mark.parametrize("kind", KINDS)
async def test_kind_of_use_with_all_faults_is_refused_in_the_documented_order(kind: str) -> None:
    checks = [check for check in documented(kind) if check != "overlapping services"]
    for at, check in enumerate(checks):
        assert await played(kind, checks[at:]) == reason_of(kind, check), check


@pytest.mark.parametrize("kind", ["call", "authorize"])
async def test_use_of_a_bound_service_with_all_faults_is_refused_in_the_documented_order(kind: str) -> None:
    of_services = {"run policy", "user", "priority", "service", "overlapping services"}
    checks = [check for check in documented(kind) if check in of_services]
    assert len(checks) == len(of_services)
    for at, check in enumerate(checks):
        assert await played(kind, ["budgets", *checks[at:]]) == reason_of(kind, check), check


@pytest.mark.parametrize("check", ["tools", "media", "objects", "maxima"])
async def test_later_line_of_a_batch_is_refused_as_the_first(check: str) -> None:
    assert await played("later line", [check]) == reason_of("batch line", check)


async def test_authorization_to_read_a_model_trained_by_another_organization_is_refused() -> None:
    async with staged(THERE, holds=Holds()) as stage:
        stage.objects.kept |= {(OTHERS, TRAINED), (CALLER.organization_id, OWN)}
        for path, status in ((TRAINED, 404), (OWN, 200)):
            for door in (b"", AUTHORIZE):
                got = await stage.ask(get(b"%b/v1/models/%b" % (door, path.encode())), "GET")
                assert got.status == status, (door, path)
