"""Lago and OpenMeter on a socket of this machine: what they take, what they refuse, and what they have then.

Their rules are those of getlago/lago-api (`Events::CreateBatchService`: at most 100 events, all or none, 422
by position, `value_already_exist` for what is there) and openmeterio/openmeter (`ingestdriver`: 204, 400 for
what is no event, once by `id` and `source`). `fail` says how a request fails instead, before or after it was
done.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

TOKEN = "token-of-the-tests-only"  # of the tests only
CODE = "tollkeeper_use"
LAGO_EVENTS_MAX = 100
Properties = dict[str, str]


@dataclass
class Failure:
    """How a request fails; `after`: once all of it was done."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    body: str = "a failure of the test"


@dataclass
class Billing:
    """Everything one of them has: events by their names. `requests` counts what was asked."""

    lago: bool
    url: str = ""
    events: dict[str, Properties] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    repeated: int = 0
    # Names, or a part of them, that are refused.
    poison: set[str] = field(default_factory=set)
    fail: Callable[[int], Failure | None] = lambda _number: None

    @property
    def requests(self) -> int:
        return len(self.sizes)

    def total(self, name: str) -> Decimal:
        """What a property of all events adds up to."""
        return sum((Decimal(each[name]) for each in self.events.values()), Decimal(0))

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"status": 401, "error": "Unauthorized"}, status=401)
        wanted = "application/json" if self.lago else "application/cloudevents-batch+json"
        assert request.headers["Content-Type"] == wanted
        assert request.path in {"/api/v1/events/batch" if self.lago else "/api/v1/events", "/hook"}
        sent = json.loads(await request.read())
        batch = sent["events"] if self.lago else sent
        self.sizes.append(len(batch))
        failure = self.fail(self.requests)
        if failure is not None and not failure.after:
            return web.Response(status=failure.status, headers=failure.headers, text=failure.body)
        answer = self._lago(batch) if self.lago else self._openmeter(batch)
        if failure is not None:
            return web.Response(status=failure.status, headers=failure.headers, text=failure.body)
        return answer

    def _lago(self, batch: list[dict[str, Any]]) -> web.Response:
        if len(batch) > LAGO_EVENTS_MAX:
            return _unprocessable({"events": ["too_many_events"]})
        errors: dict[str, Any] = {}
        for at, event in enumerate(batch):
            assert event.keys() == {
                "transaction_id", "external_subscription_id", "code", "timestamp", "properties",
            }  # fmt: skip
            assert event["code"] == CODE
            float(event["timestamp"])
            if self._is_poison(event["transaction_id"]):
                errors[str(at)] = {"code": ["metric_not_found"]}
            elif event["transaction_id"] in self.events:
                self.repeated += 1
                errors[str(at)] = {"transaction_id": ["value_already_exist"]}
        if errors:
            return _unprocessable(errors)
        for event in batch:
            self._keep(
                event["transaction_id"], event["external_subscription_id"], float(event["timestamp"]),
                event["properties"],
            )  # fmt: skip
        return web.json_response({"events": [{"lago_id": event["transaction_id"]} for event in batch]})

    def _openmeter(self, batch: list[dict[str, Any]]) -> web.Response:
        for event in batch:
            assert event.keys() == {
                "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data",
            }  # fmt: skip
            assert (event["specversion"], event["source"], event["type"]) == ("1.0", "tollkeeper", CODE)
        if any(self._is_poison(event["id"]) for event in batch):
            problem = {
                "type": "about:blank",
                "title": "Bad Request",
                "status": 400,
                "detail": "invalid event",
            }
            return web.json_response(problem, status=400, content_type="application/problem+json")
        for event in batch:
            if event["id"] in self.events:
                self.repeated += 1
            else:
                at = datetime.fromisoformat(event["time"]).timestamp()
                self._keep(event["id"], event["subject"], at, event["data"])
        return web.Response(status=204)

    def _is_poison(self, name: str) -> bool:
        return any(each in name for each in self.poison)

    def _keep(self, name: str, subject: str, at: float, properties: Properties) -> None:
        assert all(isinstance(value, str) for value in properties.values())
        self.events[name], self.subjects[name], self.times[name] = properties, subject, at


def _unprocessable(details: dict[str, Any]) -> web.Response:
    said = {
        "status": 422, "error": "Unprocessable Entity", "code": "validation_errors", "error_details": details,
    }  # fmt: skip
    return web.json_response(said, status=422)


@asynccontextmanager
async def billing_server(*, lago: bool) -> AsyncIterator[Billing]:
    """One of them, for the time of a test."""
    billing = Billing(lago)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", billing.answer)
    async with TestServer(application) as server:
        billing.url = str(server.make_url("")).rstrip("/")
        yield billing
