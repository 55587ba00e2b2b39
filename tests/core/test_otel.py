"""The standard OTEL_* variables: what they mean, and what stops the start."""

from __future__ import annotations

import pytest

from gateway.core import otel
from gateway.errors import SettingError
from gateway.settings import settings

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}


def read(**more: str) -> otel.Tracing:
    tracing = otel.read_tracing(ON | more)
    assert tracing is not None
    return tracing


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "nonsense"},
        ON | {"OTEL_SDK_DISABLED": "true"},
        ON | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_an_endpoint_or_turned_off_there_are_none(environ: dict[str, str]) -> None:
    assert otel.read_tracing(environ) is None


def test_defaults_are_the_standards() -> None:
    tracing = read()
    assert tracing.endpoint == "http://collector:4318/v1/traces"
    assert dict(tracing.resource) == {"service.name": "tollkeeper"}
    assert (tracing.follows_parent, tracing.ratio) == (True, 1.0)
    assert (tracing.queue_spans_max, tracing.batch_spans_max, tracing.delay_s, tracing.timeout_s) == (
        2048,
        512,
        5,
        10,
    )


def test_what_is_said_of_traces_wins() -> None:
    tracing = read(
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="https://there/exactly?here=1",
        OTEL_EXPORTER_OTLP_HEADERS="a=1",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="api-key=s%20e%2Cc, x-team = a=b",
        OTEL_EXPORTER_OTLP_TIMEOUT="250",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_CERTIFICATE="/etc/ca.pem",
        OTEL_BSP_MAX_QUEUE_SIZE="100",
        OTEL_BSP_SCHEDULE_DELAY="1000",
    )
    assert tracing.endpoint == "https://there/exactly?here=1"
    assert tracing.headers == (("api-key", "s e,c"), ("x-team", "a=b"))
    assert (tracing.timeout_s, tracing.gzip, tracing.ca_file) == (0.25, True, "/etc/ca.pem")
    assert (tracing.queue_spans_max, tracing.batch_spans_max, tracing.delay_s) == (100, 100, 1.0)


def test_a_service_has_its_name_and_attributes() -> None:
    attributes = "service.name=attribute,deployment.environment.name=pr%C3%B6d"
    assert dict(read(OTEL_RESOURCE_ATTRIBUTES=attributes).resource)["service.name"] == "attribute"
    named = dict(read(OTEL_RESOURCE_ATTRIBUTES=attributes, OTEL_SERVICE_NAME="variable").resource)
    assert named == {"service.name": "variable", "deployment.environment.name": "pröd"}


@pytest.mark.parametrize(("sampler", "expected"), [
    ("always_on", (False, 1.0)), ("always_off", (False, 0.0)), ("traceidratio", (False, 0.1)),
    ("parentbased_always_on", (True, 1.0)), ("parentbased_always_off", (True, 0.0)),
    ("parentbased_traceidratio", (True, 0.1)),
])  # fmt: skip
def test_every_standard_sampler(sampler: str, expected: tuple[bool, float]) -> None:
    tracing = read(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG="0.1")
    assert (tracing.follows_parent, tracing.ratio) == expected


@pytest.mark.parametrize(("name", "value"), [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:secret@collector"),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:none"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "a=secret%0d%0ab: c"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
    ("OTEL_RESOURCE_ATTRIBUTES", "=secret"),
    ("OTEL_TRACES_EXPORTER", "zipkin"),
    ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
])  # fmt: skip
def test_what_cannot_be_honoured_stops_the_start_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=name) as caught:
        otel.read_tracing(ON | {name: value})
    assert "secret" not in caught.value.message


def test_a_ratio_is_one() -> None:
    with pytest.raises(SettingError, match="OTEL_TRACES_SAMPLER_ARG"):
        read(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="2")


def test_workers_get_them_with_their_settings() -> None:
    resolved = settings.load(ON | {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"})
    assert settings.from_json(settings.to_json(resolved)).tracing == resolved.tracing
    assert resolved.tracing is not None
    assert resolved.tracing.headers == (("api-key", "secret"),)
