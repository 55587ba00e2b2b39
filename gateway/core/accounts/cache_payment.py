"""Payments for contents that an upstream stores by the hour. Pure.

Each is stored beside the owner of the contents. So a call that extends their time pays only for the added time.
"""

from __future__ import annotations

import msgspec


class CachePayment(msgspec.Struct):
    """Contents of an organization: their model and size, and the Unix time until which they are paid."""

    organization_id: int
    model: str
    tokens: int
    until_s: int

    @property
    def words(self) -> dict[str, str]:
        """The payment as words for the reader of a call (`gateway/core/calls/storage.py`)."""
        return {"paid_model": self.model, "paid_tokens": str(self.tokens), "paid_until": str(self.until_s)}


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(CachePayment).decode


def write_payment(payment: CachePayment) -> bytes:
    return _encode(payment)


def read_payment(raw: bytes | None) -> CachePayment | None:
    """Return the payment in `raw`; None if there is none, or if it cannot be decoded."""
    if raw is None:
        return None
    try:
        return _decode(raw)
    except msgspec.MsgspecError:
        return None
