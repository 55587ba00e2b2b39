"""The console's routes, on the admin port at `/`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.admin.api import reconciliation, usage_files
from gateway.admin.console import (
    accounts,
    budgets,
    calls,
    explorer,
    invoices,
    lists,
    programs,
    reconciling,
    search,
    statements,
)
from gateway.admin.console.desk import Desk, Posted, Writing
from gateway.admin.console.exports import Exports
from gateway.admin.console.live import Live
from gateway.admin.console.mail import Consents
from gateway.admin.console.overview import Overview
from gateway.admin.console.records import Extras, Records, address_of
from gateway.admin.console.render import Assets, Pages
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.console.sessions import OVER_TLS, Sessions, Signed
from gateway.admin.console.signing import Signing
from gateway.admin.console.signing_elsewhere import SigningElsewhere
from gateway.admin.console.signing_out import SigningOut
from gateway.admin.http.files import files_of
from gateway.admin.invoices import documents
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import Action
from gateway.core.accounts.roles import CHANGE, CREATE, DELETE

# Pages that show more than a row's fields.
EXTRAS: dict[str, Extras] = {
    "tenants": accounts.about_tenant,
    "organizations": accounts.about_organization,
    "api-keys": accounts.about_key,
    "users": accounts.about_user,
    "calls": calls.about_call,
    "invoices": invoices.about_invoice,
    "budgets": budgets.about_budget,
}
# Addresses of programs: what is not there is a problem, not a page.
PROGRAMS = ("/admin", "/livez", "/readyz", "/metrics", "/static")


def mount_console(app: web.Application, ports: AdminPorts) -> None:
    """Serve the console."""
    assets = Assets()
    sessions = Sessions(ports)
    desk = Desk(ports, Pages(assets, version=ports.version), sessions)
    router = app.router
    router.add_get("/static/{mark}/{name}", assets.serve)

    signing = Signing(desk, ports.failures)
    router.add_get("/sign-in", signing.show)
    router.add_post("/sign-in", signing.sign_in)
    leaving = SigningOut(desk)
    router.add_post("/sign-out", leaving.sign_out)
    consents = Consents(desk, ports.failures)
    router.add_get("/mail/{token}", consents.show)
    router.add_post("/mail/{token}", consents.say)

    _mount_sign_ins(app, desk, signing, leaving)
    live = Live(ports.snapshot, time.time)
    overview = Overview(ports, live, time.monotonic)
    router.add_get("/", desk.reading(overview.show))
    router.add_get("/live", desk.reading(overview.fragment))
    router.add_get("/spend", desk.reading(overview.spend))
    router.add_get("/live/history", desk.reading(overview.history))
    app.cleanup_ctx.append(partial(_sampling, live))

    router.add_get("/usage", desk.reading(explorer.show))
    router.add_get("/search", desk.reading(search.show))
    router.add_post("/search", desk.asking(search.ask))
    statements.mount_statements(app, desk)
    router.add_get("/programs", desk.reading(programs.show))
    router.add_get("/reconciliation", desk.reading(reconciling.show))
    for address, repair in (("/reconciliation", False), ("/reconciliation/repair", True)):
        run = desk.writing(partial(reconciling.run, repair=repair), reconciliation.REPORT, reconciliation.RUN)
        router.add_post(address, run)
    router.add_get("/find/{resource}", desk.reading(lists.find))

    async def signed_in(_: AdminPorts, request: web.Request) -> AdminPorts:
        return ports.of((await sessions.signed_in(request)).actor)

    router.add_get("/tenants/{id:[0-9]+}/quota", desk.reading(accounts.quota))
    router.add_get("/budgets/{id:[0-9]+}/use", desk.reading(budgets.use))
    documents.mount_invoices(app, ports, "", signed_in)
    usage_files.mount_files(app, ports, "", signed_in)
    files = Exports(files_of(app, ports.request_timeout_s))

    async def ledger(desk: Desk, request: web.Request, signed: Signed) -> web.StreamResponse:
        tenant_id = request.match_info["id"]
        return await files.file(desk, request, signed, screen=accounts.LEDGER, tenant_id=tenant_id)

    router.add_get("/tenants/{id:[0-9]+}/ledger.csv", desk.reading(ledger))
    for screen in SCREENS.values():
        _mount_screen(app, desk, screen)
        router.add_get(f"/{screen.name}.csv", desk.reading(partial(files.file, screen=screen)))
    app.middlewares.append(_not_found_as_page(desk))


def _mount_sign_ins(app: web.Application, desk: Desk, signing: Signing, leaving: SigningOut) -> None:
    """Let people in by providers of identities, where there are any."""
    ports, router = desk.ports, app.router
    if ports.sign_ins is None:
        return
    app[OVER_TLS] = ports.sign_ins.console_url.startswith("https:")
    elsewhere = SigningElsewhere(desk, ports.sign_ins, ports.failures, signing.door)
    one, out = (f"/{way}/{{provider:[a-z0-9-]+}}" for way in ("sign-in", "sign-out"))
    router.add_get(one, elsewhere.leave, allow_head=False)
    router.add_get(f"{one}/back", elsewhere.come_back, allow_head=False)
    router.add_get(f"{out}/back", leaving.come_back, allow_head=False)


def _mount_screen(app: web.Application, desk: Desk, screen: Screen) -> None:
    router, resource = app.router, screen.resource
    collection, one = f"/{screen.name}", f"/{screen.name}/{{id:[0-9]+}}"

    def of(desk: Desk) -> Records:
        return Records(desk, screen, EXTRAS.get(screen.name))

    async def act(
        desk: Desk, request: web.Request, signed: Signed, posted: Posted, *, action: Action
    ) -> web.StreamResponse:
        return await of(desk).act(request, signed, posted, action=action)

    def writing(address: str, page: Writing, verb: str) -> None:
        router.add_post(address, desk.writing(page, resource, verb))

    router.add_get(collection, desk.reading(partial(lists.show, screen=screen)))
    if resource.create is not None:
        router.add_get(f"{collection}/new", desk.reading(lambda desk, *sent: of(desk).new(*sent)))
        writing(collection, lambda desk, *sent: of(desk).create(*sent), CREATE)
    if screen.has_page:
        router.add_get(one, desk.reading(lambda desk, *sent: of(desk).show(*sent)))
    if resource.patch is not None:
        writing(f"{one}/{CHANGE}", lambda desk, *sent: of(desk).change(*sent), resource.patch_verb)
    if resource.deletable:
        writing(f"{one}/{DELETE}", lambda desk, *sent: of(desk).delete(*sent), DELETE)
    for action in resource.actions:
        writing(f"{one}/{address_of(action)}", partial(act, action=action), action.name)


def _not_found_as_page(desk: Desk) -> Middleware:
    @web.middleware
    async def found(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            if request.path.startswith(PROGRAMS) or "text/html" not in request.headers.get("Accept", ""):
                raise
            return desk.answer(
                request, None, "error.html", 404, message="There is nothing at this address.", errors=(),
                reason="not_found", code=404,
            )  # fmt: skip

    return found


async def _sampling(live: Live, _: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(live.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
