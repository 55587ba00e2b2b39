"""Billing services, where a keeper has them. Stripe is loaded with its key alone, since it is an extra.

Part of the composition root.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from gateway.admin.invoices.renderer import LOGO_KINDS, InvoiceRenderer
from gateway.background.loops import Isolation
from gateway.background.timed.deliveries import HandoverQueuePort, Handovers
from gateway.core.billing.document import InvoiceParty, Letterhead, countries
from gateway.core.network import DIRECT
from gateway.errors import SettingError
from gateway.extras import loading
from gateway.features.stripe.handover import CollectionStatus, PaymentReturn
from gateway.files import read_regular
from gateway.outbound.client import Connector, Outgoing, ProxiesNow
from gateway.run.keeper_doors import KeeperSettings
from gateway.run.timed_loops import Loops
from gateway.settings.settings import PREFIX, Settings

if TYPE_CHECKING:
    from gateway.features.stripe.service import StripeApi


# How a keeper calls others: webhooks, and services that it bills by; through the proxies of now.
#
# Part of the composition root.


def outgoing(proxies: ProxiesNow, *, private: bool) -> Outgoing:
    """What posts to others, to those at private addresses only where that is allowed."""
    return Outgoing(private=private, proxies=proxies)


def connector(proxies: ProxiesNow) -> Connector | None:
    """How a library of somebody's connects to them; None where nobody is before any of them.

    Nobody ever is then: variables do not change while a process runs, and files of proxies are never empty.
    """
    return None if proxies() == DIRECT else Connector(proxies, None)


Reader = Callable[[bytes, str], CollectionStatus | PaymentReturn | None]
LookUp = Callable[[PaymentReturn], Awaitable[Sequence[CollectionStatus]]]


class StripeConnection:
    """The keeper's ends of Stripe: the loop that hands over, and what reads its messages, where wanted."""

    def __init__(self, settings: Settings, later: KeeperSettings) -> None:
        self._settings = settings
        self._api: StripeApi | None = None
        self.read: Reader | None = None
        self.look_up: LookUp | None = None
        if not (settings.stripe_api_key or settings.stripe_webhook_secret):
            return
        with loading("stripe"):
            from gateway.features.stripe.service import (  # noqa: PLC0415  # loaded where it is needed
                StripeApi,  # large
                StripeEvents,
                StripeReturns,
            )

        if settings.stripe_api_key:
            connects = connector(later.proxies)
            self._api = StripeApi(later.saying("stripe_api_key"), settings.stripe_api_url, connects)
            self.look_up = StripeReturns(self._api).look_up
        if settings.stripe_webhook_secret:
            self.read = StripeEvents(later.saying("stripe_webhook_secret")).read

    def loops(self, queue: HandoverQueuePort, log: Callable[..., None], isolation: Isolation) -> Loops:
        """What hands over, where there is a key."""
        if self._api is None:
            return {}
        from gateway.features.stripe.service import StripeInvoices  # noqa: PLC0415  # loaded where it is needed

        how = cast("Literal['charge_automatically', 'send_invoice']", self._settings.stripe_collection)
        stripe = StripeInvoices(self._api, how, partial(datetime.now, UTC))
        return {"handovers": Handovers(queue, stripe, log, isolation=isolation).run}

    async def aclose(self) -> None:
        """Let go of all connections."""
        if self._api is not None:
            await self._api.aclose()


# The issuer's own details for invoices, from settings: read once, wrong ones stop the start.
#
# Part of the composition root.


FILE_BYTES_MAX = 4 * 1024 * 1024
# Letters of an IBAN count on from 10.
BASE_OF_IBAN, IBAN_MODULUS = 36, 97

_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}", re.ASCII)


def letterhead(settings: Settings) -> Letterhead:
    """Who sends invoices, and on which terms; `SettingError` where a setting cannot be used."""
    return Letterhead(
        seller=_seller(settings),
        notes=_lines(settings.invoice_notes),
        addresses=_addresses(settings.invoice_addresses),
        due_days=settings.invoice_due_days,
        iban=_iban(settings.invoice_iban),
    )


def invoice_renderer(settings: Settings) -> InvoiceRenderer:
    """Make the paper invoices are set on; `SettingError` where a file cannot be used."""
    return InvoiceRenderer(letterhead(settings), _logo(settings.invoice_logo))


def _seller(settings: Settings) -> InvoiceParty | None:
    name, *address = _lines(settings.invoice_issuer) or ("",)
    country = settings.invoice_country
    if country and country not in countries():
        raise _wrong("invoice_country", country, "the two letters of a country (ISO 3166)")
    if not name:
        return None
    return InvoiceParty(name, tuple(address), country or None, settings.invoice_tax_number.strip() or None)


def _iban(text: str) -> str | None:
    """An account by ISO 13616: two digits check the rest, modulo 97."""
    number = "".join(text.split()).upper()
    if not number:
        return None
    moved = number[4:] + number[:4]
    if (
        _IBAN.fullmatch(number) is None
        or int("".join(str(int(each, BASE_OF_IBAN)) for each in moved)) % IBAN_MODULUS != 1
    ):
        raise _wrong("invoice_iban", text, "an IBAN, such as DE02 1203 0000 0000 2020 51")
    return number


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip())


def _logo(place: str) -> Path | None:
    if not place:
        return None
    path = Path(place)
    if path.suffix.lower() not in LOGO_KINDS:
        raise _wrong("invoice_logo", place, f"a file of {', '.join(sorted(LOGO_KINDS))}")
    _readable("invoice_logo", path)
    return path


def _addresses(place: str) -> Mapping[str, Sequence[str]]:
    if not place:
        return {}
    try:
        read = json.loads(_readable("invoice_addresses", Path(place)))
    except ValueError as error:
        raise _wrong("invoice_addresses", place, "a file with a JSON object") from error
    lines = read.values() if isinstance(read, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(line, str) for line in one) for one in lines):
        raise _wrong("invoice_addresses", place, "a file with lists of texts by organization id or name")
    found: dict[str, list[str]] = read
    return found


def _readable(name: str, path: Path) -> bytes:
    try:
        content = read_regular(path, FILE_BYTES_MAX)
    except OSError as error:
        raise _wrong(name, str(path), "a file that can be read") from error
    if len(content) > FILE_BYTES_MAX:
        raise _wrong(name, str(path), f"a file of at most {FILE_BYTES_MAX} bytes")
    return content


def _wrong(name: str, value: str, wanted: str) -> SettingError:
    return SettingError(f"{PREFIX}{name.upper()}={value!r} is not valid: expected {wanted}")
