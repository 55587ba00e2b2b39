"""Which service tier a use is charged at: the one that answered, else a dear one that was asked for."""

from __future__ import annotations

import pytest

from gateway.calls.rating import served_tier
from gateway.core.billing.price_book import KINDS, cost_nano, read_price, unpriced_names
from gateway.core.families.registry import OF_METER
from gateway.errors import InvalidRequest
from gateway.features.jobs.gateway import at_batch_price
from tests.core.billing.prices import price_row

TIERS = {"batch": "0.5", "fast": "2", "us": "1.1"}
ROW = price_row(input="5", output="25", service_tiers=TIERS)
VECTOR = read_price(ROW).vector
USED = tuple({"input": 1_000, "output": 100}.get(kind, 0) for kind in KINDS)


@pytest.mark.parametrize(
    ("asked", "tier"),
    [
        ((), ""), (("auto",), ""), (("default",), ""), (("standard", "global"), ""),
        # A dearer one counts, a cheaper one that nobody confirms does not.
        (("fast",), "fast"), (("batch",), ""), (("us",), "us"), (("fast", "us"), "fast/us"),
        (("batch", "us"), ""), (("standard", "us"), "us"),
        # One that no price names is told, and costs what is usual.
        (("ultrafast",), "ultrafast"), (("eu",), "eu"), (("fast", "eu"), "eu"), (("warp", "us"), "warp/us"),
    ],
)  # fmt: skip
def test_a_tier_that_was_asked_for_counts_where_the_answer_names_none(
    asked: tuple[str, ...], tier: str
) -> None:
    found = served_tier(VECTOR, asked, USED, {})
    assert found == tier
    assert unpriced_names(VECTOR, {}, USED, found) == (
        [] if set(asked) <= {"auto", "default", "standard", "global", *TIERS}
        else [f"service_tier.{tier}"]
    )  # fmt: skip
    assert cost_nano(VECTOR, USED, tier=found) >= cost_nano(VECTOR, USED)


@pytest.mark.parametrize("batch", ["0.5", {"input": "2.5", "output": "12.5"}])
def test_a_batch_at_a_place_has_both_factors_and_its_hold_has_them_too(batch: object) -> None:
    row = price_row(input="5", output="25", service_tiers={**TIERS, "batch": batch})
    priced = read_price(row).vector
    assert cost_nano(priced, USED, tier="batch/us") == (2_500 + 1_250) * 1_100
    assert cost_nano(at_batch_price(priced), USED, tier="us") == (2_500 + 1_250) * 1_100


@pytest.mark.parametrize("stated", [3, 3.0, ["priority"], {"name": "priority"}, True])
@pytest.mark.parametrize(
    ("meter", "field"),
    [
        ("gemini_generate", "serviceTier"), ("gemini_generate", "service_tier"),
        ("openai_chat", "service_tier"), ("openai_responses", "service_tier"),
        ("anthropic_messages", "service_tier"), ("anthropic_messages", "inference_geo"),
    ],
)  # fmt: skip
def test_a_tier_that_is_no_name_is_refused(meter: str, field: str, stated: object) -> None:
    """Google takes 3 for `priority`."""
    with pytest.raises(InvalidRequest, match=field):
        OF_METER[meter].exclusions.asked_tiers({field: stated})
    assert OF_METER[meter].exclusions.asked_tiers({field: None}) == ()


def test_the_speed_of_speech_is_no_tier() -> None:
    assert OF_METER["openai_speech"].exclusions.asked_tiers({"speed": 1.25}) == ()
