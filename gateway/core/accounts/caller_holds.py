"""Holds that callers take by the API: the request bodies, the stored form, the charge. Pure.

A hold is a call that passes through no upstream of ours. The use that its caller reports is charged, whatever
amount was held: the caller reports for an own bill, and amounts are never negative.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec

from gateway.core.accounts.budget_amounts import render_amount
from gateway.core.accounts.budgets import MONEY, TOKENS
from gateway.core.accounts.outbox import attributed
from gateway.core.accounts.runs import FIELD_BYTES_MAX
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.weights import Weights
from gateway.core.billing.price_book import (
    KINDS,
    NANO_DIGITS,
    PARTS_OF,
    WHOLES,
    Counts,
)
from gateway.core.calls.aim import Aim
from gateway.core.calls.call import (
    TIMED_OUT,
    Body,
    CallRequest,
    CallSpec,
    Learned,
    Media,
    RequestedUnits,
    StoredObjects,
    UsageBounds,
    read_document,
)
from gateway.core.calls.routes import ModelTarget, Route
from gateway.core.families.controlled import model_name
from gateway.core.families.registry import SHAPES
from gateway.core.metering.meter import Detail
from gateway.core.metering.meters import make_meter
from gateway.core.model import GENERIC, INTEGER_MAX, Caller, Family, Service, Settlement, TokenUsage
from gateway.core.times import moment_of, rfc3339
from gateway.errors import InvalidRequest

# Seconds that a hold lasts: at most until its next extension, by default, and at most in all.
TTL_S_MAX: Final = 3_600
TTL_S: Final = 60
LIFE_S_MAX: Final = 86_400
# Units of one hold, and of one settlement.
UNITS_MAX: Final = 10**12
TOKENS_MAX: Final = 100_000_000
TOOLS_MAX: Final = 16
TIER_CHARACTERS_MAX: Final = 64
# Most characters of object ids in a call; beyond that objects of the answer are not recorded.
IDS_CHARACTERS_MAX: Final = 8_192
IDEMPOTENCY_CHARACTERS_MAX: Final = 255
UNITS: Final = "units"
# The recorded reason of a call whose hold was released.
RELEASED: Final = "hold_released"
_CLIENT_CLOSED: Final = 499

_MONEY = re.compile(r"\d{1,7}(?:\.\d{1,9})?")
_WHERE = re.compile(r" - at `\$\.?(?:key in )?([^`]*)`")
_KEY = re.compile(rb"[ -~]{1,%d}" % IDEMPOTENCY_CHARACTERS_MAX)

_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
_Amount = Annotated[int, msgspec.Meta(ge=1, le=UNITS_MAX)] | str
_Ttl = Annotated[int, msgspec.Meta(ge=1, le=TTL_S_MAX)]


class HoldBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for a hold. An `amount` is units if it is a number, money if it is a text."""

    service: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    model: _Text = ""
    user: Annotated[str, msgspec.Meta(max_length=128)] = ""
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)] | None = None
    amount: _Amount | None = None
    request: dict[str, Any] | None = None
    ttl_s: _Ttl = TTL_S
    run: Annotated[str, msgspec.Meta(max_length=FIELD_BYTES_MAX)] = ""

    def __post_init__(self) -> None:
        if self.model:
            model_name(self.model)  # the check for any call
        if not self.user.isprintable():
            raise ValueError("user must be printable text")


class ExtendBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body that extends a hold: `ttl_s` from now, and `more` of the held unit."""

    ttl_s: _Ttl = TTL_S
    more: _Amount | None = None


class SettleBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body that settles a hold: usage in tokens by kind, money, or units; and the call's HTTP status."""

    usage: dict[str, Any] | None = None
    cost: str | None = None
    units: Annotated[int, msgspec.Meta(ge=0, le=UNITS_MAX)] | None = None
    status: Annotated[int, msgspec.Meta(ge=100, le=599)] = 200


class HeldAmounts(msgspec.Struct, array_like=True):
    """The amounts that a hold reserves: quota tokens, credits, units; of budgets `money` and `budget_tokens`."""

    tokens: int = 0
    credits: int = 0
    units: int = 0
    money: int = 0
    budget_tokens: int = 0


class HeldCall(msgspec.Struct, array_like=True):
    """The call for which a hold was taken: its route, and all that its answer's meter needs."""

    route: str
    meter: str
    family: str
    streamed: bool
    input_estimate: int
    output_bytes_per_token: float
    units_pointer: str
    output_max: int | None = None
    choices: int = 1
    input_ceiling: int = 0
    output_ceiling: int = 0
    reports: bool = False
    gives_up: bool = False
    measured: dict[str, int] | None = None
    keeps: bool = False
    named: tuple[str, ...] = ()
    brought: tuple[str, ...] = ()
    reports_each: bool = False

    def request(self, model: str) -> CallRequest:
        """Return the call to which a caller's hold belongs, with an empty body."""
        call = CallRequest(
            self.meter, Family(self.family), Body(),
            CallSpec(model, self.streamed, choices=self.choices, units=RequestedUnits(self.measured)),
            self.output_max, media=Media(tokens=self.input_estimate),
            units_pointer=self.units_pointer, input_ceiling=self.input_ceiling,
            output_ceiling=self.output_ceiling, reports=self.reports, gives_up=self.gives_up,
            objects=StoredObjects(self.named, brought=frozenset(self.brought), keeps=self.keeps),
            learned=Learned(self.output_bytes_per_token),
        )  # fmt: skip
        call.aim = Aim(call.said, reports_each=self.reports_each)
        return call


def held_call(route: Route, call: CallRequest) -> HeldCall:
    """Return the parts of a call that its meter needs.

    A call whose stream would have to be changed to report usage counts as not reporting.
    """
    named, brought = call.objects.named, tuple(call.objects.brought)
    keeps = call.objects.keeps > 0 and route.objects == "told"
    if not keeps or sum([len(one) for one in named + brought]) > IDS_CHARACTERS_MAX:
        keeps, named, brought = False, (), ()
    return HeldCall(
        route.path, call.meter, call.family, call.spec.streamed, call.input_estimate, call.learned.output_bytes_per_token,
        call.units_pointer, call.output_max, call.spec.choices, call.input_ceiling, call.output_ceiling,
        call.reports and not call.strip_usage, call.gives_up, call.spec.units.likely, keeps, named, brought,
        call.aim.reports_each,
    )  # fmt: skip


class CallerHold(msgspec.Struct):
    """A hold as it is stored. `asked` is the requested amount in `unit`, `held` what is reserved.

    `weights` are those of its plan, `budgets` the names of its accounts. `own` excludes prices in currencies
    other than the organization's. `columns`, `session`, `metadata` and `tags` come from the request. `call`
    is the call that the hold is for, None if the request states only an amount. The models in `beside`, or
    the configured `targets`, may answer the call too, and one of them sets the price. `run` is the id of the
    run that pays. `priced_ms` is the time of its prices by its gateway's clock, 0 for `created_ms`. `groups`
    are those of its caller.
    """

    id: str
    organization_id: int
    tenant_id: int
    key_id: int
    partition: int
    service: Service
    unit: str
    asked: int
    held: HeldAmounts
    created_ms: int
    expires_ms: int
    unsettled: str
    user: str = ""
    model: str = ""
    budgets: tuple[str, ...] = ()
    currency: str = ""
    own: bool = False
    weights: Weights | None = None
    columns: str = ""
    session: str = ""
    metadata: str = ""
    call: HeldCall | None = None
    beside: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    run: str = ""
    priced_ms: int = 0
    tags: Tags = ()
    groups: tuple[int, ...] = ()

    def names(self, output_max: int | None = None) -> CallRequest:
        """Return a `CallRequest` with the hold's models, for looking up prices."""
        call = CallRequest(
            "none", GENERIC, Body(), CallSpec(self.model), output_max, models_beside=self.beside
        )
        call.aim = Aim(call.said, tuple([ModelTarget("", model) for model in self.targets]))
        return call

    @property
    def caller(self) -> Caller:
        return Caller(self.organization_id, self.tenant_id, self.key_id, self.partition, self.user)

    @property
    def project_id(self) -> int | None:
        """The project in `columns`, which are an attribution."""
        _, project, _ = attributed(self.columns)
        return int(project) if project else None

    def render(self, remaining: int | None) -> bytes:
        """Encode the hold as JSON for its caller. `remaining` is in the hold's unit; None means unlimited."""
        return msgspec.json.encode(
            {
                "id": self.id,
                "unit": self.unit,
                "held": render_amount(self.unit, self.asked),
                "remaining": None if remaining is None else render_amount(self.unit, remaining),
                "expires_at": rfc3339(moment_of(self.expires_ms), "milliseconds"),
            }
        )


class HoldEnd(msgspec.Struct):
    """How a caller ended a hold: by a charge of these amounts, or `released`. `answer` is sent to the caller.

    An `applied` end is complete. `lacks_price` and `says_more` have the meaning they have in `Counted`.
    """

    released: bool
    charge: bool
    facts: str
    answer: str = ""
    tokens: int = 0
    quota_tokens: int | None = msgspec.field(default=None, name="weighed")
    credits: int = 0
    over: int = 0
    units: int = 0
    money: int = 0
    budget_tokens: int = msgspec.field(default=0, name="raw_tokens")
    applied: bool = False
    lacks_price: bool = False
    says_more: bool = False

    def settlement(self, hold: CallerHold) -> Settlement:
        return Settlement(
            hold.caller, hold.id, hold.user, hold.service, self.charge, self.tokens, self.credits, self.units,
            hold.columns, self.facts.encode(), self.over, self.quota_tokens, hold.budgets, self.money,
            self.budget_tokens, hold_ttl_ms=0 if self.charge else hold.expires_ms - hold.created_ms,
        )  # fmt: skip


class HoldDeletion(msgspec.Struct):
    """A caller's request to release a hold; `route` is the label of its route."""

    partition: int
    organization_id: int
    tenant_id: int
    id: str
    route: str

    @property
    def caller(self) -> Caller:
        return Caller(self.organization_id, self.tenant_id, 0, self.partition)


read_deletion = msgspec.json.Decoder(HoldDeletion).decode


_B = TypeVar("_B", HoldBody, ExtendBody, SettleBody)


class StatedUse(NamedTuple):
    """The use to settle a hold by, with details of the answer if it has one, and ids of objects that it created.

    `tokens` are those of the text that the first of these ids stands for, if a later call may name it.
    """

    body: SettleBody
    detail: Detail | None = None
    is_estimated: bool = False
    created: Sequence[str] = ()
    tokens: int = 0


def read_body(kind: type[_B], body: bytes) -> _B:
    """Return the decoded body of a holds request. `InvalidRequest` names the wrong field."""
    document = read_document(body)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        place = re.search(r"(?:unknown|required) field `([^`]*)`", message) or _WHERE.search(message)
        param = None if place is None else place[1]
        raise InvalidRequest(
            f"{_WHERE.sub('', message)}{f', in {param}' if param else ''}.", param=param
        ) from error


def whole_in(text: str, least: int, most: int, param: str) -> int:
    """Return the whole number in `text`, a part of a path; `InvalidRequest` names `param` if it is wrong.

    The number must be from `least` to `most`.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not least <= int(text) <= most:
        raise InvalidRequest(f"{param} must be a whole number from {least} to {most}.", param=param)
    return int(text)


def money_of(text: str, param: str) -> int:
    """Return a decimal text of money in nano-units. `InvalidRequest` names `param` if it is wrong."""
    if _MONEY.fullmatch(text) is None or (nano := int(Decimal(text).scaleb(NANO_DIGITS))) > INTEGER_MAX:
        raise InvalidRequest(
            f'{param} must be a decimal such as "5.00", with nine decimals, up to 9007199.254740991.',
            param=param,
        )
    return nano


def idempotency_key(lines: bytes) -> str:
    """Return the `Idempotency-Key` among header lines; empty if absent, `InvalidRequest` if invalid."""
    values = [
        value.strip()
        for name, _, value in (line.partition(b":") for line in lines.split(b"\r\n"))
        if name.lower() == b"idempotency-key"
    ]
    if not values:
        return ""
    if len(values) > 1 or _KEY.fullmatch(values[0]) is None:
        raise InvalidRequest(
            f"Idempotency-Key must be sent once, as 1 to {IDEMPOTENCY_CHARACTERS_MAX} printable ASCII "
            "characters.",
            param="idempotency-key",
        )
    return values[0].decode()


def use_in_answer(  # noqa: PLR0917  # an answer, and how it is read
    hold: CallerHold, status: int, content_type: bytes, coding: bytes, answer: bytes, bounds: UsageBounds
) -> StatedUse:
    """Return the use in an upstream's answer that a caller sends to settle a hold (reserved amount).

    The answer is metered like one that the gateway forwards; with a content `coding` such as gzip it is
    metered by size, without decoding. Raise `InvalidRequest` if the hold was taken without a call.
    """
    if hold.call is None:
        raise InvalidRequest("This hold was taken for no request: settle it by usage, cost or units.")
    call = hold.call.request(hold.model)
    coding = b"" if coding in {b"", b"identity"} else b"unread"
    meter = make_meter(call, status, content_type, coding, bounds)
    meter.whole(answer)
    usage, detail, used = meter.usage(), meter.detail, None
    may_have_worked = 200 <= status < 300 or (call.gives_up and status in TIMED_OUT)
    if not usage.total and not usage.reported and call.has_input and may_have_worked:
        tokens = call.input_estimate  # an upstream that accepted the call has read its input
        usage = TokenUsage(tokens, total=tokens, estimated=True)
    if usage.total or (status < 400 and call.has_input):
        used = dict[str, Any](zip(KINDS, detail.counts(usage), strict=True))
        used["tools"] = dict(list(detail.tools.items())[:TOOLS_MAX])
        used["service_tier"] = detail.service_tier[:TIER_CHARACTERS_MAX]
    units = None if call.has_input or status >= 400 else usage.units
    made = [id_ for id_ in dict.fromkeys(meter.told) if id_ not in meter.known_ids]
    kind = SHAPES.get(call.meter)
    kept = usage.input + usage.output - usage.reasoning if kind is not None and kind.continued else 0
    return StatedUse(SettleBody(used, units=units, status=status), detail, usage.estimated, made, kept)


def usage_of(answer: Mapping[str, Any]) -> tuple[Counts, dict[str, int], str]:
    """Return tokens by kind, uses of tools, and service tier from the `usage` of a settlement.

    `InvalidRequest` names a field that is unknown, or out of its bounds.
    """
    right = f"usage takes {', '.join(KINDS)}, tools and service_tier"
    for name in answer:
        if name not in KINDS and name not in {"tools", "service_tier"}:
            raise InvalidRequest(f"{right}, not {name}.", param=f"usage.{name}"[:256])
    counts = tuple(_count(answer.get(kind, 0), f"usage.{kind}") for kind in KINDS)
    tools, tier = answer.get("tools") or {}, answer.get("service_tier") or ""
    if not isinstance(tools, dict) or len(tools) > TOOLS_MAX:
        raise InvalidRequest(f"usage.tools must count uses of up to {TOOLS_MAX} tools.", param="usage.tools")
    if not isinstance(tier, str) or len(tier) > TIER_CHARACTERS_MAX:
        raise InvalidRequest("usage.service_tier must be a name.", param="usage.service_tier")
    parts = dict(zip(KINDS, counts, strict=True))
    for whole, within in PARTS_OF.items():
        if sum(parts[name] for name in within) > parts[whole]:
            raise InvalidRequest(f"usage.{whole} must hold its parts.", param=f"usage.{whole}")
    if sum(counts[:WHOLES]) > TOKENS_MAX:
        raise InvalidRequest(f"usage may come to {TOKENS_MAX} tokens.", param="usage")
    return counts, {str(name)[:64]: _count(uses, "usage.tools") for name, uses in tools.items()}, tier


def _count(value: object, param: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
        raise InvalidRequest(f"{param} must be a whole number from 0 to {TOKENS_MAX}.", param=param)
    return value


def unit_of(body: HoldBody) -> str:
    if body.amount is None:
        return UNITS if body.max_tokens is None and body.request is None else TOKENS
    return UNITS if isinstance(body.amount, int) else MONEY
