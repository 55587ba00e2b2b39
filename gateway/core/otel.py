"""Settings of traces from the standard `OTEL_*` variables, read once by the process that a person starts.

Source: OpenTelemetry's specification of environment variables and of the OTLP exporter. They count only if an
endpoint is set; then an unsupported value stops the start, like any other wrong setting. Headers are
credentials and never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from gateway.errors import SettingError

TRACES_PATH = "/v1/traces"
ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SERVICE = "tollkeeper"
# Name of a sampler: whether it follows the caller's decision, and what it does without one.
SAMPLERS = {
    "always_on": (False, 1.0),
    "always_off": (False, 0.0),
    "traceidratio": (False, None),
    "parentbased_always_on": (True, 1.0),
    "parentbased_always_off": (True, 0.0),
    "parentbased_traceidratio": (True, None),
}


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of traces: the collector, the resource they belong to, and the sampled share.

    `ratio` of the traces is recorded; with `follows_parent` only of those without a caller's trace. Spans
    wait in a queue of at most `queue_spans_max`. `timeout_s` limits one batch including retries.
    """

    endpoint: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    gzip: bool = False
    ca_file: str = ""
    client_certificate: str = ""
    client_key: str = ""
    resource: tuple[tuple[str, str], ...] = (("service.name", SERVICE),)
    follows_parent: bool = True
    ratio: float = 1.0
    queue_spans_max: int = 2_048
    batch_spans_max: int = 512
    delay_s: float = 5.0


def read_tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Return the settings of traces; None without an endpoint, or if they are turned off.

    Raise `SettingError` with the variable whose value is not supported.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    endpoint = environ.get(TRACES_ENDPOINT) or environ.get(ENDPOINT)
    if not endpoint or exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    _choice("OTEL_TRACES_EXPORTER", exporter, "otlp", "none")
    _choice(*_traces_first(environ, "PROTOCOL"), "http/protobuf")
    follows, ratio = _sampler(environ)
    queue = round(_read_number(environ, "OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1, 1_000_000))
    batch = round(_read_number(environ, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, 100_000))
    return Tracing(
        endpoint=_endpoint(environ),
        headers=_pairs(*_traces_first(environ, "HEADERS"), fields=True),
        timeout_s=_read_number(environ, _traces_first(environ, "TIMEOUT")[0], 10_000, 1, 600_000) / 1000,
        gzip=_choice(*_traces_first(environ, "COMPRESSION"), "gzip", "none") == "gzip",
        ca_file=_traces_first(environ, "CERTIFICATE")[1],
        client_certificate=_traces_first(environ, "CLIENT_CERTIFICATE")[1],
        client_key=_traces_first(environ, "CLIENT_KEY")[1],
        resource=_resource(environ),
        follows_parent=follows,
        ratio=ratio,
        queue_spans_max=queue,
        batch_spans_max=min(batch, queue),
        delay_s=_read_number(environ, "OTEL_BSP_SCHEDULE_DELAY", 5_000, 1, 600_000) / 1000,
    )


def _endpoint(environ: Mapping[str, str]) -> str:
    """Return the full URL to which traces are sent, from the variable for traces, used unchanged.

    Without it, the path for traces is added to the URL in the general variable.
    """
    name = TRACES_ENDPOINT if environ.get(TRACES_ENDPOINT) else ENDPOINT
    url = environ[name]
    parts = urlsplit(url)
    try:
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or parts.fragment:
        raise SettingError(f"{name} is not valid: expected a URL such as http://collector:4318")
    return url if name == TRACES_ENDPOINT else url.rstrip("/") + TRACES_PATH


def _traces_first(environ: Mapping[str, str], setting: str) -> tuple[str, str]:
    """Return the name and value of an exporter's variable; the one for traces takes precedence."""
    for name in (f"OTEL_EXPORTER_OTLP_TRACES_{setting}", f"OTEL_EXPORTER_OTLP_{setting}"):
        if environ.get(name):
            return name, environ[name]
    return f"OTEL_EXPORTER_OTLP_{setting}", ""


def _choice(name: str, value: str, *choices: str) -> str:
    if value and value not in choices:
        raise _invalid(name, value, " or ".join(choices))
    return value


def _sampler(environ: Mapping[str, str]) -> tuple[bool, float]:
    name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    if name not in SAMPLERS:
        raise _invalid("OTEL_TRACES_SAMPLER", name, "one of " + ", ".join(SAMPLERS))
    follows, ratio = SAMPLERS[name]
    return follows, _read_number(environ, "OTEL_TRACES_SAMPLER_ARG", 1, 0, 1) if ratio is None else ratio


def _resource(environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    attributes = dict(_pairs("OTEL_RESOURCE_ATTRIBUTES", environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    attributes = {"service.name": SERVICE, **attributes}
    if environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = environ["OTEL_SERVICE_NAME"]
    return tuple(attributes.items())


def _pairs(name: str, text: str, *, fields: bool = False) -> tuple[tuple[str, str], ...]:
    """Parse `key=value,key=value`, percent-decoded (W3C Baggage); with `fields` only ASCII is allowed."""
    pairs = []
    for part in filter(None, (part_.strip() for part_ in text.split(","))):
        key, equals, value = part.partition("=")
        key, value = unquote(key.strip()), unquote(value.strip())
        is_field = (key + value).isprintable() and (not fields or (key + value).isascii())
        if not key or not equals or not is_field:
            raise SettingError(f"{name} is not valid: expected name=value pairs with commas between")
        pairs.append((key, value))
    return tuple(pairs)


def _read_number(environ: Mapping[str, str], name: str, otherwise: float, least: float, most: float) -> float:
    """Return the number in a variable, or `otherwise` without one; raise if it is out of bounds."""
    text = environ.get(name)
    if not text:
        return otherwise
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        raise _invalid(name, text, f"a number from {least:g} to {most:g}")
    return number


def _invalid(name: str, value: str, wanted: str) -> SettingError:
    return SettingError(f"{name}={value[:100]!r} is not valid: expected {wanted}")
