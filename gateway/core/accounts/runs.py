"""Runs: budgets that callers create, and that calls name. A child draws from its parent as well. Pure.

A run belongs to one tenant. It is created by the first call that names it, and does not change until it ends:
so everybody may cache it. Its account is one of budgets (`lua/lib/budget_accounts.lua`): one window for its amount,
and one that counts its calls, in which an ended run has no room.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import msgspec

from gateway.core.accounts.budget_amounts import render_amount
from gateway.core.accounts.budgets import (
    DEFINED_WINDOW,
    FLAG_MONEY,
    FLAG_TOKENS,
    MONEY,
    REQUESTS,
    TOKENS,
    UNIT_OF,
    Budget,
    flags_of,
)
from gateway.core.accounts.intervals import TOTAL
from gateway.core.accounts.run_policies import CallRunPolicies
from gateway.core.layout import Layout
from gateway.core.model import INTEGER_MAX, BudgetAccount, Caller, RunRequest
from gateway.core.times import HOUR_MS, ms_of

FIELD: Final = "x-tollkeeper-run"
OPEN, ENDED, EXHAUSTED = STATUSES = ("open", "ended", "exhausted")
# A stored run; its id follows, then a tab and its parent's id, if it has one.
RUN = Layout("RUN", "u8 version=1 flags, f64 budget_id created expires amount calls_max ended=0 calls=0")
# Ids of a run's windows: an even one that counts calls, the next for its amount. Ids of budgets are lower.
BUDGET_ID_MIN: Final = 2**52
BUDGET_IDS: Final = 2**51
# An ended run counts its calls from this number on: above every limit, and that of a run without one.
ENDED_CALLS: Final = 2**52
ENDLESS_CALLS: Final = ENDED_CALLS - 1
LEVELS_MAX: Final = 8
# Most stored runs of one tenant; below the maximum of accounts of `each` (`lua/lib/budgets.lua`).
RUNS_MAX: Final = 50_000
ID_CHARACTERS_MAX: Final = 128
FIELD_BYTES_MAX: Final = 1_024
TTL_S, TTL_S_MAX = 86_400, 30 * 86_400
# Windows outlive their run by this, because the clocks of gateways may be behind and that of Redis may jump
# by an hour: otherwise windows could start again at zero.
CLOCKS_DIFFER_MS: Final = 2 * HOUR_MS

_encode = msgspec.json.Encoder().encode
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PIECE = re.compile(
    r'\s*(?:([a-z_]+)=)?(?:"((?:[^"\\]|\\["\\])*)"|([\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+))\s*(?:;|$)'
)
_MONEY = re.compile(r"\d+(?:\.\d{1,9})?")
_WHOLE = re.compile(r"[1-9]\d{0,15}")
_PARAMETERS: Final = ("max", "max_tokens", "max_calls", "parent", "ttl")


def read_run(text: str) -> RunRequest:
    """Return the run requested by a header field `ID; max=5.00; parent=ID2; ttl=3600`.

    Raise ValueError, with what would be right, if it is malformed.
    """
    pieces, at = list[tuple[str, str]](), 0
    while at < len(text):
        match = _PIECE.match(text, at)
        if match is None or text.endswith(";"):
            raise ValueError("must be an id, then parameters such as max=5.00, with ; between them")
        name, quoted, bare = match.groups()
        pieces.append((name or "", bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        at = match.end()
    # An id may contain `=`.
    name, id_ = pieces[0] if pieces else ("", "")
    id_ = f"{name}={id_}" if name else id_
    values = dict(pieces[1:])
    if not _ID.fullmatch(id_):
        raise ValueError(f"must begin with an id of 1 to {ID_CHARACTERS_MAX} visible ASCII characters")
    wrong = [value for value in values if value not in _PARAMETERS]
    if wrong or len(values) < len(pieces) - 1:
        raise ValueError(f"takes each of {', '.join(_PARAMETERS)} at most once, and nothing else")
    parent = values.get("parent", "")
    if "parent" in values and (not _ID.fullmatch(parent) or parent == id_):
        raise ValueError("must name another run as its parent")
    if "max" in values and "max_tokens" in values:
        raise ValueError("has one amount: max or max_tokens")
    unit = TOKENS if "max_tokens" in values else MONEY
    ttl_s = _whole(values, "ttl", TTL_S_MAX)
    return RunRequest(
        id_, parent, unit, _amount(values, unit), _whole(values, "max_calls", ENDLESS_CALLS - 1), ttl_s
    )


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def _amount(values: Mapping[str, str], unit: str) -> int:
    """Return the maximum of a run in its unit, -1 for none; raise ValueError with what would be right."""
    if unit == TOKENS:
        return _whole(values, "max_tokens", INTEGER_MAX)
    if "max" not in values:
        return -1
    if not _MONEY.fullmatch(values["max"]):
        raise ValueError("has a max that is no decimal such as 5.00, with nine decimals at most")
    amount = int(Decimal(values["max"]).scaleb(9))
    if not 0 < amount <= INTEGER_MAX:
        raise ValueError("has a max that is no amount above 0 and up to 9007199.254740991")
    return amount


def _whole(values: Mapping[str, str], name: str, most: int) -> int:
    if name not in values:
        return 0
    if not _WHOLE.fullmatch(values[name]) or int(values[name]) > most:
        raise ValueError(f"has a {name} that is no whole number from 1 to {most}")
    return int(values[name])


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it was created. `amount` is -1 without a limit; `calls_max` and `ended_ms` are 0 if unset.

    `parents` are the runs it draws from, nearest first. `calls` is set once it has ended.
    """

    organization_id: int
    tenant_id: int
    id: str
    parent_id: str
    budget_id: int
    unit: str
    amount: int
    calls_max: int
    created_ms: int
    expires_ms: int
    ended_ms: int = 0
    calls: int = 0
    parents: tuple[Run, ...] = ()

    @property
    def account(self) -> BudgetAccount:
        """The account that calls of this run draw from."""
        name = account_of(self.organization_id, self.tenant_id, self.id)
        return BudgetAccount(name, self.defined, enforced=True)

    @property
    def defined(self) -> bytes:
        """The windows of this run's account, packed for `lua/run.lua`; the one that counts calls is first."""
        begins, ends = self.created_ms, self.expires_ms + CLOCKS_DIFFER_MS
        return b"".join(
            DEFINED_WINDOW.pack(budget.id, budget.amount, begins, ends, 0, flags_of(budget))
            for budget in self.budgets
        )

    @property
    def budgets(self) -> tuple[Budget, Budget]:
        amount, calls_max = self.amount if self.amount >= 0 else INTEGER_MAX, self.calls_max or ENDLESS_CALLS
        return (
            Budget(self.budget_id, self.id, REQUESTS, calls_max, TOTAL),
            Budget(self.budget_id + 1, self.id, self.unit, amount, TOTAL, enforce=self.amount >= 0),
        )

    def is_over(self, now_ms: float) -> bool:
        """Return whether the run was ended, or has expired by `now_ms`."""
        return self.ended_ms > 0 or self.expires_ms <= now_ms

    def differs(self, asked: RunRequest) -> str:
        """Return the name of a parameter whose value in a request differs from this run's; empty if none."""
        if asked.parent_id and asked.parent_id != self.parent_id:
            return "parent"
        if asked.amount >= 0 and (asked.unit, asked.amount) != (self.unit, self.amount):
            return "max" if asked.unit == MONEY else "max_tokens"
        return "max_calls" if asked.calls_max and asked.calls_max != self.calls_max else ""


def within(asked: RunRequest, policies: CallRunPolicies) -> tuple[RunRequest, str]:
    """Apply the policies of a tenant to a requested run (a group of calls with a common limit).

    Return the run to open, and a message if the request exceeds a policy, else "". Limits that the
    request does not state become those of the strictest policy.
    """
    opened = list[int]()
    stated = ("max", asked.amount), ("max_calls", asked.calls_max), ("ttl", asked.ttl_s)
    for at, (name, said) in enumerate(stated):
        limits = [((policy.amount, policy.calls_max, policy.ttl_s)[at], whose) for whose, policy in policies]
        most, whose = min((limit for limit in limits if limit[0]), default=(0, ""))
        other = name == "max" and said >= 0 and asked.unit != MONEY
        if most and (said > most or other):
            right, has = (
                render_amount(MONEY, amount) if name == "max" else amount for amount in (most, said)
            )
            wrong = f"max_tokens={said}" if other else f"{name}={has}"
            return asked, f"has {wrong}, and runs of this {whose} have {name}={right} at most"
        opened.append(said if said > 0 else most or said)
    amount, calls_max, ttl_s = opened
    return replace(asked, amount=amount, calls_max=calls_max, ttl_s=ttl_s), ""


def make_provisional(caller: Caller, asked: RunRequest, policies: CallRunPolicies) -> Run:
    """Return the run that a call would open, so that budgets can judge the call before Redis has the run.

    Its budget id is negative, unlike that of real runs, so that no other call uses a cache entry for it.
    """
    wanted, _ = within(asked, policies)
    return Run(
        caller.organization_id, caller.tenant_id, wanted.id, wanted.parent_id, -1 - abs(hash(wanted)) % 2**52,
        wanted.unit, wanted.amount, wanted.calls_max, 0, INTEGER_MAX,
    )  # fmt: skip


class RunNews(msgspec.Struct):
    """A run as an outbox entry reports it, besides its times: that it exists, or has `ended`."""

    id: str
    unit: str
    parent_id: str = ""
    amount: int = -1
    calls_max: int = 0
    ended: bool = False
    created_ms: int = 0  # 0 in entries of earlier versions about opened runs


_decode = msgspec.json.Decoder(RunNews).decode


def end_of(run: Run) -> bytes:
    """Return the encoded message to other processes that a run has ended."""
    return told_again(run, ended=True)


def told_again(run: Run, *, ended: bool) -> bytes:
    """Return the encoded message that tells other processes of an existing run, or that it has `ended`."""
    created_ms = run.created_ms
    news = RunNews(run.id, run.unit, run.parent_id, run.amount, run.calls_max, ended, created_ms)
    return _encode(news)


def read_news(raw: bytes) -> RunNews | None:
    """Return the decoded message about a run, or None if the bytes `raw` are no such message."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def is_run(budget_id: int) -> bool:
    """Return whether `budget_id` is that of a run (a group of calls with a limit), and not of a budget."""
    return BUDGET_ID_MIN <= budget_id < BUDGET_ID_MIN + BUDGET_IDS


def run_of(budget_id: int) -> int:
    """Return the id of the run that a window belongs to: the budget id with its last bit cleared."""
    return budget_id & ~1


def counts_calls(budget_id: int) -> bool:
    """Return whether a window is the one of a run's calls, and not of its amount."""
    return is_run(budget_id) and budget_id == run_of(budget_id)


def budget_id_of(random: bytes) -> int:
    """Return a new run's window id from 8 random bytes. In 50,000 runs two collide once in 900,000 times."""
    return BUDGET_ID_MIN + int.from_bytes(random) % (BUDGET_IDS // 2) * 2


def prefix_of(organization_id: int, tenant_id: int) -> str:
    """Return the prefix, before the colon, of account names of a tenant's runs."""
    return _digest(json.dumps([organization_id, "runs", tenant_id]))[:16]


def value_of(id_: str) -> str:
    """Return the digest of a run's id that account names and entries contain."""
    return _digest(id_)[:24]


def account_of(organization_id: int, tenant_id: int, id_: str) -> str:
    """Return the name of a run's account."""
    return f"{prefix_of(organization_id, tenant_id)}:{value_of(id_)}"


def packed_run(run: Run) -> bytes:
    flags = FLAG_MONEY if run.unit == MONEY else FLAG_TOKENS
    numbers = (
        run.budget_id,
        run.created_ms,
        run.expires_ms,
        run.amount,
        run.calls_max,
        run.ended_ms,
        run.calls,
    )
    return RUN.pack(1, flags, *numbers) + f"{run.id}\t{run.parent_id}".encode()


def stored_run(organization_id: int, tenant_id: int, packed: bytes, parents: Sequence[Run] = ()) -> Run:
    _, flags, *numbers = RUN.struct.unpack_from(packed)
    budget_id, created_ms, expires_ms, amount, calls_max, ended_ms, calls = map(int, numbers)
    id_, _, parent_id = packed[RUN.size :].decode().partition("\t")
    return Run(
        organization_id, tenant_id, id_, parent_id, budget_id, UNIT_OF[flags], amount, calls_max,
        created_ms, expires_ms, ended_ms, calls, tuple(parents),
    )  # fmt: skip


def read_stored(row: Mapping[str, Any]) -> Run:
    """Return the run of a PostgreSQL row, with its number of `calls` once it has ended."""
    created_ms = ms_of(row["created_at"])
    ended_ms = 0 if row["ended_at"] is None else ms_of(row["ended_at"])
    return Run(
        row["organization_id"], row["tenant_id"], row["name"], row["parent_name"] or "", row["id"],
        row["unit"], -1 if row["amount"] is None else row["amount"], row["calls_max"] or 0, created_ms,
        ms_of(row["expires_at"]), ended_ms, row["calls"] if ended_ms else 0,
    )  # fmt: skip


def parent_of(packed: bytes) -> str:
    """Return the parent id of a packed run; empty if it has no parent."""
    return packed[RUN.size :].decode().partition("\t")[2]


def wanted_run(asked: RunRequest) -> bytes:
    """Return a requested run in packed form for Redis, which sets the missing fields when it creates it."""
    nothing = Run(0, 0, asked.id, asked.parent_id, 0, asked.unit, asked.amount, asked.calls_max, 0, 0)
    return packed_run(nothing)


def status_of(run: Run, used: int, calls: int, now_ms: int) -> str:
    """Return a run's status: open, ended (or expired), or exhausted. Calls are admitted while it is open."""
    if run.is_over(now_ms):
        return ENDED
    is_used_up = 0 <= run.amount <= used or 0 < run.calls_max <= calls
    return EXHAUSTED if is_used_up else OPEN


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
