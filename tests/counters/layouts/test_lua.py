"""The scripts go by the names of fields: whatever a layout gets, nobody reads or writes other bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gateway.core.accounts.plans import PlanTerms
from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.billing.price_book import TokenRate
from gateway.core.layout import KINDS, LAYOUT, Layout, LayoutField
from gateway.core.model import HoldRequest, Limits, Service
from gateway.counters.layouts import lua, packing, states
from gateway.counters.leases import allowance
from gateway.counters.redis import keys, scripts
from tests.builders import BY_TOKEN, CHAT, ONE_TIME, Call, World

LUA = Path("lua")
RECORDED = json.loads((Path(__file__).parent / "unnumbered.json").read_text())
TIERED = Service(
    id=4, key="search", meter="pay_per_use", counts_tokens=False,
    pricing=ServicePricing(tiers=(PriceTier(10, Decimal("0.001")), PriceTier(None, Decimal("0.0008")))),
)  # fmt: skip
TERMS = PlanTerms(
    plan_id=2, total_amount=20_000, reset_interval="monthly", on_exhausted="cut", on_store_failure="allow",
    rollover_max=70, anchor=31,
)  # fmt: skip
RATE = TokenRate(0, 0, 2 * 10**15)
# A Redis whose clock stands: 2026-01-01.
NOW_S = 1767225600
DUMMY = LayoutField("dummy", KINDS["u8"], 9, LAYOUT)
STORED = {
    "k": "KEY", "u": "USER", "t": "TENANT", "o": "ORGANIZATION", "h": "HOLD", "a": "ACTIVATION",
    "m": "MARKER",
}  # fmt: skip
ARGUMENTS = {
    ("reserve", 0): "RESERVE", ("reserve", 2): "TIER", ("settle", 0): "SETTLEMENT", ("settle", 4): "TIER",
    ("grant", 0): "GRANT", ("grant", 2): "PLAN", ("lease", 0): "LEASE", ("load", 0): "LOAD",
}  # fmt: skip
DEFINITIONS = {1: "DEFINE_KEY", 2: "DEFINE_USER", 3: "DEFINE_TENANT", 4: "DEFINE_ORGANIZATION"}
ANSWERS = {
    "reserve": ("ADMITTED", "REFUSED", "CODE"), "settle": ("SETTLED", "GONE", "CODE"),
    "grant": ("GRANTED", "CODE"), "lease": ("LEASED", "NO_LEASE", "CODE"), "load": ("CODE",),
}  # fmt: skip
TODAY = {one.name: one for one in packing.LAYOUTS}
Where = Callable[[Layout], int]
PLACES: dict[str, Where] = {
    "first": lambda layout: begin(layout) + 0,
    "second": lambda layout: begin(layout) + 1,
    "in the middle": lambda layout: len(layout.fields) // 2,
    "last": lambda layout: len([one for one in layout.fields if not one.is_text]),
}


def begin(layout: Layout) -> int:
    """Where a field may be put: a number comes first."""
    return int(layout.fields[0].name == "layout")


def changed(where: Where) -> dict[str, Layout]:
    """Every layout with a field more; what layouts share they share still."""
    made = {}
    for one in packing.LAYOUTS:
        places = {where(one)}
        if one.shared:
            places = {where(states.ACCOUNT), *(place for place in places if place > one.shared)}
        if one is packing.PLAN:
            places = set()
        if one.name.startswith("DEFINE_"):  # which begin with limits, and the tenant's ends with a plan
            last = one.index("plan_id") if one is packing.DEFINE_TENANT else len(one.fields)
            places = {min(where(packing.DEFINE_KEY), last)}
        fields = list(one.fields)
        places = {place + (place in windows(one)) for place in places}
        for place in sorted(places, reverse=True):
            fields.insert(place, DUMMY._replace(name=f"{DUMMY.name}{place}"))
        made[one.name] = Layout(one.name, tuple(fields), one.shared and one.shared + 1, one.before)
    return made


def windows(layout: Layout) -> set[int]:
    """Where no field may be put: what is held of a window is right behind what is used."""
    return {layout.index(used) + 1 for name, used in packing.RECORDS.values() if name == layout.name}


def as_it_is(packed: bytes, of: Layout, into: Layout) -> bytes:
    """The fields of one layout as another has them, over and over, then whatever follows them."""
    whole = b""
    while len(packed) >= of.size:
        values = dict(
            zip(
                [one.name for one in of.fields if not one.is_text], of.struct.unpack_from(packed), strict=True
            )
        )
        whole += into.pack(*(values.get(one.name, one.default) for one in into.fields if not one.is_text))
        packed = packed[of.size :]
    return whole + packed


class Changed(World):
    """A world whose scripts know other layouts; without any, those of today."""

    def __init__(self, url: str, layouts: dict[str, Layout]) -> None:
        self.layouts = layouts
        self.answers: list[Any] = []
        self.made = scripts.assemble(stopped_clock, list(layouts.values()))
        super().__init__(url)

    def load_library(self) -> None:
        self.client.function_load(self.made.text, replace=True)

    def run(self, verb: str, call: packing.Call) -> Any:
        names, arguments = call
        packed = [self._packed(verb, at, one, arguments) for at, one in enumerate(arguments)]
        answer = self.client.fcall(self.made.functions[verb], len(names), *names, *packed)
        if verb == "extend":
            head = self._today("CODE", answer[: self.layouts["CODE"].size])
            return head + self._today("EXTENDED", answer[self.layouts["CODE"].size :])
        for name in ANSWERS[verb]:
            if len(answer) == self.layouts[name].size:
                return self._today(name, answer)
        raise AssertionError(answer)

    def _today(self, name: str, packed: bytes) -> bytes:
        return as_it_is(packed, self.layouts[name], TODAY[name])

    def _packed(self, verb: str, at: int, one: bytes, arguments: Sequence[bytes]) -> bytes:
        name = ARGUMENTS.get((verb, at))
        if verb == "extend" and at > 1:
            name = "EXTEND"
        if verb == "load" and at > 0:
            kind = packing.LOAD.read(arguments[0])["kind"]
            name = DEFINITIONS.get(kind, "MARKER") if at == 1 else None
        return as_it_is(one, TODAY[name], self.layouts[name]) if name else one

    def found(self) -> dict[str, Any]:
        """Everything that is stored, by the names of fields, without those that were put there."""
        found: dict[str, Any] = {}
        for raw in sorted(self.client.keys("tk:*")):
            name = raw.decode()
            of = STORED.get(name.split(":")[2])
            if of:
                layout = self.layouts[of]
                packed = layout.today(self.get(name))
                values = layout.read(packed[: layout.size])
                found[name] = without_dummies(values), self._tail(packed[layout.size :])
        entry = self.layouts["ENTRY"]
        for number, (_, fields) in enumerate(self.entries(keys.outbox(self.p))):
            values = entry.read(fields[b"e"][: entry.size])
            # What units were priced by are tiers, which are changed themselves.
            texts = b"" if values["units"] else fields[b"e"][entry.size :]
            found[f"entry {number}"] = without_dummies(values), texts
        return found

    def _tail(self, tail: bytes) -> bytes:
        user, _, tiers = tail.partition(b"\0")
        return user + as_it_is(tiers, self.layouts["TIER"], TODAY["TIER"])


def without_dummies(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith(DUMMY.name)}


def stopped_clock(name: str) -> str:
    return scripts.read(name).replace("call('TIME')", f"{{{NOW_S}, 0}}")


def number_of(start: int = 0) -> Iterator[str]:
    """Ids in their order."""
    return (f"00000000-0000-4000-8000-{number:012}" for number in count(start))


def everything(world: Changed) -> list[Any]:
    """Something of each verb that reads or writes an account; what each call was answered."""
    ids = number_of()
    said: list[Any] = []
    world.define_organization(Limits(100, 10_000, 50), credit_limit=5, cap=10**9)
    world.define_tenant(Limits(90, 9_000, 40), users=Limits(20, 2_000, 10))
    world.define_key(Limits(80, 8_000, 30), expires_ms=(NOW_S + 9) * 1000)
    world.define_user("own", Limits(2, 300, 9))
    said.append(world.grant("plan", write_id=next(ids), terms=TERMS))
    said.append(world.grant("credits", 1000, write_id=next(ids)))

    def reserve(need: int = 0, **more: Any) -> Call:
        call = world.reserve(need, request_id=more.pop("request_id", next(ids)), **more)
        said.append(call.decision)
        return call

    first = reserve(100, user="ann")
    said.append(first.settle(60, metadata=b'{"x":1}', attribution="a\tb\t1"))
    reserve(7000, user="ann")
    reserve(5000)  # refused: the minute's tokens
    for _ in range(3):
        reserve(10, user="own")  # the third is refused: two a minute
    said.append(reserve(service=ONE_TIME, credits_=50).settle(credits=50))
    said.append(reserve(service=TIERED, units=12).settle(units=12))
    reserve(service=TIERED, units=8, user="ann")
    priced = reserve(20, service=BY_TOKEN, credits_=9)
    said.append(priced.priced(30, 10, RATE))
    raised = reserve()
    reserve(30, request_id=raised.id, raises=True)
    said.append(raised.reclaim(tokens=11))
    said.append(raised.settle(tokens=12))  # reclaimed before: into the late queue
    share = allowance.lease(world.run_id, world.caller, next(ids), 30_000, fraction=0.1)
    said.append(allowance.leased(world.run("lease", share)))
    said.append(world.grant("adjust", -7000, write_id=next(ids)))
    reserve(10)  # refused: nothing is left
    return said


@pytest.mark.parametrize("place", PLACES)
def test_a_field_more_changes_nothing(place: str, valkey: str) -> None:
    with_today = Changed(valkey, TODAY)
    expected = everything(with_today), with_today.found()
    assert len(expected[1]) > 15
    with_today.client.flushall()
    with_more = Changed(valkey, changed(PLACES[place]))
    assert (everything(with_more), with_more.found()) == expected


def continued(world: Changed) -> list[Any]:
    """What becomes of accounts and calls that were stored without numbers."""
    for name, packed in RECORDED["strings"].items():
        if not name.endswith(":m"):
            world.client.set(name, bytes.fromhex(packed))
    world.version = 10**6
    said: list[Any] = []
    for name, service, used in (("tokens", CHAT, {"tokens": 60}), ("units", TIERED, {"units": 12})):
        request = HoldRequest(world.caller, RECORDED["ids"][name], "", service, 0, 0)
        call = Call(world, request, packing.decision(packing.CODE.pack(0), service))
        said += [call.extend(70, 5), call.settle(**used)]
    said.append(world.reserve(10, user="own", request_id=RECORDED["ids"]["own"], raises=True).decision)
    said.append(world.grant("recharge", 5, write_id=next(number_of())))
    world.define_key(Limits(5, 5, 5))
    return said


@pytest.mark.parametrize("place", PLACES)
def test_a_field_that_comes_is_put_into_what_was_stored_before(place: str, valkey: str) -> None:
    with_today = Changed(valkey, TODAY)
    expected = continued(with_today), with_today.found()
    with_today.client.flushall()
    with_more = Changed(valkey, changed(PLACES[place]))
    assert (continued(with_more), with_more.found()) == expected


BY_HAND = re.compile(
    r"\b(?:sub|byte)\([^()]*(?:\([^()]*\)[^()]*)*,\s*\d|\b(?:parse|pack)\(\s*['\"]|'<[a-zA-Z]"
)


@pytest.mark.parametrize("path", sorted(LUA.rglob("*.lua")), ids=str)
def test_no_script_counts_bytes(path: Path) -> None:
    code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("--"))
    code = code.replace("sub(request, 1, VERSION_AT - 1)", "")  # of a request id, which is no layout
    assert not BY_HAND.findall(code)


@pytest.mark.parametrize("said", ["sub(raw, 10, 33)", "byte(raw, 2)", "parse('<d', raw, 9)", "sub(f(a), 9)"])
def test_what_counts_bytes_is_seen(said: str) -> None:
    assert BY_HAND.search(said)


@pytest.mark.parametrize(
    "script",
    [
        "local none = HOLD.read(raw)", "HOLD.field(raw, 'none')", "HOLDS.field(raw, 'tokens')",
        "HOLD.guess(raw, 'tokens')", "HOLD.read(raw)", "HOLD.pack{none = 1}",
        "GONE.pack{code = 1, now = now}", "HOLD.pack{tokens = 1",
    ],
)  # fmt: skip
def test_what_no_layout_has_is_not_assembled(script: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        lua.expanded(script, packing.LAYOUTS)
