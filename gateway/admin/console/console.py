"""The console's routes, on the admin port at `/`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from gateway.admin.api import usage_files
from gateway.admin.console import accounts, budgets, calls, explorer, lists, reconciling, search
from gateway.admin.console.desk import Desk
from gateway.admin.console.exports import Exports
from gateway.admin.console.live import Live
from gateway.admin.console.overview import Overview
from gateway.admin.console.records import CHANGE, DELETE, Extras, Records, address_of
from gateway.admin.console.render import Assets, Pages
from gateway.admin.console.screens import SCREENS, Screen
from gateway.admin.console.sessions import Sessions, Signed
from gateway.admin.console.signing import Signing
from gateway.admin.invoices import documents
from gateway.admin.ports import AdminPorts

# Pages that show more than a row's fields.
EXTRAS: dict[str, Extras] = {
    "tenants": accounts.about_tenant,
    "organizations": accounts.about_organization,
    "api-keys": accounts.about_key,
    "users": accounts.about_user,
    "calls": calls.about_call,
    "invoices": accounts.about_invoice,
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
    router.add_post("/sign-out", signing.sign_out)

    live = Live(ports.snapshot, time.time)
    overview = Overview(desk, live, time.monotonic)
    router.add_get("/", desk.reading(overview.show))
    router.add_get("/live", desk.reading(overview.fragment))
    router.add_get("/spend", desk.reading(overview.spend))
    router.add_get("/live/history", desk.reading(overview.history))
    app.cleanup_ctx.append(partial(_sampling, live))

    router.add_get("/usage", desk.reading(partial(explorer.show, desk)))
    router.add_get("/search", desk.reading(partial(search.show, desk)))
    router.add_post("/search", desk.asking(partial(search.ask, desk)))
    router.add_get("/reconciliation", desk.reading(partial(reconciling.show, desk)))
    for address, repair in (("/reconciliation", False), ("/reconciliation/repair", True)):
        router.add_post(address, desk.writing(partial(reconciling.run, desk, repair=repair)))
    router.add_get("/find/{resource}", desk.reading(partial(lists.find, desk)))

    async def signed_in(_: AdminPorts, request: web.Request) -> object:
        return await sessions.signed_in(request)

    router.add_get("/tenants/{id:[0-9]+}/quota", desk.reading(partial(accounts.quota, desk)))
    router.add_get("/budgets/{id:[0-9]+}/use", desk.reading(partial(budgets.use, desk)))
    documents.mount_invoices(app, ports, "", signed_in)
    usage_files.mount_files(app, ports, "", signed_in)
    files = Exports(desk)

    async def ledger(request: web.Request, signed: Signed) -> web.StreamResponse:
        return await files.file(accounts.LEDGER, request, signed, tenant_id=request.match_info["id"])

    router.add_get("/tenants/{id:[0-9]+}/ledger.csv", desk.reading(ledger))
    for screen in SCREENS.values():
        _mount_screen(app, desk, screen)
        router.add_get(f"/{screen.name}.csv", desk.reading(partial(files.file, screen)))
    app.middlewares.append(_not_found_as_page(desk))


def _mount_screen(app: web.Application, desk: Desk, screen: Screen) -> None:
    router, resource = app.router, screen.resource
    collection, one = f"/{screen.name}", f"/{screen.name}/{{id:[0-9]+}}"
    records = Records(desk, screen, EXTRAS.get(screen.name))
    router.add_get(collection, desk.reading(partial(lists.show, desk, screen)))
    if resource.create is not None:
        router.add_get(f"{collection}/new", desk.reading(records.new))
        router.add_post(collection, desk.writing(records.create))
    if screen.has_page:
        router.add_get(one, desk.reading(records.show))
    if resource.patch is not None:
        router.add_post(f"{one}/{CHANGE}", desk.writing(records.change))
    if resource.deletable:
        router.add_post(f"{one}/{DELETE}", desk.writing(records.delete))
    for action in resource.actions:
        act = partial(records.act, action=action)
        router.add_post(f"{one}/{address_of(action)}", desk.writing(act))


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
