"""Messages are signed as the specification has it and tried again with longer pauses."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.core.alerts.messages import RETRIES, Delivery, DeliveryOutcome, headers_of, signature

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)


def test_the_signature_of_the_specifications_own_example() -> None:
    """From the reference libraries' test: https://github.com/standard-webhooks/standard-webhooks."""
    signed = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        b'{"test": 2432232314}',
    )
    assert signed == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_attempt_is_signed() -> None:
    fields = headers_of(Delivery(7, "https://example.com", "whsec_AAAA", "quota.80", {}, NOW, 1), b"{}", NOW)
    assert (fields["webhook-id"], fields["webhook-timestamp"]) == ("msg_7", str(int(NOW.timestamp())))
    version, _, signed = fields["webhook-signature"].partition(",")
    assert version == "v1"
    assert signed == signature("whsec_AAAA", "msg_7", fields["webhook-timestamp"], b"{}")


def test_a_message_is_given_up_within_a_day() -> None:
    pauses = [RETRIES.after_s(attempts) for attempts in range(1, 11)]
    assert pauses == [10, 30, 90, 270, 810, 2430, 7290, 21_600, 21_600, None]


def test_only_2xx_is_delivered() -> None:
    assert [DeliveryOutcome(status).delivered for status in (200, 204, 301, 404, 500, None)] == [
        True,
        True,
    ] + [False] * 4
