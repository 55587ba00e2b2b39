"""Values of the chart that cannot be right: refused with the path of the value, and what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache, reduce
from typing import Any

import pytest
import yaml

from gateway.settings.config_file import ConfigFile, default_table
from gateway.settings.settings import Settings
from tests.deploy import helm
from tests.deploy.test_chart import SIDECAR

Values = dict[str, Any]
DIGEST = "sha256:" + "0" * 64
KEYED: Values = {"secrets": {"upstreams": "keys"}, "upstreamKeys": ["OPENAI_API_KEY"]}
CLAIM: Values = {"enabled": True, "claim": "c"}


def _config(reference: str) -> Values:
    return {"config": {"upstreams": {"openai": {"headers": {"authorization": f"Bearer {reference}"}}}}}


def _at(base_url: str, upstream: Values | None = None, **others: Any) -> Values:
    return {"config": {"upstreams": {"a": {"base_url": base_url} | (upstream or {})}, **others}}


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
    "tag beside a digest": ({"image": {"tag": "1.1.0", "digest": DIGEST}}, "image.tag is 1.1.0", "image.digest"),
    "tag of gateways beside a digest": (
        {"gateway": {"tag": "0.1.0", "digest": DIGEST}}, "gateway.tag is 0.1.0", "gateway.digest"
    ),
    "tag of a sidecar beside a digest": (
        {"sidecar": {"tag": "0.1.0", "digest": DIGEST}}, "sidecar.tag is 0.1.0", "sidecar.digest"
    ),
    "gateways before keepers": (
        {"image": {"tag": "1.9.0"}, "gateway": {"tag": "1.10.0"}}, "gateway.tag is 1.10.0", "keepers' 1.9.0"
    ),
    "sidecar before keepers": (
        {"keeper": {"tag": "1.0.0"}, "sidecar": {"tag": "v1.1.0"}}, "sidecar.tag is v1.1.0", "keepers' 1.0.0"
    ),
    "keepers behind the image": (
        {"image": {"tag": "1.1.0"}, "keeper": {"tag": "1.0.0"}}, "image.tag is 1.1.0", "keepers' 1.0.0"
    ),
    "grace of a moment": ({"gateway": {"graceSeconds": 5}}, "/gateway/graceSeconds", "minimum: got 5, want 18"),
    "moment of a sidecar": ({"sidecar": {"graceSeconds": 5}}, "/sidecar/graceSeconds", "minimum: got 5, want 18"),
    "grace by a sidecar's setting": (
        {"sidecar": {"settings": {"SHUTDOWN_GRACE_S": 30}}}, "sidecar.settings.SHUTDOWN_GRACE_S", "say sidecar.graceSeconds"
    ),
    "setting of keepers": (
        {"sidecar": {"settings": {"INVOICE_DUE_DAYS": 9}}}, "sidecar.settings.INVOICE_DUE_DAYS", "say settings."
    ),
    "setting of a sidecar misspelled": ({"sidecar": {"settings": {"WORKER": 2}}}, "sidecar.settings.WORKER ", "WORKERS"),
    "setting of a keeper's file": (
        {"keeper": {"config": {"settings": {"flush_interval": 1}}}}, "keeper.config.settings.flush_interval ", "FLUSH_"
    ),
    "memory of a sidecar's workers": (
        {"sidecar": {"settings": {"WORKERS": 3}, "resources": {"limits": {"memory": "768Mi"}}}},
        "sidecar.resources.limits.memory is 768Mi, and 3 worker(s)", "942Mi",
    ),
    "setting as a key": (
        KEYED | {"upstreamKeys": ["TOLLKEEPER_UNPRICED_MODELS"]}, "upstreamKeys has TOLLKEEPER_UNPRICED_MODELS",
        "say settings.UNPRICED_MODELS",
    ),
    "variable without braces": (_config("$OPENAI_API_KEY"), "config names $OPENAI_API_KEY", "${OPENAI_API_KEY}"),
    "variable in round braces": (_config("$(OPENAI_API_KEY)"), "config names $OPENAI_API_KEY", "$$ for a dollar"),
    "variable of a keeper without braces": (
        {"keeper": {"config": {"sign_in": {"x": "$OIDC"}}}}, "keeper.config names $OIDC", "${OIDC}"
    ),
    "version in an address": (
        {"config": {"upstreams": {"openai": {"base_url": "https://api.openai.com/v1"}}}},
        "config.upstreams.openai.base_url ends in /v1", "https://api.openai.com/v1/v1/…: leave /v1 out",
    ),
    "version in an address of an API": (
        _at("https://g.example/v1beta/", {"family": "gemini"}), "config.upstreams.a.base_url", "leave /v1beta out"
    ),
    "version in an address of models": (
        _at("https://g.example/x/v1", models=[{"name": "m", "targets": [{"upstream": "a"}]}]),
        "config.upstreams.a.base_url", "leave /v1 out",
    ),
    "address that ends as a route begins": (
        _at("http://a.example:443/v2", routes=[{"path": "/v2/chat", "upstream": "a"}]),
        "config.upstreams.a.base_url", "leave /v2 out",
    ),
    "address that ends as a service begins": (
        _at("https://a.example/api", services={"s": {"upstream": "a", "paths": ["/api/*"]}}),
        "config.upstreams.a.base_url", "leave /api out",
    ),
    "route to nobody": (
        {"config": {"routes": [{"path": "/a", "upstream": "opnai"}]}}, "config.routes[0].upstream is opnai", "openai"
    ),
    "service of nobody": ({"config": {"services": {"sms": {"upstream": "s"}}}}, "config.services.sms.upstream is s", "openai"),
    "model of nobody": (
        {"config": {"models": [{"name": "m", "targets": [{"upstream": "openai"}, {"upstream": "x"}]}]}},
        "config.models[0].targets[1].upstream is x", "openai",
    ),
    "file that a sidecar does not mount": (
        {"settings": {"REDIS_CA_FILE": "/etc/ca.pem"}}, 'settings.REDIS_CA_FILE is "/etc/ca.pem"', "/run/files/<key>"
    ),
    "file of a sidecar's own settings": (
        {"sidecar": {"settings": {"PROXY_CA_FILE": "ca.pem"}}}, "sidecar.settings.PROXY_CA_FILE", "secrets.files"
    ),
    "file of a port without a certificate": (
        {"settings": {"OPS_TLS_CLIENT_CA_FILE": "/run/tls/ops/ca.crt"}}, "settings.OPS_TLS_CLIENT_CA_FILE", "does not mount"
    ),
    "route to nowhere": ({"config": {"routes": [{"path": "/a"}]}}, "/config/routes/0", "missing property 'upstream'"),
    "upstream for upstreams": ({"config": {"upstream": {}}}, "/config", "upstream"),
    "upstreams that are a list": ({"config": {"upstreams": ["a"]}}, "/config/upstreams", "want object"),
    "upstream that is nothing": ({"config": {"upstreams": {"a": None}}}, "/config/upstreams/a", "got null"),
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
    "workers of gateways beside a small sidecar": (
        {"settings": {"WORKERS": 4}} | _memory("sidecar", limits="512Mi"), "nobody: it is right"
    ),
    "more workers than cores": ({"settings": {"WORKERS": 4}}, "the notes of the release"),
    "gateways behind keepers": (
        {"image": {"digest": DIGEST}, "gateway": {"tag": "9.0.0"}, "sidecar": {"digest": DIGEST}}, "nobody: it is right"
    ),
    "keepers that are newer": ({"keeper": {"tag": "1.10.0"}, "gateway": {"tag": "1.9.0"}}, "nobody: it is right"),
    "dollar sign": (_config("$$OPENAI_API_KEY and $${OPENAI_API_KEY}"), "nobody: it is right"),
    "variable that may be missing": (_config("${OPENAI_API_KEY:-none}"), "nobody: it is right"),
    "version that no path begins with": (
        _at("https://a.example/v1", routes=[{"path": "/chat", "upstream": "a"}]), "nobody: it is right"
    ),
    "version in a path of its own": (_at("https://a/v1", {"family": "openai", "path": "/x"}), "nobody: it is right"),
    "version in an address of tools": (_at("https://a.example/v1", {"family": "mcp"}), "nobody: it is right"),
    "key that nothing names": (KEYED, "nobody: the routes of an empty `config` name the usual keys"),
}  # fmt: skip


@cache
def _rendered() -> dict[str, list[dict[str, Any]] | str]:
    tables = [values for values, *_ in (*MISTAKES.values(), *RENDERED.values())]
    return dict(zip([*MISTAKES, *RENDERED], helm.rendered(*tables, extra=SIDECAR), strict=True))


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


def _paths(values: Values, *above: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path of each value, and how many levels are below its own."""
    for name, value in values.items():
        below = [*_paths(value, *above, name)] if isinstance(value, dict) else []
        yield (*above, name), 1 + max((levels for _, levels in below), default=-1)
        yield from below


def _nulls(paths: list[tuple[str, ...]]) -> Values:
    values: Values = {}
    for path in paths:
        part = reduce(lambda above, name: above.setdefault(name, {}), path[:-1], values)
        part[path[-1]] = None
    return values


def test_null_of_any_value_is_refused_with_its_path() -> None:
    """All values of a level at once: a null takes those below with it."""
    levels: dict[int, list[tuple[str, ...]]] = {}
    for path, level in _paths(yaml.safe_load((helm.CHART / "values.yaml").read_text())):
        levels.setdefault(level, []).append(path)
    assert sum(map(len, levels.values())) > 150
    for paths, refusal in zip(levels.values(), helm.rendered(*map(_nulls, levels.values())), strict=True):
        assert isinstance(refusal, str)
        missing = dict(re.findall(r"- at '(.*)': missing propert(?:y|ies) (.*)", refusal))
        for path in paths:
            assert f"'{path[-1]}'" in missing["".join(f"/{name}" for name in path[:-1])], path
        assert ".tpl" not in refusal, "a trace of a template"


def test_chart_knows_configuration_files_and_the_shortest_grace_as_programs_do() -> None:
    schema = json.loads((helm.CHART / "values.schema.json").read_text())
    known = schema["definitions"]["configuration"]["properties"]
    assert set(known) == set(ConfigFile.__struct_fields__)
    for part in ("gateway", "sidecar"):
        least = schema["properties"][part]["properties"]["graceSeconds"]["minimum"]
        assert least == Settings().shutdown_grace_s
    checks = (helm.CHART / "templates" / "_checks.tpl").read_text()
    (built_in,) = re.findall(r"\$built_in := dict (.*) -}}", checks)
    versions = dict(re.findall(r'"(\w+)" \(list ([^)]*)\)', built_in))
    table = default_table({})
    assert {name: set(re.findall(r"\w+", found)) for name, found in versions.items()} == {
        target.name: {route.path.split("/")[1] for route in table.routes if route.upstream == target.name}
        - {"ws", "upload"}
        for target in table.upstreams
    }


def test_refusal_names_all_mistakes() -> None:
    (refusal,) = helm.rendered(
        {"settings": {"WORKER": 2}, "gateway": {"dataSize": "1Mi"}, "ingress": {"enabled": True}}
    )
    assert isinstance(refusal, str)
    assert [
        path for path in ("settings.WORKER ", "gateway.dataSize", "ingress.hosts") if path not in refusal
    ] == []
