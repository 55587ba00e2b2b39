"""The routes of the console, on the admin port at `/`."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

from aiohttp import web

from gateway.admin.api import programs, reconciliation, usage
from gateway.admin.api.finance import mount_finance_files
from gateway.admin.console import lists, month_end, own_pages, raises, records, reports
from gateway.admin.console.forms import PageForm
from gateway.admin.console.home import (
    OVER_TLS,
    Assets,
    ConsoleShell,
    Pages,
    Posted,
    Sessions,
    SignedInPerson,
    Writing,
    read_form,
    see,
)
from gateway.admin.console.invoice_page import about_invoice
from gateway.admin.console.overview import Overview
from gateway.admin.console.records import Extras, Records, address_of
from gateway.admin.console.replay import budget_replay
from gateway.admin.console.reports import Live
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.console.sign_in import ProviderSignInPages, SignInPages, SignOutPages
from gateway.admin.console.statements import STATEMENTS, show_statement
from gateway.admin.http.callers import slow_down
from gateway.admin.http.guard import AS_PAGE, CSV, Files, files_of
from gateway.admin.http.requests import LIMIT_MAX, require_read
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.resource import Action, SubResource
from gateway.core.accounts.administration import CHANGE, CREATE, DELETE, Query, Row, refused_write
from gateway.core.alerts.messages import digest_of
from gateway.core.failures import Failures
from gateway.core.text import csv
from gateway.errors import NotFound, TollkeeperError, Unprocessable

# The page behind a link in a confirmation mail: may an organization have messages sent to this address?
#
# The link suffices, without a token. Opening it changes nothing, since mail servers open links too: only the
# button does.


_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_OVER = "This link is no longer good, or never was. An organization can have you asked again in a day."


class Consents:
    """The page behind a link in a mail, on which its recipient allows or ends further mails."""

    def __init__(self, desk: ConsoleShell, failures: Failures) -> None:
        self._desk, self._failures = desk, failures

    async def show(self, request: web.Request) -> web.StreamResponse:
        """`GET /mail/{token}`: the page that asks for consent to mail."""
        return await self._answer(request, given=None)

    async def say(self, request: web.Request) -> web.StreamResponse:
        """`POST /mail/{token}` with `consent`: "yes", or anything else to end mails."""
        try:
            posted = await read_form(request)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return await self._answer(request, given=posted.get("consent") == "yes")

    async def _answer(self, request: web.Request, *, given: bool | None) -> web.StreamResponse:
        store, token = self._desk.ports.store, request.match_info["token"]
        try:
            digest = digest_of(token) if _TOKEN.fullmatch(token) else ""
            if given is not None:
                await store.consent_to_mail(digest, given=given)
            asked = await store.mail_consent(digest)
            if asked is None and given is not False:
                await slow_down(self._failures, request, "unknown")
                raise NotFound(_OVER)
        except TollkeeperError as error:
            return self._desk.refused(request, None, error)
        return self._desk.answer(request, None, "consent.html", asked=asked)


# Running programs: their versions, and those too old for the stored data.


PROGRAMS_SHOWN_MAX = 500


async def show_programs(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.Response:
    require_read(desk.ports.actor, programs.PROGRAMS_REPORT)
    running_programs = await programs.running_programs(desk.ports)
    items = running_programs["items"]
    assert isinstance(items, list)
    shown = sorted(items, key=lambda item: item["refused"] is None)[:PROGRAMS_SHOWN_MAX]
    return desk.answer(
        request, signed, "programs.html", found=running_programs, items=shown, more=len(items) - len(shown),
        refused=sum(item["refused"] is not None for item in items),
    )  # fmt: skip


# Reconciliation: the last comparison of counters and ledger, and a new one on demand.


ITEMS_SHOWN_MAX = 500
# The pages that show accounts, by kind.
_PAGES = {
    "tenant": "tenants", "credits": "organizations", "spend": "organizations",
    "organization": "organizations", "budget": "budgets", "invoice": "invoices",
}  # fmt: skip


async def show_reconciliation(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson
) -> web.Response:
    report, actor = reconciliation.RECONCILIATION_REPORT, desk.ports.actor
    require_read(actor, report)
    may_run = refused_write(actor, report.name, report.access, reconciliation.RECONCILIATION_RUN) is None
    last = await reconciliation.last_reconciliation(desk.ports)
    items: Any = (last or {}).get("items", [])
    again = PageForm("/reconciliation", "Run now", "Run now", note="Compares every account.")
    repair = PageForm(
        "/reconciliation/repair", "Run and repair", "Run and repair", is_dangerous=True,
        note="Makes each drift good by an appended adjust or correction.",
    )  # fmt: skip
    return desk.answer(
        request,
        signed,
        "reconciliation.html",
        last=last,
        items=[{**item, "href": _address(item["account"])} for item in items[:ITEMS_SHOWN_MAX]],
        more=max(0, len(items) - ITEMS_SHOWN_MAX),
        forms=[again, repair] if may_run else [],
    )


async def run_reconciliation(
    desk: ConsoleShell, request: web.Request, signed: SignedInPerson, _posted: Posted, *, repair: bool
) -> web.Response:
    """`POST /reconciliation` and `/reconciliation/repair`: compare all accounts now."""
    await reconciliation.run_reconciliation(desk.ports, request, None, repair=repair)
    return see("/reconciliation?done=reconciled")


def _address(account: str) -> str:
    kind, _, number = account.partition(":")
    page = _PAGES.get(kind)
    return f"/{page}/{number}" if page and number.isdigit() else ""


# A list as a file: every row that matches the filters, streamed, up to a maximum.


ROWS_MAX = 100_000
COUNT_MS_MAX = 10_000


class Exports:
    """CSV files of all lists."""

    def __init__(self, files: Files, *, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._files = files

    async def file(
        self,
        desk: ConsoleShell,
        request: web.Request,
        signed: SignedInPerson,
        *,
        screen: Screen,
        **fixed: str,
    ) -> web.StreamResponse:
        """`GET /<resource>.csv`: columns are the Admin API's fields; `fixed` overrides query filters."""
        named = await lists.ids_of_names(desk, request.query, lists.targets_of(screen))
        fixed |= {name: str(row_id) for name, row_id in named.items() if name not in fixed}
        query = lists.read(screen, request, LIMIT_MAX, fixed)
        pieces = self._pieces(desk, screen, query)
        return await self._files.answer(request, signed.actor, f"{screen.name}.csv", CSV, pieces)

    async def _pieces(self, desk: ConsoleShell, screen: Screen, query: Query) -> AsyncGenerator[bytes, None]:
        operations, columns = desk.operations[screen.name], tuple(screen.resource.out.model_fields)
        count = await operations.count(query, self._rows_max, COUNT_MS_MAX)
        if count is None or count > self._rows_max:
            reason = f"let more than {self._rows_max:,} rows through: narrow them"
            if count is None:
                reason = "let so much through that counting it takes too long: narrow them"
            raise Unprocessable("This list is too long for a file.", (("filters", reason),))
        yield csv(columns, (), head=True)
        async for rows in operations.every(query):
            yield csv(columns, map(_flat, rows))


def _flat(row: Row) -> Row:
    """Return a row with its objects and lists as JSON texts."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in row.items()
    }


# Functions for pages that show more than a row's fields.
EXTRAS: dict[str, Extras] = {
    "tenants": records.about_tenant,
    "organizations": records.about_organization,
    "api-keys": records.about_key,
    "users": records.about_user,
    "calls": records.about_call,
    "invoices": about_invoice,
    "budgets": records.about_budget,
    "raise-requests": raises.about_raise,
}
# Paths for programs: errors there are problems in JSON, not pages.
PROGRAMS = ("/admin", "/livez", "/readyz", "/metrics", "/static")


def mount_console(app: web.Application, ports: AdminPorts) -> None:
    assets = Assets()
    sessions = Sessions(ports)
    desk = ConsoleShell(ports, Pages(assets, version=ports.version), sessions)
    router = app.router
    router.add_get("/static/{mark}/{name}", assets.serve)

    signing = SignInPages(desk, ports.failures)
    router.add_get("/sign-in", signing.show)
    router.add_post("/sign-in", signing.sign_in)
    leaving = SignOutPages(desk)
    router.add_post("/sign-out", leaving.sign_out)
    consents = Consents(desk, ports.failures)
    router.add_get("/mail/{token}", consents.show)
    router.add_post("/mail/{token}", consents.say)

    _mount_sign_ins(app, desk, signing, leaving)
    live = Live(ports.snapshot, time.time)
    overview = Overview(ports, live, time.monotonic)
    router.add_get("/", desk.reading(own_pages.or_home(overview.show), by_key=True))
    router.add_get("/me", desk.reading(own_pages.show_me, by_key=True))
    uuid = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    router.add_get(f"/me/calls/{{request_id:{uuid}}}", desk.reading(own_pages.show_call, by_key=True))
    router.add_get("/team", desk.reading(own_pages.show_team))
    router.add_get("/account", desk.reading(own_pages.show_account))
    router.add_post("/account/credits", desk.asking(own_pages.buy))
    router.add_post("/me/keys/{id:[0-9]+}/rotate", desk.asking(own_pages.rotate, by_key=True))
    router.add_post("/me/budgets/{id:[0-9]+}/ask", desk.asking(own_pages.ask, by_key=True))
    router.add_get("/health", desk.reading(overview.health))
    router.add_get("/live", desk.reading(overview.fragment))
    router.add_get("/spend", desk.reading(overview.spend))
    router.add_get("/waiting", desk.reading(overview.waiting))
    router.add_get("/live/history", desk.reading(overview.history))
    app.cleanup_ctx.append(partial(_sampling, live))

    router.add_get("/usage", desk.reading(reports.show_explorer))
    router.add_get("/search", desk.reading(lists.show_search))
    router.add_post("/search", desk.asking(lists.ask_search))
    # Serve each report's page.
    for statement in STATEMENTS:
        app.router.add_get(f"/{statement.name}", desk.reading(partial(show_statement, statement=statement)))
    router.add_get("/programs", desk.reading(show_programs))
    router.add_get("/reconciliation", desk.reading(show_reconciliation))
    for address, repair in (("/reconciliation", False), ("/reconciliation/repair", True)):
        run = desk.writing(
            partial(run_reconciliation, repair=repair),
            reconciliation.RECONCILIATION_REPORT,
            reconciliation.RECONCILIATION_RUN,
        )
        router.add_post(address, run)
    router.add_get("/find/{resource}", desk.reading(lists.find))

    async def signed_in(_: AdminPorts, request: web.Request) -> AdminPorts:
        return ports.of((await sessions.signed_in(request)).actor)

    router.add_get("/tenants/{id:[0-9]+}/quota", desk.reading(records.quota))
    router.add_post("/budgets/replay", desk.writing(budget_replay, SCREENS["budgets"].resource, CREATE))
    router.add_get("/budgets/meaning", desk.reading(records.budget_meaning))
    router.add_get("/budgets/{id:[0-9]+}/use", desk.reading(records.budget_use))
    for mount in ports.files:
        mount(app, ports, "", signed_in)
    usage.mount_invoices(app, ports, "", signed_in)
    usage.mount_files(app, ports, "", signed_in)
    mount_finance_files(app, ports, "", signed_in)
    files = Exports(files_of(app, ports.request_timeout_s))

    async def ledger(desk: ConsoleShell, request: web.Request, signed: SignedInPerson) -> web.StreamResponse:
        tenant_id = request.match_info["id"]
        return await files.file(desk, request, signed, screen=records.LEDGER, tenant_id=tenant_id)

    router.add_get("/tenants/{id:[0-9]+}/ledger.csv", desk.reading(ledger))
    router.add_get("/invoices/month", desk.reading(month_end.show_month))
    router.add_post("/invoices/month", desk.writing(month_end.invoice_month, month_end.INVOICES, CREATE))
    for screen in SCREENS.values():
        _mount_screen(app, desk, screen)
        router.add_get(f"/{screen.name}.csv", desk.reading(partial(files.file, screen=screen)))
    app[AS_PAGE] = lambda request, response: _error_page(desk, request, response)


def _mount_sign_ins(
    app: web.Application, desk: ConsoleShell, signing: SignInPages, leaving: SignOutPages
) -> None:
    """Register the routes of sign-in by identity providers, if any are configured."""
    ports, router = desk.ports, app.router
    if ports.sign_ins is None:
        return
    app[OVER_TLS] = ports.sign_ins.console_url.startswith("https:")
    elsewhere = ProviderSignInPages(desk, ports.sign_ins, ports.failures, signing.door)
    way_in, out = (f"/{way}/{{provider:[a-z0-9-]+}}" for way in ("sign-in", "sign-out"))
    router.add_get(way_in, elsewhere.leave, allow_head=False)
    router.add_get(f"{way_in}/back", elsewhere.come_back, allow_head=False)
    router.add_get(f"{out}/back", leaving.come_back, allow_head=False)


def _mount_screen(app: web.Application, desk: ConsoleShell, screen: Screen) -> None:
    router, resource = app.router, screen.resource
    collection, row_path = f"/{screen.name}", f"/{screen.name}/{{id:[0-9]+}}"

    def of(desk: ConsoleShell) -> Records:
        return Records(desk, screen, EXTRAS.get(screen.name))

    async def act(
        desk: ConsoleShell, request: web.Request, signed: SignedInPerson, posted: Posted, *, action: Action,
        part: SubResource | None = None,
    ) -> web.StreamResponse:  # fmt: skip
        return await of(desk).act(request, signed, posted, action=action, part=part)

    def writing(address: str, page: Writing, verb: str) -> None:
        router.add_post(address, desk.writing(page, resource, verb))

    router.add_get(collection, desk.reading(partial(lists.show, screen=screen)))
    if resource.create is not None:
        router.add_get(f"{collection}/new", desk.reading(lambda desk, *sent: of(desk).new(*sent)))
        writing(collection, lambda desk, *sent: of(desk).create(*sent), CREATE)
    if screen.has_page:
        router.add_get(row_path, desk.reading(lambda desk, *sent: of(desk).show(*sent)))
    if resource.patch is not None:
        writing(f"{row_path}/{CHANGE}", lambda desk, *sent: of(desk).change(*sent), resource.patch_verb)
    if resource.deletable:
        writing(f"{row_path}/{DELETE}", lambda desk, *sent: of(desk).delete(*sent), DELETE)
    for action in resource.actions:
        writing(f"{row_path}/{address_of(action)}", partial(act, action=action), action.name)
    for part in resource.parts:
        for _, action in part.writes:
            writing(f"{row_path}/{action.name}", partial(act, action=action, part=part), action.name)


def _error_page(desk: ConsoleShell, request: web.Request, response: web.Response) -> web.Response | None:
    """Return the page that shows `response`, the API's error answer; None if a program sent the request."""
    if request.path.startswith(PROGRAMS) or "text/html" not in request.headers.get("Accept", ""):
        return None
    problem = json.loads(response.text or "{}")
    errors = [(error["field"], error["message"]) for error in problem.get("errors", ())]
    page = desk.answer(
        request, None, "error.html", response.status, message=problem["detail"], errors=errors,
        reason=problem["type"].rpartition(":")[2], code=response.status,
    )  # fmt: skip
    for name in ("Allow", "Retry-After"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page


async def _sampling(live: Live, _: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(live.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
