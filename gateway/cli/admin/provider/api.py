"""A provider's own API of usage and costs: its pages, one after the other, and every failure as one sentence.

The administrator's key goes to the address asked for and nowhere else: no redirect is followed, and no
plain HTTP leaves this machine. What a provider says of a failure is not repeated, for it may name the key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from http.client import HTTPException, HTTPResponse
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from gateway.cli.admin.client import CommandFailed, is_local
from gateway.core.provider_report.format import DAYS_A_PAGE, Format
from gateway.core.provider_report.reading import Place, add_page
from gateway.core.provider_report.report import Report
from gateway.core.retry_after import retry_after_s

PAGES_MAX: Final = 1_000  # of all reports of one comparison
PAGE_BYTES_MAX: Final = 16 * 2**20
PAGE_S_MAX: Final = 60.0
SILENT_S_MAX: Final = 30.0
TRIES_MAX: Final = 4  # of one page
PAUSE_S_MAX: Final = 60.0
KEY_BYTES_MAX: Final = 4_096
_CHUNK_BYTES: Final = 65_536
_AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504, 529})


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow none: another address would be told the key."""


@dataclass(frozen=True, slots=True)
class ProviderApi:
    """Where a provider answers, such as https://api.openai.com, and the key of an administrator there."""

    of: Format
    url: str
    key: str = field(repr=False)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    pages_max: int = PAGES_MAX

    def read(self, since: date, until: date) -> Report:
        """All reports from one day to another, which is not included."""
        report = Report(days={since + timedelta(days=at) for at in range((until - since).days)})
        pages = 0
        for path, parameters in self.of.questions:
            for first, last in spans(since, until):
                query, page = {**parameters, **self.of.span(first, last)}, ""
                seen: set[str] = set()
                while page or not seen:
                    if page in seen or pages >= self.pages_max:
                        said = f"has more than {self.pages_max:,} pages, or one twice: ask for less time"
                        raise CommandFailed(f"{self.url}{path} {said}.")
                    seen.add(page)
                    pages += 1
                    raw = self._page(path, {**query, **({"page": page} if page else {})})
                    page = add_page(report, raw, Place(f"{self.url}{path}, page {pages}", self.of))
        return report

    def _page(self, path: str, query: Mapping[str, str]) -> bytes:
        for number in range(1, TRIES_MAX + 1):
            try:
                return self._answer(path, query)
            except HTTPError as error:
                with error:
                    if error.code not in _AGAIN or number == TRIES_MAX:
                        raise CommandFailed(self._refusal(error.code, path)) from error
                    self.sleep(_pause_s(error.headers.get("retry-after"), number))
            except (URLError, OSError, HTTPException) as error:
                reason = getattr(error, "reason", error)
                raise CommandFailed(f"Nothing usable answers at {self.url}{path} ({reason}).") from error
        raise AssertionError("the last try returns or raises")

    def _answer(self, path: str, query: Mapping[str, str]) -> bytes:
        headers = {"Accept": "application/json", **self.of.headers(self.key)}
        request = Request(f"{self.url}{path}?{urlencode(query)}", headers=headers)  # noqa: S310  # checked scheme
        until = self.clock() + PAGE_S_MAX
        with _opener(self.url).open(request, timeout=SILENT_S_MAX) as answer:
            return self._body(answer, path, until)

    def _body(self, answer: HTTPResponse, path: str, until: float) -> bytes:
        body = bytearray()
        while chunk := answer.read1(_CHUNK_BYTES):
            body += chunk
            if len(body) > PAGE_BYTES_MAX:
                raise CommandFailed(f"A page of {self.url}{path} has more than {PAGE_BYTES_MAX:,} bytes.")
            if self.clock() > until:
                raise CommandFailed(f"A page of {self.url}{path} took more than {PAGE_S_MAX:.0f} s.")
        return bytes(body)

    def _refusal(self, status: int, path: str) -> str:
        if status in {401, 403}:
            return (
                f"{self.url} does not accept the key ({status}). {self.of.key_variable} must hold one of an "
                "administrator of the organization; an ordinary API key may not read reports."
            )
        if status in _AGAIN:
            return f"{self.url}{path} answered {status}, {TRIES_MAX} times. Try again later."
        return f"{self.url}{path} answered {status}. --api must be the base URL, such as {self.of.url}."


def provider_api(of: Format, url: str | None, environ: Mapping[str, str] = os.environ) -> ProviderApi:
    """The API of a provider, with the key that the environment has for it."""
    base = (url or of.url).rstrip("/").removesuffix("/v1")
    parts = urlsplit(base)
    plain = parts.scheme == "http" and is_local(parts.hostname or "")
    if not parts.hostname or parts.query or parts.username or not (parts.scheme == "https" or plain):
        raise CommandFailed(
            f"--api must be a base URL such as {of.url}, with https unless it is this machine."
        )
    return ProviderApi(of, base, _key(of, environ))


def spans(since: date, until: date) -> Iterator[tuple[date, date]]:
    """A span in pieces of as many days as one page may have."""
    while since < until:
        last = min(since + timedelta(days=DAYS_A_PAGE), until)
        yield since, last
        since = last


def _key(of: Format, environ: Mapping[str, str]) -> str:
    """The key, from its variable or the file that another names."""
    from gateway.settings.secret_files import Environment  # noqa: PLC0415  # help is shown without settings

    name = of.key_variable
    key = Environment(environ).get(name, "").strip()
    if not key:
        raise CommandFailed(
            f"Name a FILE with the report, or set {name} (or {name}_FILE) to read it from {of.url}."
        )
    if len(key) > KEY_BYTES_MAX or not (key.isascii() and key.isprintable() and " " not in key):
        raise CommandFailed(f"{name} must be one word of at most {KEY_BYTES_MAX:,} ASCII characters.")
    return key


def _opener(url: str) -> OpenerDirector:
    # What is for this machine never goes through a proxy.
    direct = (ProxyHandler({}),) if is_local(urlsplit(url).hostname or "") else ()
    return build_opener(_NoRedirect, *direct)


def _pause_s(said: str | None, number: int) -> float:
    """How long to wait: as the provider says, else twice as long each time."""
    wanted = retry_after_s(said, time.time()) if said else None
    return min(float(2 ** (number - 1)) if wanted is None else wanted, PAUSE_S_MAX)
