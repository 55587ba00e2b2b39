"""What an organization pays and may use: its own terms over the catalogue's, by the time of day."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.definitions import NegotiatedTerms, OrganizationTerms
from gateway.core.billing.money import CreditRates, PriceTier, ServicePricing
from gateway.core.model import Service
from gateway.counters.admission.catalogue import CachedTerms
from gateway.counters.admission.stored import decode_terms, encode_terms, version_of
from gateway.errors import ServiceNotIncluded

CHAT = Service(1, "chat", "subscription", counts_tokens=False)
IMAGES = Service(2, "images", "consumption", counts_tokens=False, credits=8)
TIERS = ServicePricing(tiers=(PriceTier(10, Decimal("0.0010")), PriceTier(None, Decimal("0.0008"))))
BY_TOKEN = ServicePricing(per_million={"*": CreditRates(3, 15, None)})


def terms(*negotiated: NegotiatedTerms, **subscription: Any) -> CachedTerms:
    return CachedTerms(encode_terms(7, OrganizationTerms(negotiated, **subscription)))


def test_the_version_is_kept_beside_the_terms() -> None:
    assert version_of(encode_terms(7, OrganizationTerms())) == 7


def test_without_terms_the_catalogue_counts() -> None:
    assert CachedTerms(b"").resolve(IMAGES, 0) == IMAGES


def test_a_negotiated_price_goes_first_and_the_rest_stays() -> None:
    found = terms(NegotiatedTerms(2, 6)).resolve(IMAGES, 0)
    assert (found.credits, found.meter, found.pricing) == (6, "consumption", IMAGES.pricing)


OCR = Service(3, "ocr", "consumption", counts_tokens=False, credits=5)
MAPS = Service(4, "maps", "pay_per_use", counts_tokens=False)


def usable(one: CachedTerms, *services: Service) -> set[str]:
    """The keys of those an organization may use now."""
    found = set()
    for service in services:
        with suppress(ServiceNotIncluded):
            found.add(one.resolve(service, 150).key)
    return found


@pytest.mark.parametrize(
    ("negotiated", "subscription", "listed"),
    [
        ((), {}, set()),
        ((NegotiatedTerms(2, 6),), {}, {"images"}),
        ((NegotiatedTerms(2, 8), NegotiatedTerms(4, 0)), {}, {"images", "maps"}),
        # The meter says nothing.
        ((NegotiatedTerms(2, 6, "pay_per_use"),), {}, {"images"}),
        ((NegotiatedTerms(1, 6),), {}, {"chat"}),
        ((NegotiatedTerms(1, 6, "consumption"),), {}, {"chat"}),
        ((NegotiatedTerms(2, 6, "subscription"),), {}, {"images"}),
        # A service that the catalogue has no more.
        ((NegotiatedTerms(9, 6),), {}, set()),
        # A subscription that includes a service puts it on no list.
        ((NegotiatedTerms(2, 6),), {"features": ("chat",), "since_ms": 100, "until_ms": 200}, {"images"}),
    ],
)
def test_a_price_closes_no_other_service_and_a_list_all_that_is_not_on_it(
    negotiated: tuple[NegotiatedTerms, ...], subscription: dict[str, Any], listed: set[str]
) -> None:
    everything = CHAT, IMAGES, OCR, MAPS
    assert usable(terms(*negotiated, **subscription), *everything) == {"chat", "images", "ocr", "maps"}
    assert usable(terms(*negotiated, **subscription, listed=True), *everything) == listed


@pytest.mark.parametrize("pricing", [TIERS, BY_TOKEN])
def test_another_business_model_and_pricing(pricing: ServicePricing) -> None:
    found = terms(NegotiatedTerms(2, 0, "pay_per_use", pricing)).resolve(IMAGES, 0)
    assert (found.credits, found.meter, found.pricing) == (0, "pay_per_use", pricing)


@pytest.mark.parametrize("meter", ["subscription", "consumption", "pay_per_use"])
@pytest.mark.parametrize("said", [None, True, False])
def test_tokens_count_as_was_said_last_else_by_the_meter(meter: str, said: bool | None) -> None:
    """What an organization has negotiated goes first, then the service, then its business model."""
    base = Service(1, "chat", meter, counts_tokens=said is True, counts_none=said is False)
    by_itself = meter == "subscription" if said is None else said
    assert CachedTerms(b"").resolve(base, 0).counts_tokens is by_itself
    assert terms(NegotiatedTerms(1, 6)).resolve(base, 0).counts_tokens is by_itself
    for own in True, False:
        assert terms(NegotiatedTerms(1, 6, counts_tokens=own)).resolve(base, 0).counts_tokens is own
    for other in "subscription", "consumption", "pay_per_use":
        found = terms(NegotiatedTerms(1, 6, other)).resolve(base, 0).counts_tokens
        assert found is (other == "subscription" if said is None else said)


def test_the_same_terms_answer_the_same_object() -> None:
    one = terms(NegotiatedTerms(2, 6))
    assert one.resolve(IMAGES, 0) is one.resolve(IMAGES, 5)
    assert one.resolve(Service(2, "images", "pay_per_use"), 0).meter == "pay_per_use"


def test_who_never_had_a_subscription_needs_a_plan() -> None:
    assert terms().resolve(CHAT, 0).needs_plan
    assert terms(features=("chat",), since_ms=100, until_ms=200).resolve(CHAT, 99).needs_plan


def test_a_subscription_in_force_includes_its_features_without_a_plan() -> None:
    one = terms(features=("chat",), since_ms=100, until_ms=200)
    assert not one.resolve(CHAT, 100).needs_plan
    assert one.resolve(CHAT, 199.9) is one.resolve(CHAT, 100)
    with pytest.raises(ServiceNotIncluded):
        terms(features=("other",), since_ms=100, until_ms=200).resolve(CHAT, 150)


@pytest.mark.parametrize(
    "one",
    [
        terms(features=("chat",), since_ms=100, until_ms=200),
        terms(features=("chat",), since_ms=300, until_ms=400, subscribed=True),
        terms(subscribed=True),
    ],
)
def test_a_subscription_that_is_over_includes_nothing(one: CachedTerms) -> None:
    with pytest.raises(ServiceNotIncluded):
        one.resolve(CHAT, 200)
    assert one.resolve(IMAGES, 200) == IMAGES


def test_a_price_in_another_currency_is_no_price_for_this_organization() -> None:
    yen = Service(5, "maps", "pay_per_use", counts_tokens=False, pricing=replace(TIERS, currency="JPY"))
    assert terms(currency="JPY").resolve(yen, 0).pricing.currency == "JPY"
    with pytest.raises(ServiceNotIncluded, match="costs JPY, and the organization pays in EUR"):
        terms(currency="EUR").resolve(yen, 0)
    own = NegotiatedTerms(5, 0, None, replace(TIERS, currency="EUR"))
    assert terms(own, currency="EUR").resolve(yen, 0).pricing.currency == "EUR"
    # Credits are no money: what they are paid with has no currency.
    assert usable(terms(currency="EUR"), CHAT, IMAGES) == {"chat", "images"}


def test_names_of_tags_and_budgets_of_tags_are_read_as_written() -> None:
    budget = Budget(1, "b", "tokens", 1, "day", each="tag:team", tags=(("feature", "search"),))
    found = terms(tags=("feature", "team"), budgets=(budget,))
    assert found.tags == ("feature", "team")
    assert found.budgets is not None
    assert [one.budgets for one in [decode_terms(found.raw)]] == [(budget,)]
    assert b"tags" not in encode_terms(7, OrganizationTerms(budgets=(replace(budget, tags=()),)))
