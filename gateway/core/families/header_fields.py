"""Kinds of header fields of requests by name: who gets them, and what the gateway reads them for.

Hop-by-hop fields (RFC 9110, 7.6.1), credentials, forwarding fields and `x-tollkeeper-*` are not forwarded. An
upstream gets what clients of its API send, and what its configuration names. Pure: no line, no route.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.core.families.registry import ALL
from gateway.core.traces import FIELD as TRACE_FIELD

# Browsers can send a key only in the protocols of a WebSocket, after one of these prefixes.
PROTOCOLS_FIELD: Final = b"sec-websocket-protocol"
KEY_PROTOCOLS: Final = tuple(api.key_protocol for api in ALL if api.key_protocol)
CREDENTIAL_FIELDS = frozenset(name for api in ALL for name in api.credentials) | {PROTOCOLS_FIELD}
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
OURS_PREFIX = b"x-tollkeeper-"
ENDED_PREFIXES: Final = (OURS_PREFIX, b"x-forwarded-")  # of fields that end at the gateway
# Fields by which clients name the session of a call; they are forwarded.
_ANY_CALL = tuple(api.names_session for api in ALL if api.names_session)
# Belongs to no API: opencode sends it to every API with models. Other clients may use it for a secret.
_CALL_OF_MODEL = b"x-session-id"
SESSION_FIELDS = {
    api.name: tuple(filter(None, (api.own_session, *_ANY_CALL, _CALL_OF_MODEL if api.models_at else b"")))
    for api in ALL
}
SESSIONS = frozenset(name for names in SESSION_FIELDS.values() for name in names)
# W3C baggage: members that clients' tools attach to each call, perhaps a run.
BAGGAGE_FIELD = b"baggage"

READ_AND_PASSED = frozenset(
    {b"content-type", b"content-encoding", b"accept-encoding", TRACE_FIELD, BAGGAGE_FIELD, *SESSIONS}
).union(*((api.spoken_by, api.session_field, *api.said_twice) for api in ALL)) - {b""}
# The parser takes Proxy-Connection for Connection, so it decides which refusal a head has.
READ = CREDENTIAL_FIELDS | frozenset(
    b"connection proxy-connection transfer-encoding upgrade host content-length expect "
    b"sec-websocket-key sec-websocket-version".split()
)
ENDED = HOP_BY_HOP | frozenset(
    b"x-request-id forwarded x-real-ip x-client-ip client-ip true-client-ip cf-connecting-ip "
    b"x-cluster-client-ip x-original-url x-rewrite-url x-http-method-override x-original-host via "
    b"sec-websocket-extensions".split()
)
# An underscore must not smuggle in a second spelling of a name that decides something.
CONTROLLED = (
    READ
    | ENDED
    | frozenset({b"content-type", b"content-encoding"}).union(
        *((api.session_field, *api.said_twice) for api in ALL)
    )
)

UNITS_FIELD = OURS_PREFIX + b"units"
OVERRIDES = frozenset(
    {b"x-http-method", b"x-http-method-override", b"x-method-override", b"http-method-override"}
)
# Type and digests of a body: no longer true once the gateway has rewritten the body.
OF_BODIES = frozenset(b"content-type content-encoding content-md5 digest content-digest repr-digest".split())
# Fields that ask for a part of an answer, or another form.
_OF_ANSWERS = frozenset(
    b"range if-range if-match if-none-match if-modified-since if-unmodified-since prefer a-im want-digest "
    b"want-content-digest".split()
)
WITHHELD = OVERRIDES | OF_BODIES | _OF_ANSWERS
# Prefixes of fields that set system parameters, or choose which of the operator's accounts pays.
_WITHHELD_PREFIXES = (
    *(prefix for api in ALL for prefix in api.withheld_prefixes),
    # Gateways in front of a provider choose another model, cache or credential by these.
    b"x-litellm-", b"x-portkey-", b"cf-aig-", b"helicone-", b"ocp-apim-",
    # Inference gateways read priority and owner of a call from these.
    b"x-gateway-inference-", b"x-llm-d-inference-",
    # An inference router bills another account by this.
    b"x-hf-bill-to",
)  # fmt: skip
# Timeouts for the services behind the gateway: they would have read the input, and not be paid.
_GIVES_UP = re.compile(rb"(?!x-stainless-).*(?:timeout|deadline|stream-duration)")
_PASSED = frozenset(api.spoken_by for api in ALL)
WITHHELD_SOMEWHERE = WITHHELD.union(*(api.withheld for api in ALL))
_REFUSED_PREFIXES = tuple(prefix for api in ALL for prefix in api.refused_prefixes)
# Fields of tracers, retries and proxies: the value differs in nearly every request.
VARYING = frozenset(
    b"traceparent tracestate baggage b3 x-b3-traceid x-b3-spanid x-b3-parentspanid sentry-trace "
    b"uber-trace-id x-amzn-trace-id x-cloud-trace-context x-datadog-trace-id x-datadog-parent-id "
    b"x-datadog-tags x-request-id x-client-request-id x-correlation-id idempotency-key x-idempotency-key "
    b"x-envoy-attempt-start-time x-request-start x-queue-start cf-ray x-amz-cf-id x-vercel-id "
    b"fly-request-id content-length date".split()
)

# Fields that HTTP libraries, browsers, tracers, and clients of several APIs (opencode, cline, Copilot) send.
_USUAL = VARYING.union(
    SESSIONS, OF_BODIES, _OF_ANSWERS,
    b"accept accept-charset accept-encoding accept-language cache-control content-language dnt origin pragma "
    b"referer sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site "
    b"sec-fetch-user sec-gpc user-agent x-requested-with sec-websocket-protocol "
    b"x-b3-sampled x-b3-flags x-datadog-origin x-datadog-sampling-priority newrelic elastic-apm-traceparent "
    b"http-referer x-title x-initiator x-interaction-id x-interaction-type x-session-affinity "
    b"copilot-integration-id editor-version editor-plugin-version openai-intent x-github-api-version".split(),
    # Stainless' SDKs of vendors: for Python of November 2026, and for Java and Kotlin.
    [
        b"x-stainless-" + name
        for name in b"arch async custom-event-handler custom-poll-interval helper helper-method kotlin-version "
        b"lang os os-version package-version poll-helper raw-response read-timeout retry-count runtime "
        b"runtime-version stream-helper timeout".split()
    ],
)  # fmt: skip
# Fields by which SDKs that Fern generates tell of themselves.
_USUAL_PREFIXES = (b"x-fern-",)

# Fields by which servers and proxies choose a service tier, a deployment, a model or another account:
# docs.cloud.google.com/vertex-ai/generative-ai/docs/priority-paygo (read 2026-11-30),
# learn.microsoft.com/azure/machine-learning/how-to-use-batch-model-deployments and
# …/azure/ai-foundry/model-inference/reference, gateway-api-inference-extension.sigs.k8s.io,
# docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html,
# docs.litellm.ai/docs/tutorials/vertex_ai_pay_go (`x-pass-` before any name).
_CHOOSING = (
    b"x-vertex-ai-llm-", b"azureml-", b"extra-parameters", b"x-ms-oai-", b"x-gateway-model-name",
    b"x-gateway-destination-endpoint", b"x-ai-eg-", b"x-amzn-sagemaker-", b"x-pass-",
    b"chatgpt-account-id", b"x-databricks-org-id",
    # Codex says by this whether its call may search the web, which is priced.
    b"x-oai-web-search-eligible",
)  # fmt: skip
# Names that say so themselves, such as `x-service-tier` and `x-target-model`; `sec-ch-ua-model` is a device.
_CHOOSES = re.compile(rb"(?!sec-)(?:.*-)?(?:service-tier|model)|x-route")


def is_choosing(plain: bytes) -> bool:
    """Return whether an upstream gets a header field only if its configuration names it.

    `plain` is the field's name in lower case, with hyphens.
    """
    return plain.startswith(_CHOOSING) or _CHOOSES.fullmatch(plain) is not None


def is_usual(lower: bytes) -> bool:
    """Return whether clients of every API send a header field with this lower-case name."""
    return lower in _USUAL or lower.startswith(_USUAL_PREFIXES)


def is_ended(lower: bytes) -> bool:
    """Return whether a header field with this lower-case name ends at the gateway, on every route."""
    return lower in READ or lower in ENDED or lower.startswith(ENDED_PREFIXES)


def may_pass(name: str) -> bool:
    """Return whether an upstream may get the header field `name`, if its configuration names it."""
    lower = name.lower().encode()
    return not is_ended(lower) and not is_withheld(lower, WITHHELD_SOMEWHERE)


def is_refused(plain: bytes) -> bool:
    """Return whether a call of an API with models may not have a field of this name, as `is_choosing` has it."""
    return plain.startswith(_REFUSED_PREFIXES) and plain not in WITHHELD_SOMEWHERE


def is_withheld(plain: bytes, names: frozenset[bytes]) -> bool:
    """Return whether a header field is not forwarded, on any route or on a route that withholds `names`.

    `plain` is the field's name in lower case.
    """
    return plain not in _PASSED and (
        plain in names or plain.startswith(_WITHHELD_PREFIXES) or _GIVES_UP.match(plain) is not None
    )
