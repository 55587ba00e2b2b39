"""Builds the application of the admin port.

The steps of a request: guard, authentication, body, one write, one push, one answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import cache, partial

from aiohttp import web

from gateway.admin.api import (
    activity,
    configuration,
    events,
    explanations,
    finance,
    letters,
    programs,
    quotes,
    reconciliation,
    usage,
)
from gateway.admin.api.openapi import document, mount_docs, render
from gateway.admin.api.views import ResourceHandlers, answer
from gateway.admin.console.console import mount_console
from gateway.admin.http.callers import HOURS, PLACES, admit
from gateway.admin.http.guard import count_tasks, guard
from gateway.admin.http.work_slots import WorkSlots
from gateway.admin.ports import AdminPorts, Health
from gateway.admin.replay import mount_replay
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.core.accounts.hourly_budget import Hours
from gateway.core.processes import report

ROOT = "/admin/v1"
# The id of a row, without an ending: 7.csv is another address, with methods of its own.
ROW = "[^/.]+"


def build(ports: AdminPorts) -> web.Application:
    """Return the application of the admin port: Admin API, its documents, console, health and metrics."""
    larger = {f"{ROOT}/configuration": configuration.CONFIGURATION_BYTES_MAX}
    guarded = guard(
        request_timeout_s=ports.request_timeout_s,
        failures=ports.failures,
        answers=ports.answers,
        larger=larger,
    )
    app = web.Application(middlewares=[guarded], client_max_size=ports.body_bytes_max)
    app[PLACES], app[HOURS] = WorkSlots(ports.room), Hours(ports.budget, time.time)
    app.on_startup.append(_count_tasks)
    for files in ports.files:
        files(app, ports, ROOT, admit)
    quotes.mount_quotes(app, ports, ROOT)
    explanations.mount_explanations(app, ports, ROOT)
    mount_replay(app, ports, ROOT)
    events.mount_events(app, ports, ROOT)
    activity.mount_activity(app, ports, ROOT)
    programs.mount_programs(app, ports, ROOT)
    usage.mount_usage(app, ports, ROOT)
    usage.mount_files(app, ports, ROOT)
    usage.mount_invoices(app, ports, ROOT)
    finance.mount_finance(app, ports, ROOT)
    letters.mount_letters(app, ports, ROOT)
    reconciliation.mount_reconciliation(app, ports, ROOT)
    configuration.mount_configuration(app, ports, ROOT)
    for mount in ports.routes:
        mount(app, ports, ROOT)
    for resource in RESOURCES.values():
        views = ResourceHandlers(ports, resource)
        collection, row_path = f"{ROOT}/{resource.name}", f"{ROOT}/{resource.name}/{{id:{ROW}}}"
        app.router.add_get(collection, views.list)
        if resource.create is not None:
            app.router.add_post(collection, views.create)
        app.router.add_get(row_path, views.show)
        if resource.patch is not None:
            app.router.add_patch(row_path, views.change)
        if resource.deletable:
            app.router.add_delete(row_path, views.delete)
        for part in resource.parts:
            if part.out is not None:
                app.router.add_get(f"{row_path}/{part.name}", partial(views.part, part=part))
            for method, action in part.writes:
                place = f"{row_path}/{part.name}/{{{part.key}:[^/]+}}"
                app.router.add_route(method, place, partial(views.write_part, part=part, action=action))
        for action in resource.actions:
            app.router.add_post(f"{row_path}/{action.name}", partial(views.act, action=action))
    _mount_documents(app, ports)
    mount_console(app, ports)
    _mount_operations(app, ports)
    return app


async def _count_tasks(_: web.Application) -> None:
    count_tasks(asyncio.get_running_loop())


def _mount_documents(app: web.Application, ports: AdminPorts) -> None:
    async def openapi(_: web.Request) -> web.Response:  # anybody may ask, so it is made once
        written, _page = _documents(ports.version)
        return web.Response(body=written, content_type="application/json", charset="utf-8")

    app.router.add_get(f"{ROOT}/openapi.json", openapi)
    mount_docs(app, lambda: _documents(ports.version)[1])


@cache
def _documents(version: str) -> tuple[bytes, str]:
    """Return the OpenAPI document and its page, made once for each process on the first request.

    Making them at the start would add a quarter to its time.
    """
    described = document(RESOURCES, REPORTS, version=version)
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode(), render(described)


def _mount_operations(app: web.Application, ports: AdminPorts) -> None:
    async def health(_: web.Request, probe: Health) -> web.Response:
        well, dependencies = await probe()
        return answer(200 if well else 503, report(well, dependencies))

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = await ports.metrics(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    app.router.add_get("/livez", partial(health, probe=ports.live))
    app.router.add_get("/readyz", partial(health, probe=ports.ready))
    app.router.add_get("/metrics", metrics)
