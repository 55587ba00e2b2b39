"""The OpenAPI document against what it describes: requests made from it, good and bad, by schemathesis.

What the document allows is done, or refused for something no schema can say: those refusals are listed here.
What it does not allow is refused. Whatever is answered is as the document has it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import requests
import schemathesis
from hypothesis import Phase, given, settings
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import TypeAdapter, ValidationError
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.schemas import APIOperation

from gateway.admin.api.openapi import BODIES, body_of, document
from gateway.admin.http.bodies import KEY_PARAMETER, check_body
from gateway.admin.resources.catalogue import Pictures
from gateway.admin.resources.events import CloudEvent
from gateway.admin.resources.registry import REPORTS, RESOURCES
from gateway.admin.resources.values import BASE64, ContactIn, EndpointId, In, PathPattern
from tests.admin import two_organizations
from tests.admin.conftest import ADMIN, Api
from tests.search import histories

Json = dict[str, Any]

# What a request that its schema allows is refused for all the same, each said with its field.
NO_SCHEMA_SAYS = re.compile(
    # what is there, whose it is, and what has happened
    r"there is (no|one key) |name another time|is the id of no call|of another organization|is no tenant"
    r"|no organization's money|is not a (next_)?cursor|is left (to pay|of)|more decimals than|there is none"
    r"|is the key of no service|is more than one tenant|a month that is archived|too much|named twice"
    # times, against the clock and each other
    r"|must be in the (future|years)|not be in the future|must be after|within \d+ days|not be more than \d+ "
    r"|before the first call|later than now|ended on \d|outside the years"
    r"|must be (up to \d+ months |at most \d+ days )?before"
    # several fields together
    r"|is required, but for|required, unless|required: a member|must move something|must (say|name a price)"
    r"|where the (unit|interval|window) is|must rise|must be another one than|where the rate is zero"
    r"|of a rate above zero|why nothing is taxed|belongs to"
    r"|must be a decimal in a string|below the budget's own|must ascend|needs objects|name cached or"
    r"|belong together|never resets|each target once|pattern once|an interval that ends|from 5m to 366d"
    # text that nobody could read or no call could name; what somebody else names
    r"|1 to 200 characters"
    r"|control|printable|blank|one line|IANA|cannot be read|pairs such as|model's name|without \*|ASCII"
    r"|lower case|once, with commas"
    # kinds of objects of a configuration, and what of them is known
    r"|known are |did you mean"
    # as the settings say, or an invoice that does not say enough to be electronic
    r"|must begin with https|public host|private address|is not a URL|is required \((BR|PEPPOL)|name a host"
    r"|must be mailto|Peppol"
    r"|letters of a country"
    # 1.0 is an integer to JSON Schema, and here it is not; patterns cannot say a decimal's least or most
    r"|a valid integer|must be above 0|must be at most \d|must be from \"\d"
)


@pytest.fixture(scope="module")
def described() -> Json:
    return document(RESOURCES, REPORTS, version="1")


async def test_random_requests_made_from_the_openapi_document_are_answered_as_documented(
    api: Api, described: Json
) -> None:
    world = await two_organizations.make(api)
    rows = {name: world.bravos.get(name) or world.shared.get(name, 1) for name in RESOURCES}
    wrong = await asyncio.to_thread(lambda: list(_tried(described, str(api.client.make_url("")), rows)))
    assert not wrong, "\n".join(wrong)


@dataclass(frozen=True, slots=True)
class _Sender:
    """Sends what is made of one operation."""

    operation: APIOperation[Any, Any, Any, Any]
    session: requests.Session
    known: dict[str, int] | None

    def wrong(self, mode: GenerationMode) -> list[str]:
        """What is wrong with the answers to some requests of a kind."""
        found: list[str] = []

        @settings(max_examples=histories(2), phases=[Phase.generate])
        @given(case=self.operation.as_strategy(mode, path_parameters=self.known))
        def send(case: Any) -> None:
            response = case.call(session=self.session)
            try:
                case.validate_response(response)
            except FailureGroup as failures:
                found.extend(
                    f"{case.method} {case.formatted_path} {case.query} {case.body}: {each.title},"
                    f" {each.message}: {response.status_code} {response.text}"
                    for each in failures.exceptions
                    if not (isinstance(each, RejectedPositiveData) and _no_schema_says(response.text))
                )

        with suppress(Unsatisfiable):  # nothing can be wrong with it
            send()
        return found


def _tried(described: Json, url: str, rows: Mapping[str, int]) -> Iterator[str]:
    """What is wrong with answers to requests that are made from a document, rows being deleted at last."""
    # Who may what is in test_roles.py; here everybody is an admin.
    schema = schemathesis.openapi.from_dict(
        {name: each for name, each in described.items() if name != "security"}
    )
    schema.config.update(base_url=url)
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {ADMIN}"
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        assert len(operations) == sum(
            len(each.keys() - {"parameters"}) for each in described["paths"].values()
        )
        for operation in sorted(operations, key=lambda each: each.method == "delete"):
            assert operation.tags is not None
            known = {"id": rows[operation.tags[0]]} if "{id}" in operation.path else None
            for mode in GenerationMode:
                yield from _Sender(operation, session, known).wrong(mode)


def _no_schema_says(told: str) -> bool:
    errors = json.loads(told).get("errors", [])
    return bool(errors) and all(NO_SCHEMA_SAYS.search(each["message"]) for each in errors)


def test_the_openapi_document_is_valid(described: Json) -> None:
    OpenAPIV31SpecValidator(described).validate()


def test_openapi_document_declares_the_items_of_every_array(described: Json) -> None:
    def lists(part: Any) -> Iterator[Json]:
        if isinstance(part, dict):
            if part.get("type") == "array":
                yield part
            part = list(part.values())
        for inner in part if isinstance(part, list) else ():
            yield from lists(inner)

    assert all("items" in each for each in lists(described))


def test_openapi_document_describes_the_message_of_an_event(described: Json) -> None:
    post = described["webhooks"]["api_key.expiring"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert body["type"] == {"const": "api_key.expiring"}
    assert body["data"]["properties"] == {
        "organization_id": {"type": "integer"},
        "api_key_id": {"type": "integer"},
        "name": {"type": "string"},
        "prefix": {"type": "string"},
        "tenant": {"type": "string"},
        "expires_at": {"type": "string", "format": "date-time"},
        "days": {"type": "integer"},
    }
    sudden = described["webhooks"]["usage.sudden"]["post"]["description"]
    assert sudden == (
        "An hour of an organization, a tenant or a key costs many times the usual. Once: an hour each."
    )


def test_openapi_example_of_each_request_body_is_accepted_by_the_api() -> None:
    bodies: list[type[In] | None] = []
    for resource in RESOURCES.values():
        bodies += [resource.create, resource.patch, *(action.body for action in resource.actions)]
        bodies += [action.body for part in resource.parts for _, action in part.writes]
        bodies.append(resource.batch.body if resource.batch is not None else None)
        bodies += [question.asked for question in resource.questions if question.verb]
    bodies += [report.run.body for report in REPORTS.values() if report.run is not None]
    models = {model.__name__: model for model in bodies if model is not None}
    feature_values = {name for name, model in models.items() if ".features." in model.__module__}
    assert models.keys() - feature_values == BODIES.keys()
    for name, model in models.items():
        check_body(model, dict(body_of(name, {name: model.model_json_schema()})))


def test_openapi_document_has_a_description_and_examples_for_each_operation(described: Json) -> None:
    without = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if method == "parameters":
                continue
            sent = operation.get("requestBody", {}).get("content", {}).values()
            answered = [
                content
                for status in operation["responses"].values()
                for media, content in status.get("content", {}).items()
                if media == "application/json"
            ]
            if not operation["description"] or not all("example" in each for each in [*sent, *answered]):
                without.append(f"{method} {path}")
    assert without == []


async def test_patch_request_without_a_body_is_refused_and_an_empty_patch_changes_no_field(api: Api) -> None:
    made = await api.make("organizations", name="one")
    nothing = await api.call("PATCH", f"organizations/{made['id']}")
    assert (nothing.status, nothing.json["detail"]) == (
        400,
        "The body must be a JSON object that names the fields to change.",
    )
    assert (await api.patch(f"organizations/{made['id']}", {})).json == made


async def test_patch_request_setting_a_field_to_null_never_causes_a_server_error(api: Api) -> None:
    world = await two_organizations.make(api)
    for resource in RESOURCES.values():
        if resource.patch is None:
            continue
        row = world.bravos.get(resource.name) or world.shared[resource.name]
        for name in resource.patch.model_fields:
            answer = await api.patch(f"{resource.name}/{row}", {name: None})
            assert answer.status in {200, 409, 422}, (resource.name, name, answer.raw)
    key = await api.patch(f"api-keys/{world.bravos['api-keys']}", {"name": None})
    assert [each["field"] for each in key.json["errors"]] == ["name"]


async def test_csv_document_of_an_invoice_allows_only_get_and_head(api: Api) -> None:
    refused = await api.call("DELETE", "invoices/1.csv")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert (await api.call("DELETE", "organizations/1.csv")).status == 404


@pytest.mark.parametrize("asked", ["reports/revenue?from=1985-05", "usage?from=1985-05-01T00:00:00Z"])
async def test_report_over_a_too_long_time_span_is_422_for_a_reason_no_schema_can_express(
    api: Api, asked: str
) -> None:
    refused = await api.get(asked)
    assert refused.status == 422
    assert _no_schema_says(json.dumps(refused.json))


@pytest.mark.parametrize(
    ("key", "taken"), [("k", True), ("a b", True), ("", False), (" k", False), ("\xe9", False)]
)
def test_openapi_schema_of_the_idempotency_key_accepts_exactly_the_valid_keys(key: str, taken: bool) -> None:
    assert Draft202012Validator(KEY_PARAMETER["schema"]).is_valid(key) is taken


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (
            PathPattern,
            "/ /v1/* /v1/*/send/ /a.b/...c /%41%3b /a%5d",
            "v1 /v1?x /v1;x /½ /%2x /a//b /./a /a/.. /%2E%2e /%5c /%00 /%7f /v1/sms* /v1/** /" + "x" * 256,
        ),
        (EndpointId, "0088:1 ab@cd.de", "088:1 a@cd.de .b@cd.de ab@cd. ab@c\x04d.de ab@cd\ufeff.de"),
        (Annotated[str, BASE64], "YQ== YWI= YWJj ab+/", "YQ= YQ YWJ YWI== ==== a-_b YQ==YQ== YWJj=="),
        (ContactIn, "+4930-1 1,2,3", "12 no a1b2c"),
        (CloudEvent, "traceparent 1 " + "a" * 20, "A x-y data_base64 ½ " + "a" * 21),
        (Pictures, "1024x1024/high", "1024x1024 a/b/c /a a/ a//b"),
    ],
)
def test_openapi_schemas_of_texts_and_names_accept_exactly_the_values_the_api_accepts(
    kind: Any, right: str, wrong: str
) -> None:
    described, read = Draft202012Validator(TypeAdapter(kind).json_schema()), TypeAdapter(kind)
    for text in [*right.split(), *wrong.split()]:
        event = BODIES["CloudEvent"] | {text: "1"}
        value = {Pictures: {text: "1"}, ContactIn: {"phone": text}, CloudEvent: event}.get(kind, text)
        is_right = text in right.split()
        assert described.is_valid(value) is is_right
        with nullcontext() if is_right else pytest.raises(ValidationError):
            read.validate_python(value)


async def test_overlong_request_head_is_refused_as_the_openapi_document_describes(
    api: Api, described: Json
) -> None:
    async with api.client.get(f"/admin/v1/prices/quote?tools[{'n' * 9_000}]=1") as refused:
        answers = described["paths"]["/admin/v1/prices/quote"]["get"]["responses"]
        assert answers["400"]["$ref"].endswith("/400")
        assert (refused.status, refused.content_type) == (400, "text/plain")
    assert "text/plain" in described["components"]["responses"]["400"]["content"]


async def test_bulk_dead_letter_decision_refuses_the_same_fields_as_the_openapi_schema(
    api: Api, described: Json
) -> None:
    schema = described["components"]["schemas"]["LettersDecide"] | {"components": described["components"]}
    for what, wrong in {"dead_letters": {"kind": "conflict"}, "quarantine": {"partition": 1}}.items():
        for more in ({}, wrong):
            asked = {"what": what, "reason": "r", **more}
            assert Draft202012Validator(schema).is_valid(asked) is (not more)
            assert (await api.post("letters", asked)).status == (422 if more else 200)


async def test_overlong_idempotency_key_is_refused_on_a_configuration_plan_too(api: Api) -> None:
    plan: Json = {"objects": {}}
    refused = await api.post("configuration", plan, key="k" * 300)
    assert refused.status == 400
    assert (await api.post("configuration", plan, key="k")).status == 200


async def test_activity_report_refuses_unknown_and_repeated_parameters(api: Api) -> None:
    refused = await api.get("activity?windows=60&limit=5&limit=6")
    assert refused.status == 422
    assert {each["field"]: each["message"] for each in refused.json["errors"]} == {
        "windows": "unknown parameter",
        "limit": "given twice",
    }
