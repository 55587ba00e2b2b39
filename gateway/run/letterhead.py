"""The issuer's own details for invoices, from settings; an invalid one stops the start.

Part of the composition root.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import msgspec

from gateway.core.billing.document import (
    ENDPOINT,
    TAX_CURRENCIES,
    Contact,
    InvoiceParty,
    Letterhead,
    PostalAddress,
    countries,
    party_of,
)
from gateway.core.billing.money import MINOR_DIGITS
from gateway.errors import SettingError
from gateway.files import read_regular
from gateway.settings.settings import PREFIX, Settings

FILE_BYTES_MAX = 4 * 1024 * 1024
# Letters of an IBAN count from 10 on.
BASE_OF_IBAN, IBAN_MODULUS = 36, 97

_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}", re.ASCII)


def letterhead(settings: Settings) -> Letterhead:
    """Return the sender of invoices and the payment terms; `SettingError` for an invalid setting."""
    seller, wanted = _read_seller(settings), settings.invoice_tax_currency
    if wanted and wanted not in MINOR_DIGITS:
        raise wrong("invoice_tax_currency", wanted, "the three letters of a currency (ISO 4217)")
    own_currency = TAX_CURRENCIES.get(seller.country or "") if seller else None
    return Letterhead(
        seller=seller,
        notes=_lines(settings.invoice_notes),
        addresses=_read_addresses(settings.invoice_addresses),
        due_days=settings.invoice_due_days,
        iban=_iban(settings.invoice_iban),
        accounting_currency=wanted or own_currency,
        requires_rate=bool(wanted),
    )


def _read_seller(settings: Settings) -> InvoiceParty | None:
    """Return the sender of invoices that settings name, if any."""
    name, *address = _lines(settings.invoice_issuer) or ("",)
    country = settings.invoice_country
    if country and country not in countries():
        raise wrong("invoice_country", country, "the two letters of a country (ISO 3166)")
    if not name:
        return None
    more = _details(settings.invoice_seller)
    details = {"address": address, "country": country or None} | more
    return party_of(name, details | {"tax_number": settings.invoice_tax_number.strip() or None})


def _object(name: str, *members: tuple[str, Any]) -> Any:
    """Return a type for JSON objects with these optional members."""
    named = [(member, kind | None, None) for member, kind in members]
    return msgspec.defstruct(name, named, forbid_unknown_fields=True, omit_defaults=True)


_Texts = {
    of: _object(of.__name__, *((field.name, str) for field in fields(of))) for of in (PostalAddress, Contact)
}
_Details = _object(
    "_Details", ("address", _Texts[PostalAddress]), ("contact", _Texts[Contact]),
    ("endpoint_id", Annotated[str, msgspec.Meta(pattern=rf"^{ENDPOINT}\Z")]),
)  # fmt: skip


def _details(text: str) -> dict[str, Any]:
    """Return the details of the seller for electronic invoices, from one JSON object."""
    if not text:
        return {}
    try:
        read = msgspec.json.decode(text, type=_Details)
    except msgspec.MsgspecError as error:
        raise wrong(
            "invoice_seller", text, f"a JSON object of address, contact, endpoint_id: {error}"
        ) from error
    details: dict[str, Any] = msgspec.to_builtins(read)
    if details.get("address", {}).get("country") not in {None, *countries()}:
        raise wrong("invoice_seller", text, "the two letters of a country (ISO 3166)")
    return details


def _iban(text: str) -> str | None:
    """Return an IBAN without blanks, None for an empty text; by ISO 13616 its digits are verified modulo 97.

    `SettingError` for an invalid one.
    """
    number = "".join(text.split()).upper()
    if not number:
        return None
    moved = number[4:] + number[:4]
    if (
        _IBAN.fullmatch(number) is None
        or int("".join(str(int(each, BASE_OF_IBAN)) for each in moved)) % IBAN_MODULUS != 1
    ):
        raise wrong("invoice_iban", text, "an IBAN, such as DE02 1203 0000 0000 2020 51")
    return number


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip())


def _read_addresses(place: str) -> Mapping[str, Sequence[str]]:
    """Return the lines of addresses by organization, as a file has them."""
    if not place:
        return {}
    try:
        read = json.loads(readable("invoice_addresses", Path(place)))
    except ValueError as error:
        raise wrong("invoice_addresses", place, "a file with a JSON object") from error
    lines = read.values() if isinstance(read, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(line, str) for line in one) for one in lines):
        raise wrong("invoice_addresses", place, "a file with lists of texts by organization id or name")
    found: dict[str, list[str]] = read
    return found


def readable(name: str, path: Path) -> bytes:
    """Return the content of a setting's file; `SettingError` if it is unreadable or too large."""
    try:
        content = read_regular(path, FILE_BYTES_MAX)
    except OSError as error:
        raise wrong(name, str(path), "a file that can be read") from error
    if len(content) > FILE_BYTES_MAX:
        raise wrong(name, str(path), f"a file of at most {FILE_BYTES_MAX} bytes")
    return content


def wrong(name: str, value: str, wanted: str) -> SettingError:
    """Return the error for an invalid setting, with what would be valid."""
    return SettingError(f"{PREFIX}{name.upper()}={value!r} is not valid: expected {wanted}")
