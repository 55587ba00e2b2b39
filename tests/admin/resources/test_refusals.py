"""What the Admin API refuses, by its field: rules of a model are asked of the model, and once over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from gateway.admin.http.bodies import check_body
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.values import In
from gateway.core.model import INTEGER_MAX
from gateway.errors import Unprocessable
from tests.admin.conftest import Api

AT = "2026-01-01T00:00:00Z"
LATER = (datetime.now(UTC) + timedelta(days=30)).isoformat()
ISSUER = "https://kubernetes.default.svc"
HIDDEN = ("\u202e", "\u200b", "\u2066", "\ufeff", "\x9b", "\U000e0041")
TIER = {"up_to": None, "unit_price": "1"}
PEAK: dict[str, Any] = {"days": [5], "from": "22:00", "to": "06:00", "time_zone": "UTC", "factor": "2"}
EXCEPT_TOO_MANY = [str(date(2026, 1, 1) + timedelta(days=day)) for day in range(401)]


class Over(dict[str, Any]):
    """Values of several fields, where one alone is right."""


def per_million(**rates: object) -> dict[str, object]:
    return {"per_million": {"*": rates}}


def top_up(**over: object) -> dict[str, object]:
    return {"threshold": 1, "credits": 10, "unit_cost": "1"} | over


# Of each model a body that is right, and what is wrong of which field: values of it, or of several.
WRONG: dict[str, tuple[Over, list[tuple[Any, ...]]]] = {
    "organizations": (Over(name="Acme"), [
        ("name", *(f"a{one}b" for one in (*HIDDEN, "\n", "\r\n", "\t", "\x00")), "a\n", "", " ", 5),
        ("currency", "QQQ", "XAU", "XTS", "usd", "US", "\u0405DR", 5, None),
        ("credit_unit_cost", "0", "-1", 1),
        ("auto_top_up.threshold", top_up(threshold=-1)), ("auto_top_up.credits", top_up(credits=0)),
        ("auto_top_up.unit_cost", top_up(unit_cost="0"), {"threshold": 1, "credits": 10}),
        ("auto_top_up.monthly_max", top_up(monthly_max=101)),
        ("auto_top_up.invoicing", top_up(invoicing="next")),
        ("due_days", -1, 366, "14", 1.5), ("country", "QQ", "de"), ("address", []), ("address.0", ["a\nb"]),
        ("tax_number", ""), ("colour", "red"), ("id", 5),
    ]),
    "tenants": (Over(name="web"), [("limits.rpm", {"rpm": 1}), ("limits.concurrency", {"concurrency": 0})]),
    "api-keys": (Over(tenant_id=1, name="k"), [
        ("tenant_id", None), ("user", "", "x" * 129, "a\u00a0b"), ("user_header", "deny", None),
        ("unsettled", "keep"), ("spent_status", 403), ("retry_after_max_s", 0),
        ("priority", "urgent"), ("runs.max", {"max": "0"}, {"max": 5}),
        ("runs.max_tokens", {"max_tokens": 5}), ("runs.ttl_s", {"ttl_s": 2_592_001}),
        ("models", [], "gpt"), ("models.0", [""], ["gpt "]), ("models.1", ["o9", "gpt\n"]),
        ("expires_at", "2031-01-01", "2031-01-01T00:00:00", "2031-13-01T00:00:00Z",
         "0001-01-01T00:00:00+23:00", 1),
        ("limits.concurrency", {"concurrency": 0}), ("limits.requests_per_minute",
         {"requests_per_minute": -1}),
        ("limits.tokens_per_minute", {"tokens_per_minute": 2**53}), ("limits.rpm", {"rpm": 1}),
        ("limits", []), ("key", "tk_mine"), ("digest", "0" * 64),
        ("", Over(issuer=ISSUER), Over(subject="prod")),
        ("issuer", *(Over(issuer=one, subject="prod") for one in ("", "a b"))),
        ("subject", *(Over(issuer=ISSUER, subject=one) for one in ("", "a\nb", "a\u200bb", "x" * 513, 7))),
    ]),
    "admin-tokens": (Over(name="t", role="admin"), [("name", "\u200broot"), ("role", "root")]),
    "token-plans": (Over(name="Basic", total_amount=1000, reset_interval="daily", rollover_max=50), [
        ("total_amount", -1, 2**53, 10**400, "1000", 1e3), ("reset_interval", "hourly", None),
        ("overage_policy", ""), ("overage_unit_price", "1e3", "-1", 1.5, "1000.1"), ("rollover_max", -1,
         None),
        ("admission", 1), ("name", "", "   ", "x" * 201, "a\x00b", 5, "a\u202eb"), ("anchor", 3),
        ("description", "\u200b"), ("id", 3),
        ("anchor_day", 0, 32, "1", 1.0), ("time_zone", None, "", 1),
        ("weights.cached", {"cached": "0.1"}),
        ("weights.cache_read", {"cache_read": "-0.1"}, {"cache_read": "1000.000001"}, {"cache_read": "1001"}),
        ("weights.output", *({"output": one} for one in (
            "0.0000001", 0.1, 1, "1e1", "NaN", "", "\u0661", {},
        ))), ("weights", [], "0.1"),
    ]),
    "services": (Over(name="Search", key="search", credits=3, service_type="Pay-As-You-Go",
    business_model_id=1), [
        ("key", "Has Space", "a~1"), ("credits", -1, 2**53), ("service_type", "Weekly"),
        ("counts_tokens", "yes"),
        ("pricing", {}, {"tiers": [TIER | {"up_to": 5}]}, {"tiers": [TIER, TIER | {"up_to": 5}]},
         {"tiers": [TIER], "markup": "2"}, {"at_cost": None}, per_million(input=1) | {"at_cost": {}},
         {"at_cost": {}, "currency": "JPY"}),
        ("pricing.tiers", {"tiers": []}), ("pricing.tiers.0.unit_price",
         {"tiers": [TIER | {"unit_price": "9007199255"}]}),
        ("pricing.per_million.*.input", per_million(input=1.5), per_million(input=-1)),
        ("pricing.per_million.*.tokens", per_million(tokens=1)),
        ("pricing.per_million.*", per_million(cached=1, cache_read=1)),
        ("pricing.per_million", {"per_million": {"gpt*mini": {"input": 1}}}),
        ("pricing.markup", per_million(input=1) | {"markup": "0"}),
        ("pricing.currency", *({"tiers": [TIER], "currency": one} for one in ("yen", "QQQ"))),
        ("pricing.at_cost.markup", *({"at_cost": {"markup": one}} for one in (1.2, "0", "-1", "1000.01",
         "1.0000001"))),
        ("pricing.at_cost.credits_per_unit", *({"at_cost": {"credits_per_unit": one}} for one in ("0",
         "1e9"))),
        ("pricing.at_cost.percent", {"at_cost": {"percent": "1"}}),
        ("upstream", "two words", ""), ("paths", [], "/v1/*", ["/x"] * 101), ("paths.0", ["/v1/sms*"],
         ["/v1/../x"]),
        ("paths.1", ["/v1/*", "v1"]),
    ]),
    "models": (Over(name="a", targets=[{"upstream": "openai"}]), [
        ("name", "a b"), ("fallback.0", ["always"]), ("targets", []),
    ]),
    "shares": (Over(upstream="openai", organization_id=1), [
        ("weight", 0), ("priority", "urgent"), ("guaranteed.concurrency", {"concurrency": 1}),
    ]),
    "subscription-plans": (Over(name="P", monthly_cost="1", annual_cost="9", feature_access=[]), [
        ("currency", "QQQ", "usd", None), ("monthly_cost", 1, "-1"),
    ]),
    "organization-subscriptions": (Over(organization_id=1, plan_id=1, start_date="2026-01-01"), [
        ("start_date", "2026-01-01T05:00:00Z", "01.04.2026", "1969-12-31", "3000-01-01"),
        ("billing_interval", "weekly"),
    ]),
    "credit-additions": (Over(organization_id=1, credits_added=5), [
        ("credits_added", 0, INTEGER_MAX + 1, -INTEGER_MAX - 1, "5", 1.5), ("category", "gift"),
        ("unit_cost", "-1", 0.01), ("balance_after", 1), ("invoicing", "later"),
    ]),
    "webhooks": (Over(url="https://example.com/hook"), [
        ("events.0", ["quota.99"]), ("secret", "mine"), ("url", 5),
    ]),
    "tax-rates": (Over(organization_id=1, effective_from="2026-04-01", rate="0.2"), [
        ("rate", "1.5", 0.2), ("effective_from", "soon"), ("category", "other"), ("reason", ""),
    ]),
    "invoices": (Over(organization_id=1, period_start="2026-04-01", period_end="2026-05-01"), [
        ("period_start", "2026-04-01T12:00:00Z", "0001-01-01"), ("period_end", "2026-02-30"),
        ("total_amount", "1.00"),
    ]),
    "prices": (Over(model="m", currency="USD", effective_from=AT, input="2.50", output="10"), [
        ("input", "-1", 2.5, "a few", "0.0000000001", "1e3"),
        ("request", "-0.1"), ("tools.web_search", {"web_search": "-10"}, {"web_search": 10}),
        ("service_tiers.batch", {"batch": "half"}), ("service_tiers.PRIORITY", {"PRIORITY": "3",
         "batch": "0.5"}),
        ("service_tiers.Batch", {"Batch": "1", "batch": "0.5"}), ("tools.Web_Search", {"Web_Search": "10"}),
        ("context_tiers.0.input", [{"above": 5, "input": "-1"}]), ("context_tiers.0.inputs", [{"above": 5,
         "inputs": "1"}]),
        ("context_tiers.0", [{"above": 5}]), ("context_tiers.0.above", [{"input": "1"}]),
        ("context_tiers", [], [{"above": 5, "input": "1"}, {"above": 5, "input": "2"}],
         [{"above": 6, "input": "1"}, {"above": 5, "input": "2"}]),
        ("cached", "1"), ("images", {}, {"1024x1024": "1"}, {"1024x1024/": "1"}),
        ("images.1024x1024/HIGH", {"1024x1024/HIGH": "1"}), ("images.1024x1024/high",
         {"1024x1024/high": "-1"}, {"1024x1024/high": 1}),
        *((f"hours.0.{field}", [{**PEAK, field: value}]) for field, value in (
            ("days", []), ("days", [1, 1]), ("days.0", [0]), ("days.0", [8]), ("days.0", ["1"]),
            ("from", "24:00"), ("from", "9:00"), ("to", "24:30"), ("to", "25:00"), ("time_zone", "UTC+8"),
            ("factor", "0"), ("factor", "-1"), ("factor", 2), ("factor", "1e3"), ("zone", "UTC"),
            ("except", EXCEPT_TOO_MANY), ("except.0", ["2026-02-30"]),
        )),
        ("hours.0", [{**PEAK, "to": "22:00"}]), ("hours_at", "middle", None),
        ("hours", [], [PEAK, {**PEAK, "from": "23:00", "to": "23:30"}],  # within
         [PEAK, {**PEAK, "days": [6], "from": "05:59", "to": "06:30"}],  # the morning after Friday
         [PEAK, {**PEAK, "days": [6], "from": "14:00", "to": "14:30", "time_zone": "Asia/Tokyo"}]),
        ("page", "-1"), ("search", 1), ("character", "0.0000000001"), ("currency", "usd", "XTS", None),
        ("model", "", "gpt-*", *(f"m{one}" for one in ("İ", "i̇", "\u212a", "ſ", "ẞ", "Σ"))),
        ("provider", "p\u212a"), ("match", "suffix"), ("source", "library"), ("effective_from", "2026-01-01"),
    ]),
    "exchange-rates": (Over(currency="NOK", rate="0.92", effective_from=AT), [
        ("rate", "0", "-1", "0.0000000001", 0.92), ("currency", "EURO"), ("base", "ZZZ"), ("note", "x"),
    ]),
    "accounting-rates": (
        Over(
            currency="EUR", accounting_currency="PLN", rate="4.25", source="NBP", published_on="2026-04-30",
            effective_from="2026-05-01", effective_to="2026-05-31",
        ),
        [
            ("rate", "0", 4.25, "0.0000000001"), ("accounting_currency", "ZLO"), ("source", ""),
            ("published_on", "soon"), ("effective_to", "2026-13-01"),
        ],
    ),
    "budgets": (Over(organization_id=1, name="b", unit="money", amount="12.50", interval="month"), [
        ("amount", "-1", 12.5, "1.0000000001", True, None, "1e3"), ("unit", "credits"),
        ("interval", "fortnight"), ("each", "group"), ("anchor_day", 0, 32, "1"),
        ("user", "", "u" * 129, "a\nb", "a\u200b", "a\u00a0b"), ("project_id", -1),
        ("model", "*", "gpt*5", "", " m", "m ", "m\n", " m*", "m\u00a0"), ("name", "a\tb", "", "n" * 201),
        ("thresholds", [0], [1.01], [0.5, 0.5], [0.8, 0.5], [n / 20 for n in range(1, 12)]),
        ("thresholds.0", ["0.5"]), ("mode", "warn"), ("on_exhausted", "block"), ("used", 3), ("colour",
         "red"),
    ]),
    "tenants/recharge": (Over(amount=5), [
        ("amount", 0, -5, 2**53, 1.0, "5", True, None), ("reason", "x"),
    ]),
    "tenants/adjust": (Over(amount=5, direction="IN", reason="x"), [
        ("direction", "UP"), ("reason", None, " "),
    ]),
    "api-keys/rotate": (Over(), [("overlap_s", -1, 10**9, "3600", 1.5, None)]),
    "budgets/raise": (Over(amount="20", until="2099-01-01T00:00:00Z", reason="a fair"), [
        ("until", "tomorrow"), ("reason", ""), ("name", "x"),
    ]),
    "invoices/payments": (Over(amount="1", reference="x"), [
        ("amount", "-1", "NaN", "Infinity", "1e30", "1" + "0" * 30, 1, None),
        ("reference", "", " ", "a\nb", "x" * 201), ("currency", "JPY"),
    ]),
    "invoices/credit-note": (Over(), [
        ("lines", []), ("lines.0.position", [{"position": 0}]), ("lines.0.amount", [{"position": 1,
         "amount": 5}]),
        ("all", True),
    ]),
    "dead-letters/redrive": (Over(), [
        ("changes.seq", {"seq": 3}), ("change", {}), ("raw", ""),
    ]),
    "quarantine/release": (Over(reason="x"), [("reason", "", " ", None), ("accept", 1)]),
}  # fmt: skip


# What is wrong beside what the store holds, or by the rules of several fields that it knows: over HTTP.
STORED: dict[str, list[tuple[Any, ...]]] = {
    "organizations": [("auto_top_up.unit_cost", top_up(unit_cost="0.0001"))],
    "tenants": [("organization_id", 99), ("plan_id", 99)],
    "api-keys": [("tenant_id", 99)],
    "token-plans": [
        ("anchor_day", Over(reset_interval="weekly", anchor_day=8)), ("time_zone", "Mars/Base", "UTC+1"),
        ("currency", "JPY"), ("overage_unit_price", Over(overage_policy="bill", overage_unit_price="1000.1")),
    ],
    "services": [("business_model_id", 99)],
    "models": [
        ("name", None), ("prefix", "b"), ("organization_id", 99),
        ("targets", [{"upstream": "openai"}] * 2, [{"upstream": "openai", "model": "*"}]),
    ],
    "shares": [
        ("organization_id", None, 99, Over(tenant_id=1)), ("tenant_id", Over(organization_id=None,
         tenant_id=99)),
    ],
    "organization-subscriptions": [
        ("organization_id", 99), ("plan_id", 99), ("end_date", "2026-01-01"), ("start_date", "1970-01-01",
         "2999-12-31"),
    ],
    "credit-additions": [
        ("organization_id", 99), ("added_by_id", 99), ("expires_at", "2026-01-01T00:00:00Z",
         Over(credits_added=-1, expires_at=LATER)),
        ("timestamp", LATER), ("unit_cost", Over(invoicing="now")),
    ],
    "webhooks": [
        ("organization_id", 99),
        ("url", *(f"https://{host}/" for host in (
            "127.0.0.1", "hooks.example.com:0", "localhost", "[::1]", "127.1", "localhost.",
        )), "http://example.com/", "", "mailto:", "mailto:a@example.com?bcc=b@example.com",
         "mailto:a@example.com\r\nBcc: b@example.com", "mailto:root@localhost",
         "mailto:" + ",".join(["a@example.com"] * 11)),
    ],
    "tax-rates": [
        ("organization_id", 99), ("reason", "x", Over(rate="0", category="zero", reason="x")),
        ("category", "exempt", Over(rate="0", category="standard")),
    ],
    "invoices": [
        ("organization_id", 99),
        ("period_end", "2026-04-01", "2099-04-01", Over(period_start="2998-12-01", period_end="2999-01-01")),
    ],
    "prices": [("input", Over(input=None, output=None), Over(input=None, output=None, tools={}))],
    "exchange-rates": [("currency", "USD", Over(base="NOK"))],
    "accounting-rates": [
        ("accounting_currency", "EUR"), ("effective_to", "2026-04-30", "2026-06-01"),
        ("published_on", "2999-01-01"),
    ],
    "budgets": [
        ("amount", "0", 12, "9000000.000000001", Over(unit="tokens"), Over(unit="requests", amount=0)),
        ("each", Over(user="ada", each="user"), Over(project_id=3, each="project")), ("time_zone",
         "Mars/Base"),
        ("anchor_day", Over(interval="day", anchor_day=2)), ("tenant_id", 99), ("organization_id", 99),
    ],
    "tenants/reset": [("amount", 5)],
    "tenants/block": [("x", 1)],
}  # fmt: skip


def model_of(where: str) -> type[In]:
    """The model of a row that is made, or of an action's body."""
    name, _, verb = where.partition("/")
    resource = RESOURCES[name]
    model = resource.create if not verb else next(each.body for each in resource.actions if each.name == verb)
    assert model is not None, where
    return model


def cases(rows: list[tuple[Any, ...]]) -> Iterator[tuple[str, Over]]:
    """Each wrong value: the field that is named, and what stands over the usual body."""
    for named, *values in rows:
        for value in values:
            yield named, value if isinstance(value, Over) else Over({named.partition(".")[0]: value})


def fields_refused(model: type[In], body: Mapping[str, object]) -> list[str]:
    try:
        check_body(model, dict(body))
    except Unprocessable as refused:
        return [field for field, _ in refused.errors]
    return []


@pytest.mark.parametrize("where", WRONG)
def test_wrong_value_is_refused_with_the_field_named(where: str) -> None:
    usual, rows = WRONG[where]
    model, resource = model_of(where), RESOURCES[where.partition("/")[0]]
    assert fields_refused(model, usual) == []
    found = {(named, str(over)): fields_refused(model, usual | over) for named, over in cases(rows)}
    assert [case for case, fields in found.items() if fields != [case[0]]] == []
    if "/" in where or resource.patch is None:
        return
    for named, over in cases(rows):  # a change is held to the same rule
        if over.keys() <= resource.patch.model_fields.keys():
            assert fields_refused(resource.patch, over) == [named], (named, over)


async def test_wrong_request_body_is_422_with_the_field_named_and_writes_no_row(api: Api) -> None:
    owner = (await api.make("organizations", name="One"))["id"]
    assert (owner, (await api.make("tenants", name="One", organization_id=owner))["id"]) == (1, 1)
    await api.make("subscription-plans", **WRONG["subscription-plans"][0])
    before = api.rows("select count(*) from audit_log")
    seam = {where: rows[:1] for where, (_, rows) in WRONG.items()}
    for where, rows in [*seam.items(), *STORED.items()]:
        usual = WRONG[where][0] if where in WRONG else Over()
        for named, over in cases(rows):
            answer = await api.post(where.replace("/", "/1/"), usual | over)
            assert answer.status == 422, (where, over, answer.raw)
            assert [each["field"] for each in answer.json["errors"]] == [named], (where, over)
    assert api.rows("select count(*) from audit_log") == before
    assert api.rows("select count(*) from control_write where verb <> 'define'") == [(0,)]


async def test_missing_and_unknown_request_fields_are_named_in_the_refusal(api: Api) -> None:
    for name, required in (
        ("organizations", ["name"]), ("prices", ["model", "currency", "effective_from"]),
        ("budgets", ["organization_id", "name", "unit", "amount"]),
    ):  # fmt: skip
        answer = await api.post(name, {})
        assert answer.json["errors"] == [{"field": each, "message": "required"} for each in required]
    assert set(answer.json) == {"type", "title", "status", "detail", "instance", "errors"}
    assert answer.headers["x-request-id"]
    answer = await api.post("organizations", {"name": "x", "colour": "red", "id": 5})
    assert answer.json["errors"] == [
        {"field": "colour", "message": "unknown field"}, {"field": "id", "message": "cannot be set here"},
    ]  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN)
def test_invisible_character_in_a_name_is_refused_with_the_code_point(hidden: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        check_body(model_of("organizations"), {"name": f"a{hidden}b"})
    assert f"U+{ord(hidden):04X}" in refused.value.errors[0][1]


def test_plan_description_may_have_several_lines_and_credits_per_unit_may_be_a_whole_number() -> None:
    usual = WRONG["token-plans"][0]
    assert fields_refused(model_of("token-plans"), usual | {"description": "a\nb\tc\r\n"}) == []
    asked = WRONG["services"][0] | {"pricing": {"at_cost": {"credits_per_unit": 1000}}}
    assert fields_refused(model_of("services"), asked) == []
