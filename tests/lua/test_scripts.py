"""What holds for every script: one slot, its arity, wrong types, full memory, the text itself."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from gateway.core.accounts.definitions import TenantDefinition
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import PARTITIONS, HoldExtension, HoldRequest, Limits, Settlement, Verdict
from gateway.counters.keeper import outbox
from gateway.counters.layouts import packing, states
from gateway.counters.leases import allowance
from gateway.counters.redis import keys, scripts
from tests.builders import NO_LIMITS, ONE_TIME, TOMBSTONE_MS, TTL_MS, World, new_id
from tests.conftest import ValkeyServer
from tests.lua.conftest import AMONG_OTHERS
from tests.lua.lint import warnings
from tests.lua.windows import OTHER_NAME, account, window

LUA = Path(__file__).parents[2] / "lua"
VERBS = list(scripts.VERBS)
BUDGETS = account(window(1, 10**6)), account(window(2, 10**6), name=OTHER_NAME, value="ann")
SERVICE = type(ONE_TIME)(id=9, key="every", meter="consumption", counts_tokens=True, one_time=True)


def calls(world: World) -> dict[str, packing.Call]:
    """One call of every script and mode, with every key it can take and a reset that is due."""
    world.plan(100, reset_interval="daily", on_store_failure="allow")
    world.grant("credits", 100)
    world.define_user("ann", Limits(concurrency=9))
    budgets, names = BUDGETS, tuple(one.name for one in BUDGETS)
    request = HoldRequest(world.caller, new_id(), "ann", SERVICE, 5, 5, 1, 1, budgets=budgets, money=5)
    taken: Any = {"user": "ann", "budgets": budgets, "money": 5}
    holds = {mode: world.reserve(5, service=SERVICE, credits_=1, **taken) for mode in (1, 2, 3, 4, 6)}
    live = [world.reserve(5, **taken) for _ in range(2)]
    held = new_id()
    world.run("lease", allowance.lease(world.run_id, world.caller, held, TTL_MS, fraction=0.1))
    world.put_tenant(next_reset=world.now_ms() // 86_400_000 * 86_400_000)
    made = {"reserve": packing.reserve(world.run_id, 1, TTL_MS, request)}
    for mode, name in ((1, "charge"), (2, "release"), (3, "reclaim"), (4, "post"), (6, "correct")):
        settlement = Settlement(
            world.caller, holds[mode].id, "ann", SERVICE, charge=mode != 2, tokens=7, credits=1,
            budgets=names, money=5,
        )  # fmt: skip
        is_late = mode in {packing.MODE_POST, packing.MODE_CORRECT}
        late: Any = world.client.xadd(keys.late(world.p), {"a": ""}) if is_late else None
        definitions = tuple(one.defined for one in budgets) if is_late else ()
        made[f"settle {name}"] = packing.settle(
            world.run_id, TOMBSTONE_MS, settlement, mode, late, definitions=definitions
        )
    made["settle unknown"] = packing.settle(
        world.run_id, TOMBSTONE_MS, Settlement(world.caller, new_id(), "ann", SERVICE, charge=True), 1
    )
    made["extend"] = packing.extend(
        world.run_id,
        TTL_MS,
        world.p,
        [(HoldExtension(world.caller, one.id, 0, 9, budgets=names), 9) for one in live],
    )
    terms = PlanTerms(plan_id=2, total_amount=50, reset_interval="daily")
    for verb in packing.VERBS:
        made[f"grant {verb}"] = packing.grant(
            world.run_id, verb, 1, new_id(), tenant_id=7, organization_id=1, terms=terms,
            accounts=names if verb == "budget" else (),
        )  # fmt: skip
    definition = TenantDefinition(7, 1, NO_LIMITS, NO_LIMITS, terms)
    made["load define"] = packing.define(world.run_id, 10**6, definition)
    marker = world.get(keys.marker(world.p))
    made["load rebuild"] = packing.rebuild(
        world.run_id, world.p, world.tenant_key, states.pack(world.tenant), marker
    )
    made["load verify"] = packing.rebuild(world.run_id, world.p, keys.marker(world.p), marker, marker)
    made["lease"] = allowance.lease(
        world.run_id, world.caller, new_id(), TTL_MS,
        fraction=0.1, tokens=allowance.AccountLease(5, 3, 2), credits_=allowance.AccountLease(1, 1, 1),
    )  # fmt: skip
    made["lease give back"] = allowance.lease(world.run_id, world.caller, held, allowance.GIVE_BACK)
    made["peek"] = ((keys.marker(world.p), world.tenant_key, world.tenant_key), (world.run_id, b"3"))
    made["run"] = packing.run(world.run_id, packing.RUN_LOOK, world.caller, "job")
    limits = b'{"requests":60,"tokens":60,"concurrency":2}'
    asks = b'[{"id":"a","share":"o1","weight":1,"requests":0,"tokens":0,"batch":0,"need":5,"more":0}]'
    made["share"] = (keys.capacity("openai", "")[1], (limits, asks, b"[]", b"[]", b"[]"))
    made["throttle"] = ((keys.bucket(world.p, 3),), (b"60",))
    payment = b'{"organization_id":1,"model":"m","tokens":5,"until_s":%d}' % (world.now_ms() // 1000 + 60)
    made["note"] = ((keys.object_note("aa" * 16),), (payment,))
    lists = keys.objects(world.p, 1), keys.answers(world.p, 1)
    made["grow"] = (lists, (b"1700000000", b"5", b"0", b"d" * 16, b""))
    (entry_id, _), *_ = world.entries(keys.outbox(world.p))
    made["park"] = outbox.park(world.run_id, (world.p, 1), moved=[entry_id])
    return made


CALLS = [
    "reserve", "settle charge", "settle release", "settle reclaim", "settle post", "settle correct",
    "settle unknown", "extend",
    *(f"grant {verb}" for verb in packing.VERBS), "load define", "load rebuild", "load verify",
    "peek", "lease", "lease give back", "park",
]  # fmt: skip


def run(world: World, name: str, call: packing.Call) -> Any:
    return world.run(name.partition(" ")[0], call)


@AMONG_OTHERS
@pytest.mark.parametrize("name", CALLS)
def test_every_call_runs_and_touches_only_the_keys_it_declares(world: World, name: str) -> None:
    """Undisturbed each does its work; every key written is one of KEYS, by what changed in the database."""
    call = calls(world)[name]
    before = world.everything()
    answer = run(world, name, call)
    after = world.everything()
    if name == "reserve":
        assert packing.decision(answer, SERVICE).verdict is Verdict.ADMITTED
    elif name == "lease give back":
        assert packing.code_of(answer) == allowance.NONE
    elif name not in {"settle unknown", "extend", "peek"}:
        assert packing.code_of(answer) == 1
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= {key.encode() for key in call[0]}
    assert bool(changed) is (name not in {"peek", "load rebuild"})


# --- one slot ---------------------------------------------------------------------------


def test_every_script_runs_in_cluster_mode_on_its_one_slot(valkey_cluster: ValkeyServer) -> None:
    world = World(valkey_cluster.url)
    for name, call in calls(world).items():
        slots = {world.client.execute_command("CLUSTER KEYSLOT", key) for key in call[0]}  # type: ignore[no-untyped-call]  # untyped in redis-py
        assert len(slots) == 1, name
        run(world, name, call)
    world.client.close()


def test_all_keys_of_a_partition_share_a_tag() -> None:
    for p in (0, 7, PARTITIONS - 1):
        names = [
            keys.marker(p), keys.key_state(p, 1), keys.user_state(p, 1, "x{y}z"), keys.tenant_state(p, 1),
            keys.organization_state(p, 1), keys.hold(p, new_id()), keys.deadlines(p), keys.outbox(p),
            keys.late(p), keys.activation(p, 1, 2), keys.control(p), keys.bucket(p, 1), keys.parked(p),
            keys.parked_entries(p, 1),
        ]  # fmt: skip
        assert {re.findall(r"\{.*?\}", name)[0] for name in names} == {f"{{p{p:02d}}}"}


# --- arity ------------------------------------------------------------------------------


def test_wrong_arity_is_refused_before_anything_is_read(world: World) -> None:
    made = calls(world)
    before = world.everything()
    for verb, more in itertools.product(VERBS, [(-1, 0), (1, 0), (0, -1), (0, 1)]):
        more_keys, more_arguments = more
        names, arguments = next(call for name, call in made.items() if name.startswith(verb))
        if verb == "peek":  # takes any number of states, but at least one
            names, more_keys = names[:2], -1 if not more_arguments else 0
        names = (*names, "tk:{p00}:more")[: len(names) + more_keys]
        arguments = (*arguments, b"more")[: len(arguments) + more_arguments]
        with pytest.raises(redis.ResponseError, match=f"{verb} takes|budget account"):
            world.run(verb, (names, arguments))
        assert world.everything() == before


# --- wrong types ------------------------------------------------------------------------

TYPES: dict[str, Callable[[redis.Redis, str], Any]] = {
    "hash": lambda client, name: client.hset(name, "f", "v"),
    "string": lambda client, name: client.set(name, "not packed"),
    "list": lambda client, name: client.rpush(name, "v"),
    "stream": lambda client, name: client.xadd(name, {"other": "v"}),
    "set": lambda client, name: client.sadd(name, "v"),
    "zset": lambda client, name: client.zadd(name, {"v": 1}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_key_of_a_wrong_type_leaves_nothing_half_written(world: World, name: str) -> None:
    """Each key in turn is spoilt: the call either does nothing at all or all of its work."""
    call = calls(world)[name]
    stored = [(key, world.client.dump(key), max(world.client.pttl(key), 0)) for key in world.everything()]
    kept = contents(world)
    for key, kind in itertools.product(call[0], TYPES):
        with world.client.pipeline() as anew:
            anew.flushdb()
            for one, value, ttl in stored:
                anew.restore(one, ttl, value)
            anew.delete(key)
            TYPES[kind](anew, key)
            anew.execute()
        spoilt = content(world, key.encode())
        try:
            run(world, name, call)
        except redis.ResponseError:
            assert contents(world) == kept | {key.encode(): spoilt}, (key, kind)
        else:
            assert balanced(world), (key, kind)


def contents(world: World) -> dict[bytes, Any]:
    """What every key holds; a stream by its entries."""
    found = {name: content(world, name) for name in cast("list[bytes]", world.client.keys("*"))}
    return {name: value for name, value in found.items() if value}


def content(world: World, name: bytes) -> Any:
    return world.client.dump(name) if world.client.type(name) != b"stream" else world.client.xrange(name)


def balanced(world: World) -> bool:
    """Whether the tenant's account is what its entries say (where both can be read)."""
    try:
        tenant, events = world.tenant, [one for one in world.events() if one.flags & 1]
    except (KeyError, ValueError, redis.ResponseError, struct.error):
        return True
    return (
        not events
        or tenant.seq == 0
        or (events[-1].seq, events[-1].remaining) == (tenant.seq, tenant.remaining)
    )


# --- memory -----------------------------------------------------------------------------


def test_full_memory_refuses_new_holds_and_runs_alone(own_valkey: Callable[..., ValkeyServer]) -> None:
    world = World(own_valkey().url)
    made = calls(world)
    world.client.config_set("maxmemory", 1)
    before = world.everything()
    for verb in ("reserve", "run", "note", "grow"):
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            run(world, verb, made[verb])
    assert world.everything() == before
    for name, call in made.items():
        if name not in {"reserve", "run", "note", "grow", "load rebuild"}:
            run(world, name, call)
    assert world.tenant.inflight == 2
    world.client.config_set("maxmemory", 0)
    run(world, "reserve", made["reserve"])
    world.client.close()


# --- the texts --------------------------------------------------------------------------


def test_no_constant_is_left_unnamed() -> None:
    """A constant that is nowhere defined would be read as a global: nil."""
    text = scripts.library().text
    found = {
        name
        for name in {token["name"] for token in scripts._TOKEN.finditer(text) if token["name"]}
        if re.fullmatch(r"[A-Z][A-Z0-9_]{2,}", name)
    }
    assert found <= {"KEYS", "ARGV"} | _locals(text)


def _locals(text: str) -> set[str]:
    lists = re.findall(r"\blocal ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*)\b", text)
    return {name for names in lists for name in names.split(", ")}


def test_a_constant_list_of_different_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        scripts._fold("local ONE, TWO = 1\n")


@pytest.mark.parametrize(
    "kept",
    [
        "call('TIME')", 'call("TIME")', "call('a\\'TIME')", "[[TIME]]", "[==[ ]] TIME ]==]", "t.TIME",
        "t . TIME", "{TIME = 1}", "'TIME' .. \"TIME\"", "x --[[ TIME ]] y", "x -- TIME", "TIMES", "_TIME",
        "0xTIME",
    ],
)  # fmt: skip
def test_a_constant_is_a_name_and_no_part_of_a_text(kept: str) -> None:
    assert scripts._fold(f"local TIME = 3\nreturn {kept}").strip() == f"return {kept}"


@pytest.mark.parametrize(
    ("named", "put"),
    [
        ("TIME", "3"), ("a..TIME", "a..3"), ("a .. TIME", "a .. 3"), ("t[TIME]", "t[3]"),
        ("x == TIME", "x == 3"), ("TIME == x", "3 == x"), ("'a' .. TIME .. 'b'", "'a' .. 3 .. 'b'"),
        ("{TIME, 1}", "{3, 1}"),
    ],
)  # fmt: skip
def test_a_constant_is_put_where_it_is_named(named: str, put: str) -> None:
    assert scripts._fold(f"local TIME = 3\nreturn {named}").strip() == f"return {put}"


def test_a_constant_with_two_values_is_refused() -> None:
    with pytest.raises(ValueError, match="ONE has two values"):
        scripts._fold("local ONE = 1\nlocal ONE = 2\n")


def assembled(**changed: str) -> scripts.Library:
    """The library of these files and of verbs that do nothing else than to name them."""
    texts = {f"{name.replace('__', '/')}.lua": text for name, text in changed.items()}
    return scripts.assemble(lambda name: texts.get(name, ""))


@pytest.mark.parametrize("other", ["local function ours() end\n", "local mine, ours = 1, 2\n"])
def test_a_name_that_two_files_declare_is_refused(other: str) -> None:
    with pytest.raises(ValueError, match="two files of lua/lib declare ours"):
        assembled(note="-- needs: a b\n", lib__a="local function ours() end\n", lib__b=other)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        ("-- needs: a c\n-- sets: level\n", "lib/b.lua needs: a$"),
        ("-- needs: a\n", "lib/b.lua sets: level$"),
        ("-- needs: a\n-- sets: level other\n", "lib/b.lua sets: level$"),
        ("-- needs: a\n-- sets: level\n", ""),
        ("-- needs: b\n", "need each other: b b$"),
    ],
)
def test_a_head_lists_the_files_whose_names_a_file_uses_and_its_own_names(head: str, why: str) -> None:
    files = {
        "note": "-- needs: b\nreturn mine()",
        "lib__a": "local level, other = 0, 1\n",
        "lib__b": f"{head}local function mine() if other > 0 then level = other end end\n",
        "lib__c": "local nothing = 0\n",
    }
    with pytest.raises(ValueError, match=why) if why else nullcontext():
        assembled(**files)


STEPS = """\
-- functions:
local function of(first)
  --> one
  --> two
end

-- step one of of: the beginning.
-- reads: first
-- sets: both
do
  local both, alone = first * 2, 1
end

-- step two of of: the end.
-- reads: both
do
  return both
end
"""


def test_error_in_a_step_names_the_step_and_its_function() -> None:
    made = assembled(note=f"return of(1)\n\n{STEPS}")
    lines = made.text.split("\n")
    begin = lines.index("local function of(first)")
    assert lines[begin + 1 : begin + 4] == ["  local both, alone = first * 2, 1", "  return both", "end"]
    assert made.located(f"ERR user_function:{begin + 3}: no") == "ERR lua/note.lua:19, step two: no"


@pytest.mark.parametrize(
    ("put", "there", "why"),
    [
        ("reads: both", "reads: first both", "step two of of reads: both$"),
        ("-- reads: first\n", "", "step one of of reads: first$"),
        ("return both", "return both + alone", "step two of of uses what no step sets: alone$"),
        ("return both", "local first = both\n  return first", "step two of of declares again: first$"),
        ("sets: both", "sets: both other", "step one of of does not set: other$"),
        ("--> two", "--> three", "has no step three of of$"),
        ("  --> two\n", "", "has a step that no function has: two$"),
    ],
)
def test_step_with_another_list_in_its_head_is_refused(put: str, there: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        assembled(note=f"return of(1)\n\n{STEPS.replace(put, there)}")


def test_what_only_one_file_names_takes_no_place_among_the_locals_of_all() -> None:
    text = (
        "local kept, told = 1\nlocal alone = 2\nlocal later, soon\n"
        "local function mine() return alone end\nlocal function ours() end"
    )
    scoped = scripts._scoped(text, {"told", "soon", "ours", "print"})
    assert "".join(scoped).splitlines() == [
        "local kept, told, later, soon, ours", "do", "kept, told = 1", "local alone = 2", "",
        "local function mine() return alone end", "function ours() end", "end",
    ]  # fmt: skip


def test_a_flag_is_asked_for_without_a_call(world: World) -> None:
    asked = "local BIT, FIRST = 4, 1\nlocal f = tonumber(ARGV[1])\nlocal t = {f}\n"
    text = scripts._fold(asked + "return {not has(f, BIT) and 1 or 0, has(t[FIRST], BIT) and 2 or 0}")
    assert "has(" not in text
    for flags in range(16):
        assert world.client.eval(text, 0, flags) == ([0, 2] if flags & 4 else [1, 0])


def test_library_places_each_function_at_line_of_its_file() -> None:
    library = scripts.library()
    placed = 0
    for line, place in zip(library.text.split("\n"), library.places, strict=False):
        if named := re.match(r"(?:local )?function (\w+)\(", line):
            file, _, at = place.removeprefix("lua/").partition(":")
            assert f"function {named[1]}(" in (LUA / file).read_text().split("\n")[int(at) - 1]
            placed += 1
    assert placed > 100
    files = {place.removeprefix("lua/").partition(":")[0] for place in library.places if place}
    assert files == {str(path.relative_to(LUA)) for path in LUA.rglob("*.lua")}


@pytest.mark.parametrize(
    ("file", "line", "step"),
    [
        ("settle.lua", "if #ARGV[1] == SETTLEMENT_BYTES then", ""),
        ("lib/state.lua", "  try, pack, parse, values", ""),
        ("settle.lua", "  return SETTLED.span('', 'credits', {code = code", ", step end"),
        ("lib/batch.lua", "  if gone_count > 0 then call('DEL'", ""),
    ],
)
def test_error_of_script_names_line_of_its_file(world: World, file: str, line: str, step: str) -> None:
    world.plan(100)
    call = world.reserve(need=5)
    before, found, _ = scripts.read(file).partition(f"\n{line}")
    assert found
    broken = {file: scripts.read(file).replace(f"\n{line}", f"\n error('broken') {line}", 1)}
    library = scripts.assemble(lambda name: broken.get(name) or scripts.read(name))
    world.client.function_load(library.text)
    names, arguments = packing.settle(
        world.run_id, 0, Settlement(world.caller, call.id, "", call.request.service, charge=True), 1
    )
    with pytest.raises(redis.ResponseError) as raised:
        world.client.fcall(library.functions["settle"], len(names), *names, *arguments)
    where = f"lua/{file}:{before.count(chr(10)) + 2}{step}: broken"
    assert where in library.located(str(raised.value))


def test_the_library_carries_no_function_nobody_calls() -> None:
    text = scripts.library().text
    for name in re.findall(r"local function (\w+)", text):
        assert len(re.findall(rf"\b{name}\b", text)) > 1


# --- lint -------------------------------------------------------------------------------
# luacheck has nothing to say of the scripts, and would have.


WRONG = (
    ("local function of(a) return 1 end\nreturn of(1)", "W212"),
    ("local a = 1\nlocal function of(a) return a end\nreturn of(a)", "W431"),
    ("return nowhere", "W113"),
    ("somewhere = 1", "W111"),
    ("local a = 1", "W211"),
)


def test_the_library_has_no_warnings_and_others_would() -> None:
    wrong = {code: f"#!lua name=x\n{text}\n" for text, code in WRONG}
    found = warnings(wrong | {"library": scripts.library().text})
    assert found.pop("library") == []
    for code, lines in found.items():
        assert [code in line for line in lines] == [True]
