"""The Admin API's client for the command line: its address, its calls, and failures as one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLCertVerificationError, SSLContext
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import BaseHandler, HTTPSHandler, ProxyHandler, Request, build_opener
from uuid import uuid4

from gateway.cli.admin import described
from gateway.cli.admin.sections import section_of
from gateway.core.certificates import TlsFiles
from gateway.core.network import without_password
from gateway.core.text import read_json
from gateway.errors import NotFound, TollkeeperError
from gateway.tls.certificates import pinned, trusting

# Words of the command line for resources of the Admin API that differ from the resource's name.
#
# The other parts of a command come from the resource (`commands.py`): its fields, filters and actions.

# The field that identifies a row besides its id, if it differs from the resource's own.
NAMED_BY: Mapping[str, str] = {"services": "key", "organization-subscriptions": "organization_id"}
# Resources whose rows have the id of another resource's row.
ID_OF: Mapping[str, str] = {"tenant-quotas": "tenants"}
# Shorter names of options; the field's own name works, too.
SHORT: Mapping[str, str] = {
    "organization": "org",
    "requests-per-minute": "rpm",
    "tokens-per-minute": "tpm",
    "total-amount": "total",
    "reset-interval": "reset",
    "overage-policy": "overage",
    "business-model": "model",
    "models": "model",
    "service-type": "type",
    "monthly-cost": "monthly",
    "annual-cost": "annual",
    "feature-access": "feature",
    "start-date": "start",
    "end-date": "end",
    "effective-from": "from",
    "billing-interval": "interval",
    "changes": "change",
    "lines": "line",
}
# Lists that show only open rows without `--all`.
OPEN: Mapping[str, str] = {"dead-letters": "resolved", "quarantine": "released"}
# Resources with names whose ids are values of a budget's `each`.
OWNERS: Mapping[str | None, str] = {"tenant": "tenants"}
# Resources whose ids are the members of a group, by its kind.
MEMBERS: Mapping[str | None, str] = {"tenant": "tenants", "api_key": "api-keys"}
# Resources shown together with a row of the same id.
BESIDE: Mapping[str, tuple[str, str]] = {"tenants": ("quota", "tenant-quotas")}


@dataclass(frozen=True, slots=True)
class Alias:
    """A second name of a command: `section verb`.

    Fields or filters in `positional` can be given in order, without an option's name.
    """

    section: str
    verb: str
    resource: str
    does: str
    summary: str
    positional: tuple[str, ...] = ()


ALIASES = (
    Alias("credits", "add", "credit-additions", "create", "Give credits; below 0 takes back."),
    Alias("credits", "uses", "credit-transactions", "list", "List what credits were used for.",
          ("organization_id",)),
    Alias("tenant", "ledger", "token-ledger", "list", "List the movements of a tenant's tokens.",
          ("tenant_id",)),
    Alias("tenant", "plan", "tenant-quotas", "change", "Move a tenant to another token plan, now."),
)  # fmt: skip


def named_by(resource: str) -> str:
    """Return the field that identifies a row besides its id."""
    return NAMED_BY.get(resource) or described.resource(resource).named_by


def defaults(resource: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that `create` sets by default, next to the fields in `given`."""
    if resource in {"prices", "exchange-rates"}:
        return {"effective_from": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    if resource != "services":
        return {}
    key = {"name": given["key"]} if "key" in given else {}
    return {**key, "credits": "0", "service_type": "Pay-As-You-Go"}


TIMEOUT_S = 40.0
PAGE_ROWS_MAX = 1_000
NAMES_READ_MAX = 5_000
# Maximum of rows with the same name that a message lists.
NAMESAKES_MAX = 6
DATA_DIR = ".tollkeeper"
# Ids are below 2^63.
ID_DIGITS_MAX = 19

Json = dict[str, Any]  # JSON as the API answers it


class CommandFailed(TollkeeperError, reason="command_failed"):
    """The command failed; the message is the reason."""


@dataclass(frozen=True, slots=True)
class AdminClient:
    """A client of the Admin API at `url`, such as http://127.0.0.1:8081.

    `called` maps fields of a body to the command's options, for messages about invalid values.
    """

    url: str
    token: str = field(repr=False)
    called: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S
    tls: SSLContext | None = field(default=None, repr=False)

    def get(self, path: str, **query: object) -> Json:
        """Read the resource at a path; parameters of the query that are None are left out."""
        return self._call("GET", _address_of(path, query), None)

    def items(self, path: str, limit: int, **query: object) -> list[Json]:
        """Read up to `limit` rows of a list, page by page."""
        return list(self._iterate_rows(path, limit, **query))

    def _iterate_rows(self, path: str, limit: int, **query: object) -> Iterator[Json]:
        cursor: str | None = None
        while limit > 0:
            page = self.get(path, limit=min(PAGE_ROWS_MAX, limit), cursor=cursor, **query)
            yield from page["items"]
            limit -= len(page["items"])
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def post(self, path: str, body: Mapping[str, object] | Sequence[object] | None = None) -> Json:
        return self._call("POST", path, body or {})

    def patch(self, path: str, body: Mapping[str, object]) -> Json:
        return self._call("PATCH", path, body)

    def put(self, path: str, body: Mapping[str, object]) -> Json:
        return self._call("PUT", path, body)

    def delete(self, path: str) -> None:
        self._call("DELETE", path, None)

    def id_of(self, resource: str, text: str, organization_id: int | None = None) -> int:
        """Return the id of a row from a text that is its id or its name, of one organization if it is given."""
        resource = ID_OF.get(resource, resource)
        if text.isascii() and text.isdigit() and len(text) <= ID_DIGITS_MAX:
            return int(text)
        by = named_by(resource)
        value = self.id_of("organizations", text) if by == "organization_id" else text
        noun = resource.removesuffix("s")
        if by not in described.resource(resource).filters:
            raise CommandFailed(
                f"{text!r} is no id of a {noun}: `tollkeeper {section_of(resource)} list` has all."
            )
        within = {} if organization_id is None else {"organization_id": organization_id}
        rows = self.get(resource, **{by: value}, **within, limit=NAMESAKES_MAX)["items"]
        if not rows:
            near = get_close_matches(text, self._known_names(resource, by), 1)
            hint = f"did you mean {near[0]!r}?" if near else "give its whole name, or its id."
            raise CommandFailed(f"There is no {noun} named {text!r}; {hint}")
        if len(rows) > 1:
            ids = ", ".join(str(row["id"]) for row in rows)
            raise CommandFailed(
                f"There is more than one {noun} named {text!r}: give one of their ids, {ids}."
            )
        return int(rows[0]["id"])

    def _known_names(self, resource: str, by: str) -> list[str]:
        """Return the names of the first rows, to suggest one for a mistyped name."""
        with suppress(CommandFailed):
            return [str(row.get(by)) for row in self._iterate_rows(resource, NAMES_READ_MAX)]
        return []

    def names(self, resource: str, ids: Collection[int], rows_max: int = NAMES_READ_MAX) -> dict[int, str]:
        """Return the names of rows by id; ids beyond the first `rows_max` rows are left out."""
        names_by_id: dict[int, str] = {}
        rows: Iterable[Json] = self._iterate_rows(resource, rows_max if ids else 0)
        with suppress(CommandFailed):
            if len(ids) == 1:
                rows = [self.get(f"{resource}/{min(ids)}")]
            for row in rows:
                if row["id"] in ids:
                    names_by_id[row["id"]] = str(row.get(named_by(resource)) or "")
                if len(names_by_id) == len(ids):
                    break
        return names_by_id

    @property
    def shown(self) -> str:
        return without_password(self.url)

    def metrics(self) -> str:
        """Read the Prometheus metrics from the Admin API's port."""
        return self.download("/metrics").decode()

    def download(self, path: str, **query: object) -> bytes:
        """Read a document without parsing; a path that begins with / is not below the API's root."""
        status, raw = self._send("GET", _address_of(path, query), None, "*/*")
        assert status == 200
        return raw

    def _call(self, method: str, path: str, body: object) -> Json:
        status, raw = self._send(method, path, body, "application/json")
        try:
            answer: Json = read_json(raw) if raw else {}
        except ValueError as error:
            raise CommandFailed(f"{self.shown} does not answer as a Tollkeeper Admin API.") from error
        return {**answer, "_later": True} if status == 202 else answer

    def _send(self, method: str, path: str, body: object, accept: str) -> tuple[int, bytes]:
        """Send a request and return status and body; raise CommandFailed with the reason and what to do."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": accept}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid4())
        place = path if path.startswith("/") else f"/admin/v1/{path}"
        request = Request(f"{self.url}{place}", data, headers, method=method)  # noqa: S310  # checked scheme
        try:
            # Requests to this machine never go through a proxy.
            ways: list[BaseHandler] = (
                [ProxyHandler({})] if is_local(urlsplit(self.url).hostname or "") else []
            )
            ways += [HTTPSHandler(context=self.tls)] if self.tls is not None else []
            with build_opener(*ways).open(request, timeout=self.timeout_s) as response:
                return int(response.status), response.read()
        except HTTPError as error:
            raise CommandFailed(_refusal(error, path, self.called)) from error
        except (URLError, OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, SSLCertVerificationError):
                raise CommandFailed(
                    f"The certificate at {self.shown} is not trusted: {reason.verify_message}. "
                    "Set TOLLKEEPER_ADMIN_CA_FILE to the authority that signed it."
                ) from error
            raise CommandFailed(
                f"Nothing usable answers at {self.shown} ({reason}). Is it running? Start it with "
                "`tollkeeper up`, or set TOLLKEEPER_ADMIN_URL to where it is."
            ) from error


def find(environ: Mapping[str, str] = os.environ) -> AdminClient:
    """Return a client for the URL and token in `TOLLKEEPER_ADMIN_URL` and `TOLLKEEPER_ADMIN_TOKEN`.

    Without these variables, the files of a running `up` in the data directory have them.
    """
    from gateway.settings.secret_files import Environment  # `--help` needs no settings

    environ = Environment(environ)
    url, token = environ.get("TOLLKEEPER_ADMIN_URL"), environ.get("TOLLKEEPER_ADMIN_TOKEN")
    if not url or not token:
        noted = _noted_beside(environ)
        url, token = url or noted.get("admin_url"), token or noted.get("admin_token")
    if not url or not token:
        raise CommandFailed(
            "I do not know where the Admin API is. Run this next to the data directory of `tollkeeper up` "
            "(or set TOLLKEEPER_DATA_DIR), or set TOLLKEEPER_ADMIN_URL and TOLLKEEPER_ADMIN_TOKEN "
            "(or TOLLKEEPER_ADMIN_TOKEN_FILE)."
        )
    if urlsplit(url).scheme not in {"http", "https"}:
        shown = without_password(url)
        raise CommandFailed(f"TOLLKEEPER_ADMIN_URL must begin with http:// or https://, not {shown!r}.")
    if "@" in urlsplit(url).netloc:
        raise CommandFailed("TOLLKEEPER_ADMIN_URL has a user or password: set TOLLKEEPER_ADMIN_TOKEN alone.")
    return AdminClient(url.rstrip("/"), token, tls=_tls(url, environ))


def _tls(url: str, environ: Mapping[str, str]) -> SSLContext | None:
    """Return the TLS context for an `https` URL of the Admin API; None for `http`.

    The files for it are those that variables name, or else those of a running `up`.
    """
    if urlsplit(url).scheme != "https":
        return None
    named = [environ.get(f"TOLLKEEPER_ADMIN_{name}_FILE", "") for name in ("CA", "CERT", "KEY")]
    noted = {} if environ.get("TOLLKEEPER_ADMIN_URL") else _noted_beside(environ)
    if not named[0] and noted.get("admin_ca_file"):
        return pinned(TlsFiles(noted["admin_ca_file"], *named[1:]), "TOLLKEEPER_ADMIN_")
    return trusting(TlsFiles(*named), "TOLLKEEPER_ADMIN_")


def is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _noted_beside(environ: Mapping[str, str]) -> dict[str, str]:
    return _read_notes(Path(environ.get("TOLLKEEPER_DATA_DIR") or DATA_DIR) / "up.json")


def _read_notes(path: Path) -> dict[str, str]:
    """Return the texts of a JSON file by name; none if there is no file."""
    try:
        noted = read_json(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{path} cannot be read: {error}.") from error
    return {name: str(value) for name, value in noted.items()} if isinstance(noted, dict) else {}


# Advice for statuses whose answers contain none.
_HELP = {
    401: "Set TOLLKEEPER_ADMIN_TOKEN to a valid one; `up` has its own in its data directory (secrets.json).",
    403: "Set TOLLKEEPER_ADMIN_TOKEN to a token that may; `tollkeeper admin-token create` makes one.",
    429: "Wait a moment and try again.",
    503: "Ask /readyz at the same address, or `tollkeeper doctor`, what is away.",
}


def _refusal(error: HTTPError, path: str, called: Mapping[str, str]) -> str:
    """Return the API's refusal as text, with one line a field, and advice."""
    try:
        problem = read_json(error.read())
        fields = [
            f"  {_called(item['field'], called)}: {item['message'].replace(' in a string,', ',')}"
            for item in problem.get("errors", ())
        ]
        message = "\n".join([str(problem["detail"]), *fields])
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        message = f"The Admin API answered {error.code}."
    if error.code == 401:
        message = "The admin token is not accepted."
    elif error.code == 404 and (
        message == NotFound().message or message.startswith("The Admin API answered")
    ):
        resource, _, row = path.partition("?")[0].partition("/")
        message, section = f"{path.partition('?')[0]} was not found.", section_of(resource)
        number, _, part = row.partition("/")
        if number.isdecimal() and "/" not in part:
            message = f"There is no {section} {number}; `tollkeeper {section} list` shows all."
    return f"{message}\n{_HELP[error.code]}" if error.code in _HELP else message


def _called(name: str, called: Mapping[str, str]) -> str:
    """Return the command's option for a field `name`, or for the list that contains the field.

    Return the field's name if it has no option in `called`.
    """
    outer, _, place = name.partition(".")
    return called.get(name) or (called.get(outer, name) if place.isdecimal() else name)


def _address_of(path: str, query: Mapping[str, object]) -> str:
    sent = {name.rstrip("_"): value for name, value in query.items() if value is not None}
    return path + (f"?{urlencode(sent)}" if sent else "")
