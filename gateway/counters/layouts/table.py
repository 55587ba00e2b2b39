"""The table of what is packed for the scripts and by them: arguments, answers, definitions, markers.

States and holds are in `states.py`, an outbox entry in `gateway/core/accounts/ledger.py`, a tier in
`gateway/core/billing/tiers.py`; `LAYOUTS` has all of them. Both sides go by the names here: Python by the
structs of a layout, the scripts by what `lua.py` makes of it.
"""

from __future__ import annotations

from gateway.core.accounts.budgets import DEFINED_WINDOW
from gateway.core.accounts.ledger import BUDGETED, CARRIED, ENTRY, PRICED
from gateway.core.accounts.plan_terms import TERMS
from gateway.core.accounts.zones import Clock
from gateway.core.billing.tiers import TIER
from gateway.core.layout import Layout
from gateway.counters.layouts import states, windows

CODE = Layout("CODE", "f64 code")
# By its number scripts of another layout know that a partition is none of theirs.
MARKER = Layout("MARKER", "number, s40 run_id, f64 epoch catalogue")

RESERVE = Layout(
    "RESERVE",
    "f64 batch, s40 run_id, f64 catalogue need weighed ceiling least credits_least credits units ttl"
    " service_id plan_id, u8 flags, s36 request_id",
)
ADMITTED = Layout(
    "ADMITTED",
    "i64 verdict now tokens total tokens_free next_reset credits_free"
    " requests_scope requests_limit requests_used requests_reset"
    " tokens_scope tokens_limit tokens_used tokens_reset credits",
)
REFUSED = Layout("REFUSED", "i64 verdict now scope kind used limit till budget=0 unit=0")
# What a call wants held of its budgets; behind an admission what it got, and the tightest one that enforces.
NEED = Layout("NEED", "f64 money money_most money_least raw_tokens raw_most raw_least")
BUDGETS = Layout("BUDGETS", "i64 money raw_tokens budget=0 limit=0 used=0 reset=0 unit=0")

# What is kept of a settlement, on disk and in the late queue, is all but the batch.
_KEPT = (
    "number, s40 run_id, u8 mode, f64 tokens weighed=-1@130 credits units over=0@130"
    " service_id tenant_id organization_id key_id, u8 flags, f64 tombstone, s36 request_id"
)
KEPT = Layout("KEPT", _KEPT)
# What budgets count of a call; the names of its accounts follow.
PAID = Layout("PAID", "f64 money raw_tokens requests")
SETTLEMENT = Layout("SETTLEMENT", f"f64 batch, {_KEPT}")
SETTLED = Layout("SETTLED", "f64 code now seq=0 remaining=0 credits=0 epoch moved=0 credit_seq=0 spend_seq=0")
GONE = Layout("GONE", "f64 code now epoch")
# What `settle` answered once, as `settle` takes it to recover it.
ACKNOWLEDGED = Layout("ACKNOWLEDGED", "f64 epoch seq moved credit_seq spend_seq")

EXTEND = Layout(
    "EXTEND",
    "f64 observed weighed wanted seen worth money_seen money_wanted raw_wanted accounts, s36 request_id",
)
EXTENDED = Layout("EXTENDED", "f64 tokens credits exhausted money raw_tokens")

LEASE = Layout(
    "LEASE",
    "s40 run_id, f64 ttl share kept spent handed credits_kept credits_spent credits_handed, s36 lease_id",
)
LEASED = Layout("LEASED", "f64 code now tokens credits strict cuts capped charged plan_id")
NO_LEASE = Layout("NO_LEASE", "f64 code now")

GRANT = Layout("GRANT", "s40 run_id, u8 verb, f64 amount, s36 id")
GRANTED = Layout("GRANTED", "f64 code now seq remaining balance epoch moved credit_seq")

LOAD = Layout("LOAD", "s40 run_id, u8 verb kind, f64 version, u8 create")
_LIMITS = "f64 rpm tpm concurrency"
_COUNTED = ("plan_id", "anchor", *Clock._fields, *(one.name for one in TERMS if one.counts))
_PLAN = f"f64 {' '.join(_COUNTED)}"
PLAN = Layout("PLAN", _PLAN)
DEFINE_KEY = Layout("DEFINE_KEY", f"{_LIMITS} flags expires key_id")
DEFINE_USER = Layout("DEFINE_USER", _LIMITS)
DEFINE_TENANT = Layout(
    "DEFINE_TENANT", f"{_LIMITS} user_rpm user_tpm user_concurrency tenant_id organization_id, {_PLAN}"
)
DEFINE_ORGANIZATION = Layout("DEFINE_ORGANIZATION", f"{_LIMITS} credit_limit cap organization_id")

PARK = Layout("PARK", "s40 run_id, f64 organization_id")
PARKED = Layout("PARKED", "f64 code waiting")
STREAM_ID = Layout("STREAM_ID", "f64 ms number")

# Where the windows of an account's own begin: what is used, then what is held. And what a hold took by scope.
RECORDS = {
    "QUOTA": ("TENANT", "used"), "CREDITS": ("ORGANIZATION", "credits_used"),
    "SPEND": ("ORGANIZATION", "spent"), "TAKEN": ("HOLD", "key_tpm"),
}  # fmt: skip
LAYOUTS = (
    *states.LAYOUTS, *windows.LAYOUTS, ENTRY, PRICED, CARRIED, BUDGETED, DEFINED_WINDOW, TIER, CODE, MARKER,
    NEED, BUDGETS, PAID,
    RESERVE, ADMITTED, REFUSED, KEPT, SETTLEMENT, SETTLED, GONE, ACKNOWLEDGED, EXTEND, EXTENDED,
    LEASE, LEASED, NO_LEASE, GRANT, GRANTED,
    LOAD, PLAN, DEFINE_KEY, DEFINE_USER, DEFINE_TENANT, DEFINE_ORGANIZATION, PARK, PARKED, STREAM_ID,
)  # fmt: skip
