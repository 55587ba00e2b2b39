"""Stripe by its own library: one client, every request in bounded time, every failure an `Outcome`.

The library keeps no secret out of its messages by promise, so what is kept of one is bounded and masked here.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any

import stripe

from gateway.core.billing.handover import ERROR_CHARS_MAX, FAILED, WAITING, Handover, Outcome

REQUEST_S_MAX = 20.0
PAGE = 100
PAGES_MAX = 20
# On each thing that is made: which hand-over made it.
MARK = "tollkeeper_handover"
_KEY = re.compile(r"\b(?:sk|rk|whsec|pk)_[\w*]+")

Params = dict[str, Any]
Object = Mapping[str, Any]


class Unfinished(Exception):
    """What stands there is not what it should be; a person has to look."""


class StripeApi:
    """The account that money is collected for, by the key of now.

    `connector` makes connections where they are no plain ones.
    """

    def __init__(
        self, api_key: Callable[[], str], base_url: str = "", connector: object | None = None
    ) -> None:
        self._http = stripe.AIOHTTPClient(timeout=REQUEST_S_MAX, connector=connector)
        stripe.set_app_info("Tollkeeper", version=version("tollkeeper"))
        self._now, self._base_url, self._api_key = api_key, base_url.rstrip("/"), api_key()
        self._client = self._with(self._api_key)
        # An answer that broke off: the library passes on what its own client raises.
        self.broken_off = (self._http.aiohttp.ClientError, TimeoutError, OSError)

    @property
    def v1(self) -> Any:
        """What Stripe is asked by."""
        if (api_key := self._now()) != self._api_key:
            self._api_key, self._client = api_key, self._with(api_key)
        return self._client.v1

    def _with(self, api_key: str) -> stripe.StripeClient:
        return stripe.StripeClient(
            api_key,
            base_addresses={"api": self._base_url} if self._base_url else None,
            http_client=self._http,
            # Attempts are counted, and repeated, where hand-overs are kept.
            max_network_retries=0,
        )

    async def settled(self, attempt: Awaitable[Outcome]) -> Outcome:
        """What comes of an attempt; what it fails by is told, not raised."""
        try:
            return await attempt
        except Unfinished as error:
            return Outcome(FAILED, shown(str(error)), anew=True)
        except stripe.APIConnectionError as error:
            return Outcome(WAITING, shown(f"Stripe does not answer: {_cause(error)}"))
        except stripe.StripeError as error:
            return _told(error)
        except self.broken_off as error:
            return Outcome(WAITING, shown(f"Stripe does not answer: {type(error).__name__}"))

    async def aclose(self) -> None:
        """Let go of all connections."""
        await self._http.close_async()


def once(handover: Handover, step: str) -> Params:
    """What makes a request of a hand-over once, however often it is sent."""
    return {"idempotency_key": f"tollkeeper-{handover.key}-{handover.version}-{step}"}


def marks(handover: Handover) -> dict[str, str]:
    """What is written on whatever is made of a hand-over."""
    return {MARK: handover.key, "tollkeeper_number": handover.paper.number}


async def made(handover: Handover, page: Callable[[Params], Awaitable[Any]]) -> Object | None:
    """What a hand-over has made before, among what a list of Stripe's has."""
    async for one in every(page):
        if (one.get("metadata") or {}).get(MARK) == handover.key:
            return one
    return None


async def existing(request: Awaitable[Any]) -> Object | None:
    """What a request finds; None where Stripe has it no more."""
    try:
        found: Object = (await request).to_dict()
    except stripe.InvalidRequestError as error:
        if error.http_status == 404:
            return None
        raise
    return None if found.get("deleted") else found


async def every(page: Callable[[Params], Awaitable[Any]]) -> AsyncIterator[Object]:
    """All of a list, page by page; `Unfinished` where it has no end."""
    asked: Params = {"limit": PAGE}
    for _ in range(PAGES_MAX):
        found = (await page(asked)).to_dict()
        for one in found["data"]:
            yield one
        if not found["has_more"]:
            return
        asked = {"limit": PAGE, "starting_after": found["data"][-1]["id"]}
    raise Unfinished(f"Stripe lists more than {PAGES_MAX * PAGE} of the customer's; it is not looked further")


def _told(error: Any) -> Outcome:
    """What an answer that is an error means: an account that lets nobody in or is busy is asked again."""
    status = error.http_status or 0
    if status == 401:
        return Outcome(WAITING, "Stripe does not know TOLLKEEPER_STRIPE_API_KEY (401)")
    named = f" ({error.request_id})" if error.request_id else ""
    said = shown(f"Stripe answers {status}: {error.user_message or error.code or 'nothing'}{named}")
    if status in {409, 429}:
        return Outcome(WAITING, said)
    if isinstance(error, stripe.IdempotencyError) or status == 403 or status >= 500 or not status:
        return Outcome(WAITING, said, anew=True)
    return Outcome(FAILED, said, anew=True)


def _cause(error: Exception) -> str:
    return type(error.__cause__ or error).__name__


def shown(text: str) -> str:
    """A text of Stripe's as it may be kept: bounded, without keys."""
    return _KEY.sub("(hidden)", " ".join(text.split()))[:ERROR_CHARS_MAX]
