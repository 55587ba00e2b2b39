"""Values of the chart that cannot be right: refused with the path of the value, and what would be right."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.deploy import helm

Values = dict[str, Any]
KEYED: Values = {"secrets": {"upstreams": "keys"}, "upstreamKeys": ["OPENAI_API_KEY"]}
CLAIM: Values = {"enabled": True, "claim": "c"}


def _config(reference: str) -> Values:
    return {"config": {"upstreams": {"openai": {"headers": {"authorization": f"Bearer {reference}"}}}}}


def _memory(part: str, **resources: Any) -> Values:
    return {part: {"resources": {kind: {"memory": amount} for kind, amount in resources.items()}}}


# By the sums: a worker takes 74 MiB, and by its settings 64 + 32 + 64 + 16 + 64 = 240, so 314; a log has 512 MiB.
MISTAKES: dict[str, tuple[Values, str, str]] = {
    "unknown part": ({"gatway": {}}, "gatway", "additional properties"),
    "unknown value": ({"gateway": {"replica": 2}}, "/gateway", "replica"),
    "seconds of nothing": ({"gateway": {"graceSeconds": 0}}, "/gateway/graceSeconds", "minimum"),
    "digest that is a tag": ({"image": {"digest": "latest"}}, "/image/digest", "sha256:"),
    "Secret without a name": ({"secrets": {"gateway": ""}}, "/secrets/gateway", "pattern"),
    "Secret with a capital": ({"secrets": {"keeper": "Keeper"}}, "/secrets/keeper", "pattern"),
    "clients that are nobody": ({"networkPolicy": {"clients": []}}, "/networkPolicy/clients", "minItems"),
    "no port of Redis": ({"networkPolicy": {"ports": {"redis": []}}}, "/networkPolicy/ports/redis", "minItems"),
    "port of nobody": ({"networkPolicy": {"ports": {"redis": [70000]}}}, "/networkPolicy/ports/redis", "65"),
    "secret as setting": ({"settings": {"REDIS_URL": "redis://x"}}, "settings.REDIS_URL", "Secret of secrets."),
    "prefix": ({"settings": {"TOLLKEEPER_LOG_LEVEL": "info"}}, "settings.TOLLKEEPER_LOG_LEVEL", "settings.LOG_LEVEL"),
    "lower case": ({"settings": {"log_level": "info"}}, "settings.log_level", "settings.LOG_LEVEL"),
    "setting misspelled": ({"settings": {"WORKER": 2}}, "settings.WORKER ", "WORKERS"),
    "setting of a file": ({"config": {"settings": {"worker": 2}}}, "config.settings.worker ", "WORKERS"),
    "capitals in a file": ({"config": {"settings": {"WORKERS": 2}}}, "config.settings.WORKERS", ".workers"),
    "port of the chart": ({"settings": {"OPS_PORT": 1}}, "settings.OPS_PORT", "leave it out"),
    "port in a file": ({"config": {"settings": {"gateway_port": 1}}}, "config.settings.gateway_port", "leave it out"),
    "value of the chart": ({"settings": {"SHUTDOWN_GRACE_S": 9}}, "settings.SHUTDOWN_GRACE_S", "say gateway.graceSeconds"),
    "certificate by path": ({"settings": {"TLS_KEY_FILE": "/x"}}, "settings.TLS_KEY_FILE", "say tls.gateway"),
    "word for a number": ({"settings": {"WORKERS": "two"}}, 'settings.WORKERS is "two"', "from 1 to 256"),
    "too many": ({"settings": {"WORKERS": 1000}}, 'settings.WORKERS is "1000"', "from 1 to 256"),
    "none": ({"settings": {"WORKERS": 0}}, 'settings.WORKERS is "0"', "from 1 to 256"),
    "unit": ({"settings": {"HOLD_TTL_S": "30s"}}, 'settings.HOLD_TTL_S is "30s"', "from 1 to 3600 seconds"),
    "unit of bytes": ({"settings": {"BODY_BYTES_MAX": "32Mi"}}, "settings.BODY_BYTES_MAX", "whole number"),
    "share above one": ({"config": {"settings": {"lease_fraction": 5}}}, "config.settings.lease_fraction", "0 to 1"),
    "nothing of what must be more": ({"settings": {"REDIS_WAIT_S": 0}}, "settings.REDIS_WAIT_S", "above 0"),
    "unknown choice": ({"settings": {"UNPRICED_MODELS": "deny"}}, "settings.UNPRICED_MODELS", "free, refuse"),
    "space": ({"settings": {"LOG_LEVEL": "info "}}, "settings.LOG_LEVEL", "space"),
    "address for a name": ({"image": {"repository": "https://registry.example/x"}}, "/image/repository", "pattern"),
    "address for a host": ({"ingress": {"hosts": ["https://a"]}}, "/ingress/hosts/0", "pattern"),
    "port that is not open": (
        {"config": {"upstreams": {"vllm": {"base_url": "http://vllm:8000"}}}}, "config.upstreams.vllm", "port 8000"
    ),
    "line break": ({"settings": {"UNPRICED_MODELS": "refuse\n"}}, "settings.UNPRICED_MODELS", "behind |-"),
    "list as setting": ({"settings": {"CORS_ORIGINS": ["a"]}}, "/settings/CORS_ORIGINS", "string"),
    "memory of one worker": (
        {"settings": {"WORKERS": "8"}} | _memory("gateway", limits="768Mi"),
        "gateway.resources.limits.memory is 768Mi", "2512Mi",
    ),
    "memory in bytes": (_memory("gateway", limits="512"), "gateway.resources.limits.memory is 512,", "314Mi"),
    "memory of nothing": (_memory("gateway", limits="64Mi"), "gateway.resources.limits.memory is 64Mi", "314Mi"),
    "memory of caches": (
        {"config": {"settings": {"cache_bytes_max": 1073741824}}} | _memory("gateway", limits="1Gi"),
        "gateway.resources.limits.memory is 1Gi", "1306Mi",
    ),
    "memory of a sidecar": (_memory("sidecar", limits="256Mi"), "sidecar.resources.limits.memory is 256Mi", "314Mi"),
    "memory of a keeper": (_memory("keeper", limits="128Mi", requests="1Mi"), "keeper.resources.limits.memory", "149Mi"),
    "megabytes": (_memory("gateway", limits="768MB"), "/gateway/resources/limits/memory", "pattern"),
    "request above its limit": (_memory("migrate", requests="1Gi"), "migrate.resources.requests.memory", "512Mi"),
    "cores above the limit": (
        {"keeper": {"resources": {"requests": {"cpu": "2500m"}}}}, "keeper.resources.requests.cpu", "limit of 2"
    ),
    "unknown resource": ({"gateway": {"resources": {"limits": {"mem": "1Gi"}}}}, "/gateway/resources/limits", "mem"),
    "volume below the log": ({"gateway": {"dataSize": "64Mi"}}, "gateway.dataSize is 64Mi", "536870912 bytes"),
    "volume of one worker": (
        {"settings": {"WORKERS": 4}, "gateway": {"dataSize": "1Gi"}}, "gateway.dataSize is 1Gi", "2147483648 bytes"
    ),
    "volume of no unit": ({"gateway": {"dataSize": "10GB"}}, "/gateway/dataSize", "pattern"),
    "more at least than at most": (
        {"gateway": {"autoscaling": {"min": 5, "max": 2}}}, "gateway.autoscaling.min is 5", "max, 2"
    ),
    "load that never comes": (
        {"gateway": {"autoscaling": {"cpu": "2"}}}, "gateway.autoscaling.cpu is 2", "limit of 2"
    ),
    "key that is not named": (_config("${OPENAI_API_KEY}"), "${OPENAI_API_KEY}", "upstreamKeys lacks it"),
    "another key": (KEYED | _config("${OPENAI_KEY}"), "${OPENAI_KEY}", "upstreamKeys lacks it"),
    "keys of no Secret": ({"upstreamKeys": ["OPENAI_API_KEY"]}, "secrets.upstreams", "name it"),
    "Secret of no keys": ({"secrets": {"upstreams": "keys"}}, "upstreamKeys", "name those"),
    "file of no Secret": ({"config": {"issuers": [{"ca_file": "/run/files/ca"}]}}, "config names a file", "secrets.files"),
    "variable of a keeper": ({"keeper": {"config": {"sign_in": {"x": "${OIDC}"}}}}, "keeper.config", "/run/files/<key>"),
    "key of a keeper": ({"keeper": {"keys": ["KEY_PEPPER"]}}, "/keeper/keys", "READONLY_TOKEN"),
    "clients of plain HTTP": ({"tls": {"gatewayClients": True}}, "tls.gatewayClients", "needs tls.gateway"),
    "exempt from no proxy": ({"proxy": {"exempt": ".svc"}}, "proxy.exempt", "proxy.secret"),
    "agents without keepers": (
        {"gateway": {"agents": True}, "keeper": {"enabled": False}}, "gateway.agents", "settings.AGENTS_KEEPER_URL"
    ),
    "Ingress without hosts": ({"ingress": {"enabled": True}}, "ingress.hosts", "llm.example.com"),
    "Ingress without gateways": (
        {"ingress": {"enabled": True, "hosts": ["a"]}, "gateway": {"enabled": False}}, "ingress.enabled", "gateway.enabled"
    ),
    "certificate of another host": (
        {"ingress": {"enabled": True, "hosts": ["a"], "tls": [{"hosts": ["b"]}]}}, "ingress.tls", "certificate for b"
    ),
    "annotation that is no text": ({"gateway": {"podAnnotations": {"a": 1}}}, "/gateway/podAnnotations/a", "string"),
    "backup that goes nowhere": ({"backup": {"enabled": True, "image": "x"}}, "backup.to or backup.claim", "s3://"),
    "backup to two places": ({"backup": CLAIM | {"image": "x", "to": "s3://b"}}, "backup.to and backup.claim", "take one"),
    "backup without programs": ({"backup": CLAIM}, "backup.image", "client programs"),
    "password in an address": ({"backup": {"to": "s3://id:key@b"}}, "/backup/to", "pattern"),
    "credentials of a volume": (
        {"backup": CLAIM | {"image": "x", "credentials": "k"}}, "backup.credentials", "leave one out"
    ),
    "archive that goes nowhere": ({"archive": {"enabled": True}}, "archive.to or archive.claim", "s3://"),
    "days before today": ({"archive": CLAIM | {"dropAfterDays": -1}}, "/archive/dropAfterDays", "minimum"),
}  # fmt: skip
# What Helm cannot know, and who says it.
RENDERED: dict[str, tuple[Values, str]] = {
    "Secret that is not there": ({"secrets": {"gateway": "no-such"}}, "the kubelet, in the pod's events"),
    "country of a seller": ({"settings": {"INVOICE_COUNTRY": "XX"}}, "the program at its start, by name"),
    "memory as a number": (
        {"gateway": {"resources": {"limits": {"memory": 805306368}}, "dataSize": 2147483648}}, "nobody: it is right"
    ),
    "setting that is left out": ({"settings": {"WORKERS": None}}, "nobody: it is right"),
    "local upstream": ({"config": {"upstreams": {"a": {"base_url": "http://127.0.0.1:8000"}}}}, "nobody: it is right"),
    "each day": ({"backup": {"schedule": "@daily"}}, "nobody: it is right"),
    "address of an upstream": ({"config": {"upstreams": {"a": {"base_url": "x"}}}}, "the program at its start, by path"),
    "key that nothing names": (KEYED, "nobody: the routes of an empty `config` name the usual keys"),
}  # fmt: skip


@cache
def _rendered() -> dict[str, list[dict[str, Any]] | str]:
    tables = [values for values, *_ in (*MISTAKES.values(), *RENDERED.values())]
    return dict(zip([*MISTAKES, *RENDERED], helm.rendered(*tables), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_in_values_is_refused_with_its_path(mistake: str) -> None:
    _, path, right = MISTAKES[mistake]
    refusal = _rendered()[mistake]
    assert isinstance(refusal, str)
    assert path in refusal
    assert right in refusal


@pytest.mark.parametrize("mistake", RENDERED)
def test_values_that_only_others_can_judge_are_rendered(mistake: str) -> None:
    assert not isinstance(_rendered()[mistake], str)


def test_refusal_names_all_mistakes() -> None:
    (refusal,) = helm.rendered(
        {"settings": {"WORKER": 2}, "gateway": {"dataSize": "1Mi"}, "ingress": {"enabled": True}}
    )
    assert isinstance(refusal, str)
    assert [
        path for path in ("settings.WORKER ", "gateway.dataSize", "ingress.hosts") if path not in refusal
    ] == []
